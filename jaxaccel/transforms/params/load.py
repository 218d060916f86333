"""Reading packed files, whoever wrote them: nothing is executed, and memory is bounded by the size of the file.

What a file claims is added up and checked before anything is decoded: the sizes of its streams, then the shapes in its
table. A decoder stops at the size that was claimed.
"""

import dataclasses
import hashlib
import json
import lzma
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.arrays import CodebookArray, LowRankArray, QuantArray
from jaxaccel.core.formats.bounds import Budget, Refused, check, explain_errors, open_file, shorten, size_of
from jaxaccel.core.formats.safetensors_files import read_array, read_header
from jaxaccel.core.interpret import is_compressed
from jaxaccel.errors import UserError
from jaxaccel.transforms.params.save import (
    CODERS,
    TABLE,
    VERSION,
    is_number,
    max_array_bytes,
    max_table_length,
    path_parts,
)

PyTree = Any
_TYPES: dict[str, type] = {kind.__name__: kind for kind in (QuantArray, LowRankArray, CodebookArray)}


def load(file: str | Path, like: PyTree = None) -> PyTree:
    """What `pack` wrote: arrays bit for bit, as nested dictionaries and lists.

    Of dtypes that JAX does not have as it is set up, those of 64 bits for instance, they are NumPy's arrays.

    Args:
      file: its path.
      like: a pytree of the same paths, whose containers (tuples, classes) the result then has.

    Raises:
      UserError: the file is missing, damaged or of another kind, claims more than `pack` makes of its size, or its
        paths are not those of `like`.
    """
    path = Path(file)
    coded, header, limit = _read(path)
    with explain_errors(path, "was not written by ja.params.save"):
        check(isinstance(header.get("streams"), dict) and TABLE in header["streams"], "no table")
        budget = Budget(limit, "claims streams out of proportion to its size; refused")
        for name, fact in header["streams"].items():
            check(_is_count(fact["size"]) and name in coded, "a stream of a wrong size")
            budget.spend(fact["size"])
        table_size = header["streams"][TABLE]["size"]
        if table_size > max_table_length(coded[TABLE].nbytes):
            raise Refused(f"claims a table of {table_size:,} bytes, out of proportion to its size; refused")
        table = json.loads(_decoded(coded[TABLE], header["streams"][TABLE]))
        claimed = sum(_claimed(entry) for entry in table)
        if claimed > limit:
            raise Refused(f"claims arrays of {claimed:,} bytes, out of proportion to its size; refused")
        streams = {name: _decoded(coded[name], fact) for name, fact in header["streams"].items()}
        readers = {name: _Reader(data) for name, data in streams.items()}
        leaves = [(_path(entry["path"]), _restored(entry, readers)) for entry in table]
        if like is None:
            return _nested(leaves)
    paths, treedef = jax.tree_util.tree_flatten_with_path(like, is_leaf=is_compressed)
    by_path = {json.dumps(path): x for path, x in leaves}
    wanted = [json.dumps(path_parts(path)) for path, _ in paths]
    if missing := [path for path in wanted if path not in by_path]:
        raise UserError(f"{file} has no {missing[0]}: it was packed from other parameters")
    return jax.tree.unflatten(treedef, [by_path[path] for path in wanted])


def is_packed(file: str | Path) -> bool:
    """Whether `pack` wrote that file, as far as its beginning says."""
    try:
        with explain_errors(Path(file), ""), open_file(Path(file)) as opened:
            return "jaxaccel" in read_header(opened).metadata
    except UserError:
        return False


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], int]:
    """The coded streams, what the file says of them, and how many bytes they may become."""
    with (
        explain_errors(
            path, "is no whole file of ja.params.save; ja.models.load_pretrained reads other weights"
        ),
        open_file(path) as file,
    ):
        found = read_header(file)
        header = json.loads(found.metadata["jaxaccel"])
        check(isinstance(header, dict), "a wrong header")
        version = header.get("version")
        if version not in range(1, VERSION + 1):
            raise Refused(f"is of version {version} of the format, this jaxaccel reads up to {VERSION}")
        coded = {name: read_array(file, entry) for name, entry in found.entries.items()}
        check(all(data.dtype == np.uint8 and data.ndim == 1 for data in coded.values()), "a wrong stream")
        return coded, header, max_array_bytes(size_of(file))


def _decoded(data: np.ndarray, fact: Mapping[str, Any]) -> bytes:
    if fact["coder"] == "raw":
        plain = data.tobytes()
    else:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=CODERS[fact["coder"]])
        plain = decoder.decompress(data.tobytes(), max_length=fact["size"] + 1)
    check(len(plain) == fact["size"], "a stream is not what was written")
    check(hashlib.sha256(plain).hexdigest() == fact["sha256"], "a stream is not what was written")
    return plain


class _Reader:
    """A stream of bytes from its start."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> np.ndarray:
        """The next `count` bytes."""
        check(0 <= count <= len(self._data) - self._at, "a stream ends too soon")
        self._at += count
        return np.frombuffer(self._data, np.uint8, count, self._at - count)


def _claimed(entry: Mapping[str, Any]) -> int:
    """How many bytes the arrays of an entry take, by the table alone, every number of which is checked."""
    if "empty" in entry:
        check(entry["empty"] in (None, {}, []), "an empty place that is not empty")
        return 0
    if "type" in entry:
        _check_fields(_TYPES[entry["type"]], entry["parts"], entry["static"])
        return sum(_claimed(part) for part in entry["parts"].values() if part is not None)
    shape, nonzero = entry["shape"], entry["nonzero"]
    check(isinstance(entry["dtype"], str) and is_number(jnp.dtype(entry["dtype"])), "arrays of no numbers")
    check(isinstance(shape, list) and len(shape) <= 32 and all(map(_is_count, shape)), "a wrong shape")
    size = math.prod(shape)
    check(nonzero is None or (_is_count(nonzero) and nonzero <= size), "a wrong count")
    return size * jnp.dtype(entry["dtype"]).itemsize


def _check_fields(kind: type, arrays: Mapping[str, Any], static: Mapping[str, Any]) -> None:
    fields = {field.name: bool(field.metadata.get("static")) for field in dataclasses.fields(kind)}
    check(all(fields[name] is False for name in arrays), "a compressed array of other parts")
    check(all(fields[name] is True for name in static), "a compressed array of other parts")
    for name, value in static.items():
        if name == "real":
            check(
                jnp.issubdtype(jnp.dtype(value), jnp.floating),
                f"{shorten(str(value), 20)} is no type of floats",
            )
        elif name == "stacked":
            check(isinstance(value, bool), "a wrong size")
        else:
            check(value is None or all(map(_is_count, _listed(value))), "a wrong size")


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _restored(entry: Mapping[str, Any], readers: Mapping[str, _Reader]) -> Any:
    if "empty" in entry:
        return entry["empty"]
    if "type" in entry:
        arrays = {
            name: None if part is None else _restored(part, readers) for name, part in entry["parts"].items()
        }
        static = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["static"].items()}
        made = _TYPES[entry["type"]](**arrays, **static)
        check(_is_whole(made), "a compressed array whose parts do not fit")
        return made
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


def _is_whole(x: Any) -> bool:
    """Whether the parts of a compressed array have the shapes that belong together."""
    if isinstance(x, LowRankArray):
        lead = int(x.stacked)
        fit = min(x.left.ndim, x.right.ndim) > lead and x.left.shape[-1] == x.right.shape[lead]
        fit = fit and x.left.shape[:lead] == x.right.shape[:lead]
        axes = range(x.left.ndim + x.right.ndim - 2 - 2 * lead)
        return fit and (x.axes is None or sorted(x.axes) == list(axes))
    if isinstance(x, CodebookArray):
        layers = x.codebook.shape[:-1]
        fit = x.codebook.ndim in (1, 2) and layers == x.indices.shape[: len(layers)]
        return x.indices.dtype == np.uint8 and fit and x.codebook.size > 0
    if x.qvalue.dtype != np.int8 or (x.zero_point is not None and x.zero_point.shape != x.scale.shape):
        return False
    if x.length is not None and (x.qvalue.ndim < 1 or -(-x.length // 2) != x.qvalue.shape[-1]):
        return False
    blocks = zip(x.shape, x.scale.shape, strict=False)
    return x.scale.ndim == len(x.shape) and all(n == s or (s > 0 and n % s == 0) for n, s in blocks)


def _path(path: Any) -> list[Any]:
    check(isinstance(path, list) and len(path) <= 64, "a wrong path")
    return path


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
