"""Parameters in a file, without loss and as small as an entropy coder makes them.

A packed file is a safetensors file (https://github.com/huggingface/safetensors) of a few byte streams, into which the
arrays are taken apart so that like stands beside like: which elements are not zero, one bit each; integers; and each
byte of the floating-point numbers by itself. LZMA codes each stream, also the one that says what belongs where. The
file's metadata have a digest of each stream. Nothing in it is executed.
"""

import dataclasses
import hashlib
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core import files
from jaxaccel.core.formats.bounds import FLOOR
from jaxaccel.core.interpret import is_compressed
from jaxaccel.errors import UserError

PyTree = Any
VERSION = 2
"""Of the format; 1 left out what is empty."""
TABLE = "table"
"""Name of the stream that says what belongs where, as JSON."""
CODERS: dict[str, list[dict[str, Any]]] = {
    # Bytes without a grain of text: no context of the byte before, nor of the position.
    "lzma": [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}],
    "lzma, context": [
        {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}
    ],
}
"""By name: filters of Python's lzma module. ``raw`` leaves bytes as they are."""
MAX_TABLE_LENGTH = 1 << 24
"""Bytes of the table, enough for a hundred thousand arrays."""
_SPARSE = 0.2
"""Share of zeros above which an array is stored as bits and the rest."""


def save(params: PyTree, file: str | Path) -> int:
    """Writes `params` to `file`, whole or not at all; returns its size in bytes.

    Args:
      params: dictionaries, lists and tuples of arrays, compressed ones too (`QuantArray`, `LowRankArray`,
        `CodebookArray`).
      file: conventionally named ``*.safetensors``.

    Raises:
      UserError: `params` holds something else.
      OSError: the file cannot be written.
    """
    streams: dict[str, list[bytes]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: is_compressed(x) or _is_empty(x))
    table = [{"path": path_parts(path), **_described(x, streams)} for path, x in leaves]
    streams[TABLE] = [json.dumps(table).encode()]
    plain = {name: b"".join(pieces) for name, pieces in streams.items()}
    if len(plain[TABLE]) > MAX_TABLE_LENGTH:
        raise UserError(f"{len(leaves):,} arrays are more than a packed file names: pack parts of them")
    content = _content({name: _coded(name, data) for name, data in plain.items()}, plain)
    if sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > max_array_bytes(len(content)):
        # Next to nothing but zeros: no reader could tell it from a bomb, and so the bits that say where are not coded.
        content = _content({name: ("raw", data) for name, data in plain.items()}, plain)
    files.write_bytes(Path(file), content)
    return len(content)


def max_array_bytes(size: int) -> int:
    """How many bytes of arrays a file of `size` bytes may hold: without coding, zeros take a bit of 32 or 64."""
    return 256 * size + FLOOR


def max_table_length(size: int) -> int:
    """How long the table may be that takes `size` bytes when coded; real ones are 15 to 50 times as long."""
    return min(64 * size + (1 << 16), MAX_TABLE_LENGTH)


def transfer_seconds(size: int, bits_per_second: float) -> float:
    """How long `size` bytes take over a link that does nothing else."""
    return 8 * size / bits_per_second


def path_parts(path: tuple[Any, ...]) -> list[str | int]:
    """A key path as JSON: numbers for places in a list, texts for names, ``[text]`` marks a number that is a name."""
    found: list[Any] = []
    for key in path:
        if isinstance(key, jax.tree_util.SequenceKey):
            found.append(key.idx)
        elif isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, (str, int)):
            found.append(key.key if isinstance(key.key, str) else [key.key])
        else:
            raise UserError(f"pack takes dictionaries, lists and tuples of arrays, not {key!r}")
    return found


def _is_empty(x: Any) -> bool:
    """Whether `x` is a place without leaves: without an entry, those behind it in a list would move up."""
    return x is None or (isinstance(x, (dict, list, tuple)) and not x)


def _described(x: Any, streams: dict[str, list[bytes]]) -> dict[str, Any]:
    """What stands of a leaf in the table; its numbers go to the end of the streams."""
    if _is_empty(x):
        return {"empty": x}
    if not is_compressed(x):
        return _stored(x, streams)
    fields = {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
    static = {f.name for f in dataclasses.fields(x) if f.metadata.get("static")}
    return {
        "type": type(x).__name__,
        "static": {name: fields[name] for name in sorted(static)},
        "parts": {
            name: None if value is None else _described(value, streams)
            for name, value in fields.items()
            if name not in static
        },
    }


def _stored(x: Any, streams: dict[str, list[bytes]]) -> dict[str, Any]:
    array = np.asarray(x)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not is_number(array.dtype):
        raise UserError(f"pack takes arrays of numbers, not of {array.dtype}")
    flat = np.ascontiguousarray(array).reshape(-1)
    kept = _bits(flat)
    sparse = flat.size > 0 and 1 - kept.mean() > _SPARSE
    if sparse:
        streams.setdefault("nonzero", []).append(np.packbits(kept).tobytes())
        flat = flat[kept]
    width = flat.dtype.itemsize
    for i in range(width):
        name = f"{flat.dtype.name}.{i}"
        streams.setdefault(name, []).append(flat.view(np.uint8).reshape(-1, width)[:, i].tobytes())
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "nonzero": int(kept.sum()) if sparse else None,
    }


def is_number(dtype: np.dtype) -> bool:
    """Whether arrays of it can be packed: bools, integers and floats, those of ``ml_dtypes`` too."""
    return dtype.kind in "fiub" or (dtype.kind == "V" and bool(jnp.issubdtype(dtype, jnp.floating)))


def _bits(flat: np.ndarray) -> np.ndarray:
    """Where a bit is set: a negative zero is stored too."""
    return np.asarray(flat.view(np.uint8).reshape(flat.size, flat.dtype.itemsize).any(axis=1))


def _coded(name: str, plain: bytes) -> tuple[str, bytes]:
    """The shortest of what the coders make of a stream, within what readers allow."""
    made = {
        coder: lzma.compress(plain, lzma.FORMAT_RAW, filters=filters) for coder, filters in CODERS.items()
    }
    fit = [item for item in made.items() if name != TABLE or len(plain) <= max_table_length(len(item[1]))]
    return min([("raw", plain), *fit], key=lambda item: len(item[1]))


def _content(coded: Mapping[str, tuple[str, bytes]], plain: Mapping[str, bytes]) -> bytes:
    """The bytes of the file of those streams."""
    from safetensors.numpy import save

    index = {
        name: {"coder": coder, "size": len(plain[name]), "sha256": hashlib.sha256(plain[name]).hexdigest()}
        for name, (coder, _) in coded.items()
    }
    metadata = {"jaxaccel": json.dumps({"version": VERSION, "streams": index})}
    return save({name: np.frombuffer(data, np.uint8) for name, (_, data) in coded.items()}, metadata)
