"""The arrays of one checkpoint, with SHA-256 digests that are taken from memory, so that no damage goes unnoticed.

OCDBT, the format below Orbax, notices damage to its own structure, but not to the array data in it. The digests are an
item of each checkpoint, which becomes visible whole or not at all: no checkpoint is without them for a moment. They
are of the arrays, not of the files, so that damage on the way to the disk is noticed too. Each process writes down
those of the pieces that its devices hold.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals, Future

from jaxaccel.core.files import disk_error

ITEM = "digests"
"""Folder in each checkpoint that holds them."""
OLD_SEAL = "sha256.json"
"""File in checkpoints of earlier versions: digests of their files."""


Say = Callable[[str], None]
MAX_BYTES_AT_ONCE = 2**30
"""Bytes that are read before what was read is placed: a state may be larger than the host's memory."""


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


def read_stored(checkpoint: Path) -> Digests | None:
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


class Unreadable(Exception):
    """A checkpoint is damaged or has gone; the message says why in a few words."""


def read(
    checkpoint: Path,
    wanted: Callable[[str], bool],
    place: Callable[[str, np.ndarray], Any] = lambda path, array: array,
    say: Say = print,
) -> dict[str, Any]:
    """The arrays of one checkpoint, {path: what `place` makes of the array}, each compared with its digest.

    Args:
      checkpoint: directory of the step.
      wanted: whether to read the array of that path.
      place: called with the path and the array on the host.
      say: told where arrays cannot be verified.

    Raises:
      Unreadable: it is damaged, or has gone.
      OSError: there is no permission to read it, or the file system is out of reach.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells of each file and each retry
    placed: dict[str, Any] = {}
    try:
        known = read_stored(checkpoint)
        verified = known is not None or verify_files(checkpoint)
        for paths in _portions(checkpoint, wanted):
            arrays = ocp.PyTreeCheckpointHandler().restore(
                _item(checkpoint),
                args=ocp.args.PyTreeRestore(
                    item=dict.fromkeys(paths, 0),
                    restore_args=dict.fromkeys(paths, ocp.RestoreArgs(restore_type=np.ndarray)),
                    partial_restore=True,
                ),
            )
            if known:
                known.verify(arrays)
            placed |= {path: place(path, array) for path, array in arrays.items()}
    except Exception as error:  # Orbax and TensorStore raise all sorts for a damaged file
        said = disk_error(error, checkpoint)
        if said and said.errno not in (errno.EIO, errno.ENOSPC):
            raise said from error  # the checkpoint may be whole
        raise Unreadable(next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]) from error
    if not verified:
        say(f"checkpoint {checkpoint} cannot be verified, it has no digests: it is taken as it is")
    return placed


def _item(checkpoint: Path) -> Any:
    """Where Orbax keeps the arrays, as its types want to have it."""
    return checkpoint.absolute() / "default"


def _portions(checkpoint: Path, wanted: Callable[[str], bool]) -> Iterator[list[str]]:
    """Paths of arrays that may be read together."""
    paths: list[str] = []
    size = 0
    tree = ocp.PyTreeCheckpointHandler().metadata(_item(checkpoint)).tree
    for path, array in dict(tree).items():
        if not wanted(path):
            continue
        here = math.prod(array.shape) * np.dtype(array.dtype).itemsize
        if paths and size + here > MAX_BYTES_AT_ONCE:
            yield paths
            paths, size = [], 0
        paths, size = [*paths, path], size + here
    if paths:
        yield paths


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
        """Likewise: `read_stored` reads them."""
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
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
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
