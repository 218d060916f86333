"""Checkpoints that `torch.save` wrote, read without PyTorch and without running anything in them.

Both formats are read: the zip archive of PyTorch 1.6 and newer, and the sequence of pickles and raw numbers before
it; see https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

import functools
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxaccel.core.formats.bounds import (
    Budget,
    Refused,
    check,
    explain_errors,
    open_file,
    read_member,
    shorten,
    size_of,
    zip_members,
)
from jaxaccel.core.formats.pickle_values import NumpyArray, NumpyDtype
from jaxaccel.core.formats.pickles import Name, Opaque
from jaxaccel.core.formats.torch_pickle import Storage, Tensor, load

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_DEPTH = 64  # containers in containers
_MAX_EXPANSION, _MAX_EXTRA_BYTES = 16, 1 << 24  # a view may repeat its storage, but not without end


def read(path: str | Path) -> dict[str, Any]:
    """What `torch.save` wrote to `path`: a state dict, or a dictionary of several.

    Dictionaries (ordered, counting and default ones too), lists, tuples, text, bytes and numbers come as they are,
    sets as lists, devices as text. Tensors, parameters, buffers and NumPy arrays come as NumPy arrays of their shape
    and dtype (bfloat16 and float8 from ``ml_dtypes``), each a copy in C order whatever its strides were; one tensor
    under two names is one array. What is of a class or function that is not known here comes as an `Opaque` with its
    name, and nothing of it is run; so do tensors of other kinds (sparse, quantized). Gradients' hooks, attributes of
    tensors and of dictionaries (``_metadata``), and items of the outermost dictionary whose key is no text, are left
    out.

    Raises:
      UserError: the file is missing, damaged or no checkpoint, holds no dictionary with text as keys, has big-endian
        numbers, describes tensors out of proportion to its size, or asks for more than a pickle of data does.
    """
    path = Path(path)
    with explain_errors(path, "was not written by torch.save"), open_file(path) as file:
        limit = _MAX_EXPANSION * size_of(file) + _MAX_EXTRA_BYTES
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        value = _read_zip(file, limit) if zipped else _read_legacy(file.read(), limit)
        if isinstance(value, Opaque):
            raise Refused(
                f"holds an object of {shorten(value.name)}, which is not run: save its state_dict()"
            )
        named = {k: x for k, x in value.items() if isinstance(k, str)} if isinstance(value, dict) else {}
        if not named:
            raise Refused("holds no dictionary of names: save the model's state_dict()")
    return named


def _read_zip(file: IO[bytes], limit: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        # torch.save compresses nothing, and so nothing here grows beyond the size of the file.
        members = zip_members(
            archive, Budget(size_of(file), "has members that are larger than the file; refused")
        )
        names = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        check(len(names) == 1, "an archive without data.pkl")
        root = names[0].removesuffix("/data.pkl")
        if f"{root}/constants.pkl" in members:
            raise Refused("is a TorchScript program: save the model's state_dict() with torch.save")
        check(all(m.compress_type == zipfile.ZIP_STORED for m in members.values()), "it is compressed")

        @functools.cache
        def content(name: str) -> bytes:
            return read_member(archive, members[f"{root}/{name}"])

        if f"{root}/byteorder" in members:
            _check_little_endian(content("byteorder") == b"little")
        program = content("data.pkl")
        described = load(io.BytesIO(program), {}, len(program))
        return _Arrays(lambda key: content(f"data/{key}"), limit).filled(described)


def _read_legacy(data: bytes, limit: int) -> Any:
    file = io.BytesIO(data)
    check(data[:1] == b"\x80" and load(file, {}, 0) == _MAGIC, "it starts otherwise")
    check(load(file, {}, 0) == _PROTOCOL, "another protocol than 1001")
    system = load(file, {}, 0)
    _check_little_endian(isinstance(system, dict) and system.get("little_endian") is True)
    storages: dict[str, Storage] = {}
    described = load(file, storages, len(data))
    keys = load(file, {}, 0)
    check(isinstance(keys, list) and all(isinstance(key, str) for key in keys), "no list of storages")
    raw: dict[str, memoryview] = {}
    for key in keys:
        (size,) = struct.unpack("<q", file.read(8))
        check(key not in raw and size == storages[key].size, "a storage of another size")
        start = file.tell()
        raw[key] = memoryview(data)[start : start + storages[key].nbytes]
        file.seek(start + len(raw[key]))
    return _Arrays(raw.__getitem__, limit).filled(described)


class _Arrays:
    """Fills what a pickle described with arrays of the numbers in `raw`, at most `limit` bytes in all."""

    def __init__(self, raw: Callable[[str], bytes | memoryview], limit: int) -> None:
        self._raw = raw
        self._left = Budget(limit, "describes tensors many times as large as the file; refused")
        # By identity, so that containers that hold one another twice and twice again stay as small as they are.
        self._done: dict[int, Any] = {}

    def filled(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, str | bytes | int | float | complex | np.generic):
            return value
        if depth > _MAX_DEPTH:
            raise Refused(f"nests more than {_MAX_DEPTH} containers, or one in itself; refused")
        if id(value) not in self._done:
            self._done[id(value)] = self._fresh(value, depth + 1)
        return self._done[id(value)]

    def _fresh(self, value: Any, depth: int) -> Any:
        if isinstance(value, Tensor):
            self._left.spend(value.nbytes)
            raw = self._raw(value.storage.key)
            check(len(raw) == value.storage.nbytes, "a storage of another size")
            return value.array(raw)
        if isinstance(value, NumpyArray):
            if value.value is None:
                return Opaque("numpy.ndarray")
            self._left.spend(value.value.nbytes)
            return value.value.astype(value.value.dtype.newbyteorder("="), order="C")
        if isinstance(value, NumpyDtype):
            return value.value
        if isinstance(value, Name):
            return Opaque(value.text)
        if isinstance(value, Storage):
            return Opaque("torch.storage.UntypedStorage")
        if isinstance(value, Opaque) and value.entries is not None:
            value = value.entries
        if isinstance(value, dict):
            return {key: self.filled(item, depth) for key, item in value.items()}
        if isinstance(value, list):
            return [self.filled(item, depth) for item in value]
        if isinstance(value, tuple):
            return tuple(self.filled(item, depth) for item in value)
        return value  # an Opaque


def _check_little_endian(holds: bool) -> None:
    if not holds:
        raise Refused("was written on a big-endian machine: save it again on another")
