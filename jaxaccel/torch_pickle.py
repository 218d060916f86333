"""The pickle inside a PyTorch checkpoint, read as data: nothing that it asks for is run.

A pickle is a program for a small stack machine. `pickletools` takes it apart, and its operations are carried out
here on plain data, those alone that `torch.save` writes: a function that a file names is never looked up, let
alone called. (`pickle.Unpickler` with a strict `find_class` runs no foreign code either; but a tuple inside itself
often enough, as the key of a dictionary, makes it hang or crash.)
"""

import math
import pickletools
from collections.abc import Callable, Iterable
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

_LARGEST = 1 << 48  # any size, stride or offset beyond it is no tensor's
_DTYPES = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Operations that take all above the last mark, and those that take so many values from the stack.
_MARKED = {"TUPLE", "APPENDS", "SETITEMS"}
_COUNTED = {
    "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "STACK_GLOBAL": 2, "BINPERSID": 1,
    "REDUCE": 2, "BUILD": 1, "STOP": 1,
}  # fmt: skip


class Refused(Exception):
    """The file is whole, but asks for what is not done here; the message goes on after the file's name."""


class _Name(NamedTuple):
    """A global of the table, by name alone."""

    text: str


class Storage(NamedTuple):
    """`size` numbers of `dtype` that the file holds under `key`."""

    key: str
    dtype: np.dtype
    size: int


class Tensor:
    """A view of a storage, in elements; an object of its own where the file has one."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any) -> None:
        check(isinstance(storage, Storage), "a tensor without a storage")
        check(isinstance(shape, tuple) and isinstance(strides, tuple), "a tensor without a shape")
        check(len(shape) == len(strides) <= 32, "a tensor of a wrong rank")
        check(all(map(_is_size, (offset, *shape, *strides))), "a tensor of a wrong size")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        check(0 in shape or last < storage.size, "a tensor that reaches beyond its storage")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.nbytes = math.prod(shape) * storage.dtype.itemsize

    def array(self, raw: bytes | memoryview) -> np.ndarray:
        """A copy of its numbers, of which `raw` is the storage, in C order."""
        dtype = self.storage.dtype
        if 0 in self.shape:
            return np.empty(self.shape, dtype)
        # A byte other than 0 and 1 would be an undefined bool.
        flat = np.frombuffer(raw, np.uint8) != 0 if dtype == np.bool_ else np.frombuffer(raw, dtype)
        strides = [step * dtype.itemsize for step in self.strides]
        return np.array(np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides), order="C")


def load(file: IO[bytes], storages: dict[str, Storage]) -> Any:
    """The pickle at the position of `file`, which is left behind it; `storages` gets those that it names.

    Raises:
      Refused: it asks for what `torch.save` does not write.
      ValueError, LookupError, TypeError: it makes no sense.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # what lies below each mark
    memo: dict[Any, Any] = {}
    for operation, argument, _ in pickletools.genops(file):
        name, items = operation.name, []
        if name in _MARKED:
            items, stack = stack, outer.pop()
        elif name in _COUNTED:
            items = [stack.pop() for _ in range(_COUNTED[name])][::-1]
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            outer.append(stack)
            stack = []
        elif "TUPLE" in name:
            stack.append(tuple(items))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name.startswith("APPEND"):
            check(isinstance(stack[-1], list), "an item of no list")
            stack[-1].extend(items)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name.startswith("SETITEM"):
            check(isinstance(stack[-1], dict), "an item of no dictionary")
            stack[-1].update(_pairs(zip(items[::2], items[1::2], strict=True)))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_named(str(argument).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            check(all(isinstance(item, str) for item in items), "a global without a name")
            stack.append(_named(".".join(items)))
        elif name == "BINPERSID":
            stack.append(_stored(items[0], storages))
        elif name == "REDUCE":
            stack.append(_called(*items))
        elif name == "BUILD":  # attributes of a dictionary, such as a state dict's _metadata: left out
            check(isinstance(stack[-1], dict), "attributes of something else than a dictionary")
        elif name == "STOP":
            return items[0]
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"asks for the pickle operation {name}, which torch.save never writes; refused")
    raise ValueError("a pickle without end")


def _named(text: str) -> _Name:
    if text in _DTYPES or text in _FUNCTIONS:
        return _Name(text)
    shown = text if text.isascii() and text.isprintable() else ascii(text)
    raise Refused(f"asks to run {shown[:80]} when read; refused: save only the model's state_dict()")


def _called(function: Any, arguments: Any) -> Any:
    check(isinstance(function, _Name) and function.text in _FUNCTIONS, "a call of what is no function")
    check(isinstance(arguments, tuple), "a call without arguments")
    return _FUNCTIONS[function.text](*arguments)


def _stored(described: Any, storages: dict[str, Storage]) -> Storage:
    """The storage of a persistent id: ("storage", type, key, device, size[, None])."""
    if isinstance(described, tuple) and described[:1] == ("module",):
        raise Refused("holds a module with its program: save the model's state_dict()")
    check(isinstance(described, tuple) and len(described) in (5, 6), "a wrong storage")
    check(described[0] == "storage", "a wrong storage")
    if described[5:] not in ((), (None,)):
        raise Refused("shares storages as PyTorch before 0.4 did: save it again with a newer one")
    kind, key, size = described[1], described[2], described[4]
    check(isinstance(kind, _Name) and kind.text in _DTYPES, "a storage of a wrong type")
    check(isinstance(key, str) and _is_size(size), "a storage of a wrong size")
    storage = Storage(key, _DTYPES[kind.text], size)
    check(storages.setdefault(key, storage) == storage, "a storage of two types")
    return storage


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """`torch._utils._rebuild_tensor` and ``_v2``; `rest` is requires_grad, hooks and perhaps bits of the view."""
    if any(rest[2:]):
        raise Refused("holds a negated or conjugated view: save it after .resolve_neg()")
    return Tensor(storage, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> Tensor:
    check(isinstance(data, Tensor), "a parameter without a tensor")
    return data


def _size(shape: Any) -> tuple[Any, ...]:
    check(isinstance(shape, tuple), "a wrong torch.Size")
    return shape


def _ordered(*arguments: Any) -> dict[Any, Any]:
    """`collections.OrderedDict`: of nothing, or of the list of pairs that Python 2 wrote."""
    if not arguments:
        return {}
    (items,) = arguments
    check(isinstance(items, list), "a dictionary of something else than pairs")
    pairs = _pairs(items)
    items.clear()  # so that a file cannot use one long list again and again
    return pairs


def _pairs(items: Iterable[Any]) -> dict[Any, Any]:
    pairs = {}
    for key, value in items:
        # Only what is quick to hash; tuples are not.
        check(key is None or isinstance(key, str | bytes | int | float), "a key that is no name or number")
        pairs[key] = value
    return pairs


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def check(holds: bool, otherwise: str) -> None:
    """Raises a ValueError that says `otherwise` unless it `holds`: the file makes no sense."""
    if not holds:
        raise ValueError(otherwise)
