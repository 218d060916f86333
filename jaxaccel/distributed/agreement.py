"""What must be equal in all processes of a run: a different seed in one of them would train a mixture."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxaccel.errors import UserError, option


def check_same_everywhere(values: Mapping[str, Any]) -> None:
    """Checks that `values`, by path, are the same in all processes.

    Raises:
      UserError: they are not, in every process alike; it names the first path that differs, and the process.
    """
    if jax.process_count() == 1:
        return
    paths = sorted(values)
    structures = _gathered(_digest(paths)[None])
    if (structures != structures[0]).any():
        rank = int(np.argmax((structures != structures[0]).any((1, 2))))
        raise UserError(
            f"process {rank} was started with other options than process 0: start all with the same words"
        )
    digests = _gathered(np.stack([_digest(values[path]) for path in paths]))
    differ = (digests != digests[0]).any(2)
    if differ.any():
        rank = int(np.argmax(differ.any(1)))
        path = paths[int(np.argmax(differ[rank]))]
        raise UserError(
            f"process {rank} was started with another {option(path)} than process 0: start all with the same words"
        )


def gather_number(number: float) -> np.ndarray:
    """The number of each process, as float64: a count of bytes loses nothing."""
    if jax.process_count() == 1:
        return np.array([number])
    data = np.frombuffer(np.float64(number).tobytes(), np.uint8)[None]
    return np.ascontiguousarray(_gathered(data)).view(np.float64).reshape(-1)


def flatten_values(values: Any, path: str = "") -> dict[str, Any]:
    """{dotted path: value} of nested dictionaries."""
    if not isinstance(values, Mapping):
        return {path: values}
    return {
        p: x
        for key, inner in values.items()
        for p, x in flatten_values(inner, f"{path}.{key}" if path else key).items()
    }


def _gathered(digests: np.ndarray) -> np.ndarray:
    """(n, 8) of each process -> (processes, n, 8)."""
    return np.asarray(multihost_utils.process_allgather(digests)).reshape(-1, *digests.shape)


def _digest(value: Any) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(repr(value).encode()).digest()[:8], np.uint8)
