"""The pickle inside a PyTorch checkpoint: storages, tensors, and what else `torch.save` writes, as data.

The functions here are those of ``torch._utils`` that a checkpoint asks for, and make descriptions of tensors; the
numbers lie beside the pickle. See `torch/_utils.py` and `torch/_tensor.py` (`_reduce_ex_internal`) of PyTorch.
"""

import math
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxaccel.core.formats import pickles
from jaxaccel.core.formats.bounds import Refused, check
from jaxaccel.core.formats.pickle_values import MAX_AXES, NumpyArray, callable_functions, is_size
from jaxaccel.core.formats.pickles import Name, Opaque

_DTYPES = {
    "torch.float32": "<f4", "torch.float16": "<f2", "torch.bfloat16": ml_dtypes.bfloat16, "torch.float64": "<f8",
    "torch.int64": "<i8", "torch.int32": "<i4", "torch.int16": "<i2", "torch.int8": "i1",
    "torch.uint64": "<u8", "torch.uint32": "<u4", "torch.uint16": "<u2", "torch.uint8": "u1", "torch.bool": "?",
    "torch.complex64": "<c8", "torch.complex128": "<c16",
    "torch.float8_e4m3fn": ml_dtypes.float8_e4m3fn, "torch.float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "torch.float8_e5m2": ml_dtypes.float8_e5m2, "torch.float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "torch.float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip
_STORAGES = {
    "torch.FloatStorage": "float32", "torch.HalfStorage": "float16", "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64", "torch.LongStorage": "int64", "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16", "torch.CharStorage": "int8", "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool", "torch.ComplexFloatStorage": "complex64", "torch.ComplexDoubleStorage": "complex128",
    "torch.storage.UntypedStorage": "uint8",
}  # fmt: skip
_UNREAD = {
    "torch._utils._rebuild_sparse_tensor": "sparse", "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_qtensor": "quantized", "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta",
    "torch._utils._rebuild_wrapper_subclass": "distributed or otherwise wrapped",
}  # fmt: skip
_PREFIX = "a tensor of a kind that is not read: "


class Storage(NamedTuple):
    """`size` numbers of `dtype` that the file holds under `key`."""

    key: str
    dtype: np.dtype
    size: int

    @property
    def nbytes(self) -> int:
        """How many bytes the file must hold of it."""
        return self.size * self.dtype.itemsize


class Tensor:
    """A view of a storage, in elements; an object of its own where the file has one."""

    def __init__(
        self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype | None = None
    ) -> None:
        check(isinstance(storage, Storage), "a tensor without a storage")
        check(isinstance(shape, tuple) and isinstance(strides, tuple), "a tensor without a shape")
        check(len(shape) == len(strides) <= MAX_AXES, "a tensor of a wrong rank")
        check(all(map(is_size, (offset, *shape, *strides))), "a tensor of a wrong size")
        self.dtype = storage.dtype if dtype is None else dtype
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        held = storage.nbytes // self.dtype.itemsize
        check(0 in shape or last < held, "a tensor that reaches beyond its storage")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        self.conjugated = self.negated = False

    def array(self, raw: bytes | memoryview) -> np.ndarray:
        """A copy of its numbers, of which `raw` is the storage, in C order."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        # A byte other than 0 and 1 would be an undefined bool.
        buffer = np.frombuffer(raw, np.uint8) != 0 if self.dtype == np.bool_ else raw
        size = self.dtype.itemsize
        strides = tuple(step * size for step in self.strides)
        array = np.array(np.ndarray(self.shape, self.dtype, buffer, self.offset * size, strides), order="C")
        if self.conjugated:
            np.conjugate(array, out=array)
        if self.negated:
            np.negative(array, out=array)
        return array


def load(file: IO[bytes], storages: dict[str, Storage], size: int) -> Any:
    """The pickle at the position of `file`, of at most `size` bytes; `storages` gets those that it names.

    Raises:
      Refused: it asks for what `torch.save` does not write.
      ValueError, LookupError, TypeError: it makes no sense.
    """
    known = {**callable_functions(size), **_FUNCTIONS}
    return pickles.load(file, known, lambda described: _stored(described, storages))


def unread_kind(value: Any) -> str | None:
    """What kind of tensor stands behind an `Opaque`, such as sparse; None where it is no tensor."""
    is_tensor = isinstance(value, Opaque) and value.name.startswith(_PREFIX)
    return value.name.removeprefix(_PREFIX) if is_tensor else None


def _stored(described: Any, storages: dict[str, Storage]) -> Storage | Opaque:
    """The storage of a persistent id: ("storage", type, key, device, size[, None])."""
    check(isinstance(described, tuple) and 4 <= len(described) <= 6, "a wrong storage")
    what, kind, key, *rest = described
    if what == "module":
        raise Refused("holds a module with its program: save the model's state_dict()")
    check(what == "storage" and len(rest) >= 2, "a wrong storage")
    _, size, *view = rest
    if view and view[0] is not None:
        raise Refused("shares storages as PyTorch before 0.4 did: save it again with a newer one")
    check(isinstance(kind, Name), "a storage of a wrong type")
    check(isinstance(key, str) and len(key) <= 100 and is_size(size), "a storage of a wrong size")
    if kind.text not in _STORAGES:  # of a quantized tensor, say
        check(kind.text.startswith("torch.") and kind.text.endswith("Storage"), "a storage of a wrong type")
        return Opaque(kind.text)
    storage = Storage(key, np.dtype(_DTYPES[f"torch.{_STORAGES[kind.text]}"]), size)
    check(storages.setdefault(key, storage) == storage, "a storage of two types")
    return storage


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor | Opaque:
    """`_rebuild_tensor` and ``_v2``; `rest` is requires_grad, hooks and perhaps bits of the view."""
    return _with_bits(Tensor(storage, offset, shape, strides), rest[2:3])


def _tensor_of_dtype(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, dtype: Any, *bits: Any
) -> Tensor | Opaque:
    """``_rebuild_tensor_v3``, of a storage of bytes: newer dtypes have no storage type of their own."""
    check(isinstance(dtype, Name), "a tensor without a dtype")
    if dtype.text not in _DTYPES:
        return Opaque(_PREFIX + dtype.text)
    return _with_bits(Tensor(storage, offset, shape, strides, np.dtype(_DTYPES[dtype.text])), bits[:1])


def _with_bits(tensor: Tensor, bits: tuple[Any, ...]) -> Tensor:
    """Whether the numbers are to be conjugated or negated when read."""
    if bits and isinstance(bits[0], dict):
        tensor.conjugated, tensor.negated = (bits[0].get(name) is True for name in ("conj", "neg"))
    return tensor


def _unchanged(data: Any, *_: Any) -> Any:
    """A parameter, or what lay on a device: its tensor."""
    check(isinstance(data, Tensor | NumpyArray | Opaque), "a parameter without a tensor")
    return data


def _of_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """``_rebuild_from_type_v2``: a tensor with attributes of its own, a buffer, a subclass; the tensor alone."""
    check(isinstance(function, Name) and isinstance(arguments, tuple), "a tensor of a wrong type")
    check(len(arguments) <= 16, "a call with too many arguments")
    made = _TENSORS.get(function.text)
    return Opaque(function.text) if made is None else made(*arguments)


def _size(shape: Any = (), *_: Any) -> tuple[Any, ...]:
    check(isinstance(shape, tuple), "a wrong torch.Size")
    return shape


def _device(kind: Any, index: Any = None, *_: Any) -> str:
    check(isinstance(kind, str) and len(kind) <= 64 and (index is None or is_size(index)), "a wrong device")
    return kind if index is None else f"{kind}:{index}"


def _unread(kind: str) -> Callable[..., Opaque]:
    return lambda *_: Opaque(_PREFIX + kind)


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _unchanged,
    "torch._utils._rebuild_parameter_with_state": _unchanged,
    "torch._utils._rebuild_device_tensor_from_numpy": _unchanged,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _unchanged,
    **{name: _unread(kind) for name, kind in _UNREAD.items()},
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": _size,
    "torch.device": _device,
}
