"""SHA-256 digests of what is saved, taken from memory and stored with it, so that no damage goes unnoticed.

OCDBT, the format below Orbax, notices damage to its own structure, but not to the array data in it. The digests are an
item of each checkpoint, which becomes visible whole or not at all: no checkpoint is without them for a moment. They
are of the arrays, not of the files, so that damage on the way to the disk is noticed too. Each process writes down
those of the pieces that its devices hold.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals, Future

ITEM = "digests"
"""Folder in each checkpoint that holds them."""
OLD_SEAL = "sha256.json"
"""File in checkpoints of earlier versions: digests of their files."""


@dataclasses.dataclass(frozen=True)
class Digests:
    """Those of one checkpoint."""

    arrays: Mapping[str, Mapping[str, str]]
    """{path of an array: {which piece of it: SHA-256}}."""
    metrics: str

    def verify(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compares arrays with their digests.

        Raises:
          ValueError: one is not what was saved.
        """
        for path, array in arrays.items():
            parts = {piece: array[_slices(piece)] for piece in self.arrays.get(path, {})}
            whole = sum(part.size for part in parts.values()) == array.size
            if not whole or any(_sha256(x) != self.arrays[path][piece] for piece, x in parts.items()):
                raise ValueError(f"{path} is not what was saved")

    def verify_metrics(self, metrics: Mapping[str, float]) -> None:
        """Compares the metrics that were saved with the arrays.

        Raises:
          ValueError: they are not what was saved.
        """
        if _of_metrics(metrics) != self.metrics:
            raise ValueError("the metrics are not what was saved")


def stored(checkpoint: Path) -> Digests | None:
    """The digests in the directory of a checkpoint; None where it has none.

    Raises:
      ValueError: they are damaged.
      OSError: they cannot be read.
    """
    if not (checkpoint / ITEM).is_dir():
        return None
    arrays: dict[str, dict[str, str]] = {}
    metrics = ""
    for path in sorted((checkpoint / ITEM).glob("process_*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            metrics = found["metrics"]
            for name, pieces in found["arrays"].items():
                arrays.setdefault(name, {}).update(pieces)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{ITEM}/{path.name} is damaged") from error
    return Digests(arrays, metrics)


def verify_files(checkpoint: Path) -> bool:
    """Compares the files of a checkpoint of an earlier version with their digests; False where it has none.

    Raises:
      ValueError: one is not what was written.
      OSError: one cannot be read.
    """
    if not (checkpoint / OLD_SEAL).exists():
        return False
    for name, digest in json.loads((checkpoint / OLD_SEAL).read_text(encoding="utf-8")).items():
        with (checkpoint / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{name} is not what was written")
    return True


class Handler(ocp.AsyncCheckpointHandler):
    """Writes the digests of a state beside it, in the background, before Orbax makes the checkpoint visible."""

    async def async_save(self, directory: Path, args: "Save") -> list[Future]:
        """Copies what this process holds, since the next step takes its memory; digests are computed later."""
        copies = {path: list(_pieces(array)) for path, array in args.state.items()}

        async def write() -> None:
            arrays = {path: {piece: _sha256(x) for piece, x in pieces} for path, pieces in copies.items()}
            text = json.dumps({"arrays": arrays, "metrics": _of_metrics(args.metrics)}, indent=1)
            (directory / f"process_{jax.process_index()}.json").write_text(text, encoding="utf-8")

        return [CommitFutureAwaitingContractedSignals(write(), name="digests")]

    def save(self, directory: Path, args: "Save") -> None:
        """Orbax wants a handler to have this form too; what saves in the background never calls it."""
        raise NotImplementedError

    def restore(self, directory: Path, args: Any = None) -> None:
        """Likewise: `stored` reads them."""
        raise NotImplementedError


@ocp.args.register_with_handler(Handler, for_save=True, for_restore=True)
@dataclasses.dataclass
class Save(ocp.args.CheckpointArgs):
    """What to write the digests of. Orbax wants arguments for restoring too, and never uses them."""

    state: Mapping[str, Any]
    """{path: array}."""
    metrics: Mapping[str, float]


def _pieces(array: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Copies of the pieces of `array` that this process writes: one of each that several devices hold."""
    if not isinstance(array, jax.Array):
        if jax.process_index() == 0:
            yield "", np.array(array)
        return
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            yield _name(shard.index), np.array(shard.data)


def _name(index: tuple[slice, ...]) -> str:
    """``0:64,0:`` for instance; the empty text is the whole."""
    if all(part.start in (None, 0) and part.stop is None for part in index):
        return ""
    return ",".join(f"{part.start or 0}:{'' if part.stop is None else part.stop}" for part in index)


def _slices(piece: str) -> tuple[slice, ...]:
    parts = [part.partition(":") for part in piece.split(",") if part]
    return tuple(slice(int(start), int(stop) if stop else None) for start, _, stop in parts)


def _sha256(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _of_metrics(metrics: Mapping[str, float]) -> str:
    return hashlib.sha256(json.dumps(dict(metrics), sort_keys=True).encode()).hexdigest()
