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
from typing import Any

from jaxaccel.errors import UserError
from jaxaccel.torch_pickle import Refused, Storage, Tensor, check, load

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DEEPEST = 64  # containers in containers


def read(path: str | Path) -> dict[str, Any]:
    """What `torch.save` wrote to `path`: a state dict, or a dictionary of several.

    Dictionaries (ordered ones too), lists, tuples, text and numbers come as they are. Tensors and parameters come
    as NumPy arrays of their shape and dtype (bfloat16 from ``ml_dtypes``), each a copy in C order whatever its
    strides were; one tensor under two names is one array. Devices, gradients' hooks and attributes of
    dictionaries (``_metadata``) are left out.

    Raises:
      UserError: the file is missing, damaged or no checkpoint, asks for anything but the above, holds no
        dictionary with text as keys, has big-endian numbers, or describes tensors out of proportion to its size.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        limit = 16 * path.stat().st_size + (1 << 24)  # a view may repeat its storage, but not without end
        value = _read_zip(path, limit) if zipped else _read_legacy(path, limit)
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise Refused("holds no dictionary of names: save the model's state_dict()")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except Refused as error:
        raise UserError(f"{path} {error}") from None
    except (
        *(ValueError, LookupError, TypeError, ArithmeticError, MemoryError),  # a pickle that makes no sense
        *(EOFError, RuntimeError, struct.error, zipfile.BadZipFile),
    ) as error:
        detail = " ".join(str(error).split())[:100]
        raise UserError(
            f"{path} is damaged or was not written by torch.save ({detail}): get or save it again"
        ) from error
    return value


def _read_zip(path: Path, limit: int) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        check(len(names) == 1, "an archive without data.pkl")
        root = names[0].removesuffix("/data.pkl")
        if f"{root}/constants.pkl" in archive.namelist():
            raise Refused("is a TorchScript program: save the model's state_dict() with torch.save")
        # torch.save compresses nothing, and so nothing here grows beyond the size of the file.
        entries = archive.infolist()
        check(all(entry.compress_type == zipfile.ZIP_STORED for entry in entries), "it is compressed")
        check(sum(entry.file_size for entry in entries) <= path.stat().st_size, "its entries overlap")

        @functools.cache
        def content(name: str) -> bytes:
            return archive.read(f"{root}/{name}")

        if f"{root}/byteorder" in archive.namelist():
            _check_little_endian(content("byteorder") == b"little")
        described = load(io.BytesIO(content("data.pkl")), {})
        return _Arrays(lambda key: content(f"data/{key}"), limit).filled(described)


def _read_legacy(path: Path, limit: int) -> Any:
    data = path.read_bytes()
    file = io.BytesIO(data)
    check(load(file, {}) == _MAGIC, "it starts otherwise")
    check(load(file, {}) == _PROTOCOL, "another protocol than 1001")
    system = load(file, {})
    _check_little_endian(isinstance(system, dict) and system.get("little_endian") is True)
    storages: dict[str, Storage] = {}
    described = load(file, storages)
    keys = load(file, {})
    check(isinstance(keys, list) and all(isinstance(key, str) for key in keys), "no list of storages")
    raw: dict[str, memoryview] = {}
    for key in keys:
        (size,) = struct.unpack("<q", file.read(8))
        check(size == storages[key].size, "a storage of another size")
        start = file.tell()
        raw[key] = memoryview(data)[start : start + size * storages[key].dtype.itemsize]
        file.seek(start + len(raw[key]))
    return _Arrays(raw.__getitem__, limit).filled(described)


class _Arrays:
    """Fills what a pickle described with arrays of the numbers in `raw`, at most `limit` bytes in all."""

    def __init__(self, raw: Callable[[str], bytes | memoryview], limit: int) -> None:
        self._raw = raw
        self._left = limit
        # By identity, so that containers that hold one another twice and twice again stay as small as they are.
        self._done: dict[int, Any] = {}

    def filled(self, value: Any, depth: int = 0) -> Any:
        if value is None or isinstance(value, str | bytes | int | float):
            return value
        if depth > _DEEPEST:
            raise Refused(f"nests more than {_DEEPEST} containers, or one in itself; refused")
        if id(value) not in self._done:
            self._done[id(value)] = self._fresh(value, depth + 1)
        return self._done[id(value)]

    def _fresh(self, value: Any, depth: int) -> Any:
        if isinstance(value, Tensor):
            self._left -= value.nbytes
            if self._left < 0:
                raise Refused("describes tensors many times as large as the file; refused")
            raw = self._raw(value.storage.key)
            check(len(raw) == value.storage.size * value.storage.dtype.itemsize, "a storage of another size")
            return value.array(raw)
        if isinstance(value, dict):
            return {key: self.filled(item, depth) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.filled(item, depth) for item in value)
        raise Refused("holds a storage or a class by itself: save the model's state_dict()")


def _check_little_endian(holds: bool) -> None:
    if not holds:
        raise Refused("was written on a big-endian machine: save it again on another")
