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
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel import files
from jaxaccel.arrays import CodebookArray, LowRankArray, QuantArray
from jaxaccel.errors import UserError
from jaxaccel.interpret import is_compressed

PyTree = Any
VERSION = 2
"""Of the format; 1 left out what is empty."""
TABLE = "table"
"""Name of the stream that says what belongs where, as JSON."""
_TYPES: dict[str, type] = {kind.__name__: kind for kind in (QuantArray, LowRankArray, CodebookArray)}
_CODERS: dict[str, list[dict[str, Any]]] = {
    # Bytes without a grain of text: no context of the byte before, nor of the position.
    "lzma": [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}],
    "lzma, context": [
        {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}
    ],
}
"""By name: filters of Python's lzma module. ``raw`` leaves bytes as they are."""
_SPARSE = 0.2
"""Share of zeros above which an array is stored as bits and the rest."""


def pack(params: PyTree, file: str | Path) -> int:
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
    table = [{"path": _parts(path), **_described(x, streams)} for path, x in leaves]
    streams[TABLE] = [json.dumps(table).encode()]
    coded, index = {}, {}
    for name, pieces in streams.items():
        plain = b"".join(pieces)
        coder, data = _coded(plain)
        coded[name] = np.frombuffer(data, np.uint8)
        index[name] = {"coder": coder, "size": len(plain), "sha256": hashlib.sha256(plain).hexdigest()}
    from safetensors.numpy import save

    metadata = {"jaxaccel": json.dumps({"version": VERSION, "streams": index})}
    content = save(coded, metadata)
    files.write_bytes(Path(file), content)
    return len(content)


def unpack(file: str | Path, like: PyTree = None) -> PyTree:
    """What `pack` wrote: arrays bit for bit, as nested dictionaries and lists.

    Of dtypes that JAX does not have as it is set up, those of 64 bits for instance, they are NumPy's arrays.

    Args:
      file: its path.
      like: a pytree of the same paths, whose containers (tuples, classes) the result then has.

    Raises:
      UserError: the file is missing, damaged or of another kind, or its paths are not those of `like`.
    """
    coded, header = _read(Path(file))
    try:
        streams = {name: _decoded(coded[name], fact) for name, fact in header["streams"].items()}
        table = json.loads(streams.pop(TABLE))
        readers = {name: _Reader(data) for name, data in streams.items()}
        leaves = [(entry["path"], _restored(entry, readers)) for entry in table]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{file} is damaged ({error}): get it again") from error
    if like is None:
        return _nested(leaves)
    paths, treedef = jax.tree_util.tree_flatten_with_path(like, is_leaf=is_compressed)
    by_path = {json.dumps(path): x for path, x in leaves}
    wanted = [json.dumps(_parts(path)) for path, _ in paths]
    if missing := [path for path in wanted if path not in by_path]:
        raise UserError(f"{file} has no {missing[0]}: it was packed from other parameters")
    return jax.tree.unflatten(treedef, [by_path[path] for path in wanted])


def is_packed(file: str | Path) -> bool:
    """Whether `pack` wrote that file, as far as its beginning says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            return "jaxaccel" in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def transfer_seconds(size: int, bits_per_second: float) -> float:
    """How long `size` bytes take over a link that does nothing else."""
    return 8 * size / bits_per_second


def _parts(path: tuple[Any, ...]) -> list[str | int]:
    """A key path as JSON: numbers for places in a list, texts for names, ``[text]`` marks a number that is a name."""
    parts: list[Any] = []
    for key in path:
        if isinstance(key, jax.tree_util.SequenceKey):
            parts.append(key.idx)
        elif isinstance(key, jax.tree_util.DictKey) and isinstance(key.key, (str, int)):
            parts.append(key.key if isinstance(key.key, str) else [key.key])
        else:
            raise UserError(f"pack takes dictionaries, lists and tuples of arrays, not {key!r}")
    return parts


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
    if array.dtype.kind not in "fiubV" or (
        array.dtype.kind == "V" and not jnp.issubdtype(array.dtype, jnp.floating)
    ):
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


def _bits(flat: np.ndarray) -> np.ndarray:
    """Where a bit is set: a negative zero is stored too."""
    return np.asarray(flat.view(np.uint8).reshape(flat.size, flat.dtype.itemsize).any(axis=1))


def _coded(plain: bytes) -> tuple[str, bytes]:
    """The shortest of what the coders make of it."""
    made = {name: lzma.compress(plain, lzma.FORMAT_RAW, filters=filters) for name, filters in _CODERS.items()}
    return min([("raw", plain), *made.items()], key=lambda item: len(item[1]))


def _read(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            header = json.loads((opened.metadata() or {})["jaxaccel"])
            coded = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{file} is no whole file of ja.pack: get it again, or load it with ja.load_pretrained"
        ) from error
    if header.get("version") not in range(1, VERSION + 1):
        raise UserError(
            f"{file} is of version {header.get('version')} of the format, this jaxaccel reads up to {VERSION}"
        )
    return coded, header


def _decoded(data: np.ndarray, fact: Mapping[str, Any]) -> bytes:
    if fact["coder"] == "raw":
        plain = data.tobytes()
    else:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_CODERS[fact["coder"]])
        plain = decoder.decompress(data.tobytes(), max_length=fact["size"] + 1)
    if len(plain) != fact["size"] or hashlib.sha256(plain).hexdigest() != fact["sha256"]:
        raise ValueError("a stream is not what was written")
    return plain


class _Reader:
    """A stream of bytes from its start."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> np.ndarray:
        """The next `count` bytes."""
        if not 0 <= count <= len(self._data) - self._at:
            raise ValueError("a stream ends too soon")
        self._at += count
        return np.frombuffer(self._data, np.uint8, count, self._at - count)


def _restored(entry: Mapping[str, Any], readers: Mapping[str, _Reader]) -> Any:
    if "empty" in entry:
        return entry["empty"]
    if "type" in entry:
        parts = {
            name: None if part is None else _restored(part, readers) for name, part in entry["parts"].items()
        }
        static = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["static"].items()}
        return _TYPES[entry["type"]](**parts, **static)
    dtype, shape, size = jnp.dtype(entry["dtype"]), tuple(entry["shape"]), math.prod(entry["shape"])
    count = size if entry["nonzero"] is None else entry["nonzero"]
    kept = None
    if entry["nonzero"] is not None:
        kept = np.unpackbits(readers["nonzero"].take(-(-size // 8)), count=size).astype(bool)
    planes = [readers[f"{dtype.name}.{i}"].take(count) for i in range(dtype.itemsize)]
    flat = np.ascontiguousarray(np.stack(planes, 1)).view(dtype).reshape(count)
    if kept is not None:
        whole = np.zeros(size, dtype)
        whole[kept] = flat
        flat = whole
    array = flat.reshape(shape)
    in_jax = jnp.asarray(array)
    return in_jax if in_jax.dtype == dtype else array


def _nested(leaves: list[tuple[list[Any], Any]]) -> PyTree:
    """Leaves by path as dictionaries, and lists where the path counts."""
    if len(leaves) == 1 and not leaves[0][0]:
        return leaves[0][1]
    groups: dict[str, list[tuple[list[Any], Any]]] = {}
    for (first, *rest), x in leaves:
        groups.setdefault(json.dumps(first), []).append((rest, x))
    keys = [json.loads(text) for text in groups]
    inner = [_nested(group) for group in groups.values()]
    if keys and all(isinstance(key, int) for key in keys):
        return inner
    return {key[0] if isinstance(key, list) else key: value for key, value in zip(keys, inner, strict=True)}
