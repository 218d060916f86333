"""What a run has saved, read without touching it: nothing is cleaned, sealed or written, while it trains or not."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.paths import path_text
from jaxaccel.errors import UserError, option
from jaxaccel.training import digests
from jaxaccel.training.digests import Say, Unreadable, read

PyTree = Any
Better = Literal["higher", "lower"]
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds them, a directory a step."""
WEIGHTS = ("params/", "model_state/", "average/")
RETRY_SECONDS = 0.3
"""Seconds after which a checkpoint that could not be read is looked for again: its trainer may have removed it."""


class Weights(NamedTuple):
    """The weights of one checkpoint."""

    step: int
    arrays: dict[str, np.ndarray]
    """{path: array} on the host: ``params/...`` and ``model_state/...``. Where the run keeps an average of its
    parameters, that stands in their place."""


def read_weights(
    run: Path,
    metric: str = "accuracy",
    better: Better = "higher",
    which: Literal["best", "last"] | int = "best",
    say: Say = print,
) -> Weights:
    """Reads the weights of a run, which may be training at the same time or lie on a read-only file system.

    Args:
      run: directory of the run.
      metric: by which the best checkpoint is chosen.
      better: whether higher or lower is better.
      which: the best checkpoint, the last one, or that of a step. Where the best or the last one is damaged, the
        newest whole one takes its place.
      say: told of each checkpoint that is damaged, or cannot be verified.

    Raises:
      UserError: there is no such run or checkpoint, or none that is whole.
    """
    directory = Path(run) / CHECKPOINTS
    if not directory.is_dir():
        raise UserError(f"{run} is no directory of a run with checkpoints")
    passed: set[int] = set()
    while True:
        there = list_steps(directory)
        wanted = (step for step in _wanted(directory, there, metric, better, which) if step not in passed)
        step = next(wanted, None)
        if step is None:
            raise UserError(_nothing(directory, there, which))
        try:
            arrays = read(directory / str(step), lambda path: path.startswith(WEIGHTS), say=say)
        except Unreadable as error:
            if _still_there(directory / str(step)):
                passed.add(step)
                say(_damaged(directory / str(step), error))
        else:
            averages = {
                p.replace("average/", "params/", 1): a for p, a in arrays.items() if p.startswith("average/")
            }
            kept = {path: array for path, array in arrays.items() if not path.startswith("average/")}
            return Weights(step, kept | averages)


def read_state(
    directory: Path, shapes: PyTree, shardings: PyTree, say: Say = print
) -> tuple[int, PyTree] | None:
    """Reads the newest checkpoint that is whole and places it by `shardings`; None where there is none.

    Args:
      directory: the checkpoints of a run.
      shapes: a state of `jax.ShapeDtypeStruct`s, the structure that is expected.
      shardings: the same structure of shardings; the number of devices may differ from the run that saved.
      say: told of each checkpoint that is damaged, or cannot be verified.

    Raises:
      UserError: there are checkpoints and all are damaged.
    """
    expected = {
        path_text(path): (shape, sharding)
        for (path, shape), sharding in zip(
            jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(shardings), strict=True
        )
    }
    there = list_steps(directory)
    for step in reversed(there):
        try:
            arrays = read(
                directory / str(step),
                expected.__contains__,
                lambda path, array: _placed(path, array, *expected[path]),
                say,
            )
            if missing := expected.keys() - arrays.keys():
                raise Unreadable(f"{min(missing)} is missing")
        except Unreadable as error:
            say(_damaged(directory / str(step), error))
        else:
            return step, jax.tree.unflatten(jax.tree.structure(shapes), [arrays[path] for path in expected])
    if there:
        raise UserError(
            f"all checkpoints in {directory} are damaged: start again with {option('overwrite', True)}"
        )
    return None


def list_steps(directory: Path) -> list[int]:
    """The steps of which `directory` has a checkpoint that is complete, in order."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def read_scores(checkpoint: Path) -> dict[str, float]:
    """The metrics that were saved with a checkpoint; none where there are none, or they are not what was saved."""
    try:
        found: Any = json.loads((checkpoint / "metrics" / "metrics").read_text(encoding="utf-8"))
        if known := digests.read_stored(checkpoint):
            known.verify_metrics(found)
        return {name: float(value) for name, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def find_best(directory: Path, metric: str, better: Better = "higher") -> int | None:
    """The step with the best metric, of those in `directory`; of equal ones the latest, which is always kept."""
    sign = 1 if better == "higher" else -1
    found = {
        step: sign * read_scores(directory / str(step)).get(metric, math.nan)
        for step in list_steps(directory)
    }
    known = {step: score for step, score in found.items() if not math.isnan(score)}
    return max(known, key=lambda step: (known[step], step), default=None)


def _placed(
    path: str, array: np.ndarray, expected: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding
) -> jax.Array:
    if jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
        return jax.device_put(
            jax.random.wrap_key_data(jnp.asarray(array), impl=_implementation(expected)), sharding
        )
    if (array.shape, array.dtype) != (expected.shape, expected.dtype):
        raise ValueError(f"{path} is {array.dtype}{array.shape}, not {expected.dtype}{expected.shape}")
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _implementation(keys: jax.ShapeDtypeStruct) -> Any:
    """Of random keys: JAX tells that of an array, not that of a shape."""
    found = []
    jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), keys)
    return found[0]


def _wanted(
    directory: Path, there: Sequence[int], metric: str, better: Better, which: Literal["best", "last"] | int
) -> list[int]:
    """The steps to try, the first one first."""
    if isinstance(which, int):
        return [step for step in there if step == which]
    first = find_best(directory, metric, better) if which == "best" else None
    return [*([] if first is None else [first]), *reversed(there)]


def _nothing(directory: Path, there: Sequence[int], which: Literal["best", "last"] | int) -> str:
    if isinstance(which, int):
        kept = ", ".join(map(str, there)) or "none"
        return f"{directory} has no whole checkpoint of step {which}: there is {kept}"
    if there:
        return f"no whole checkpoint in {directory}, all are damaged: name another run"
    return f"no checkpoint in {directory} yet: name the directory of a run that has saved one"


def _still_there(checkpoint: Path) -> bool:
    """Whether a checkpoint that could not be read is damaged, not one that its trainer was removing."""
    time.sleep(RETRY_SECONDS)
    return checkpoint.is_dir()


def _damaged(checkpoint: Path, error: Exception) -> str:
    return f"checkpoint {checkpoint} is damaged and passed over: {error}"
