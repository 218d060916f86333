"""What pickles may make of Python's own classes and of NumPy's: `pickles.load` calls these and nothing else.

Each takes whatever a hostile file gives it. A value that the file can use again, from its memo, is not copied without
being spent from a budget.
"""

import math
import re
from typing import Any

import numpy as np

from jaxaccel.core.formats.bounds import Budget, check
from jaxaccel.core.formats.pickles import Functions, Opaque, make_dict

MAX_SIZE = 1 << 48  # no size, stride or offset is larger
MAX_AXES = 32


class NumpyDtype:
    """A dtype of numbers; its byte order comes as state."""

    def __init__(self, dtype: np.dtype) -> None:
        self.value = dtype

    def set_state(self, state: Any) -> None:
        """Takes (version, byte order, ...) as `numpy.dtype` pickles it."""
        check(isinstance(state, tuple) and 2 <= len(state) <= 16, "a wrong dtype")
        check(isinstance(state[1], str) and state[1] in ("<", ">", "|", "="), "a wrong byte order")
        self.value = self.value.newbyteorder("<" if state[1] in "|=" else state[1])


class NumpyArray:
    """An array whose numbers come as state: a view of the file's bytes, or None where they are no numbers."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        """Takes ([version,] shape, dtype, whether in Fortran's order, bytes) as `numpy.ndarray` pickles it."""
        check(isinstance(state, tuple) and len(state) in (4, 5), "a wrong array")
        shape, dtype, fortran, raw = state[-4:]
        if isinstance(dtype, NumpyDtype):
            order = "F" if fortran is True else "C"
            self.value = _array(_raw(raw, self._budget), dtype.value, shape, order)


def callable_functions(size: int) -> Functions:
    """What may be called, for a pickle of `size` bytes."""
    budget = Budget(4 * size + (1 << 16), "spells out the same bytes again and again; refused")

    def encode(text: Any, encoding: Any = "utf-8", *_: Any) -> bytes:
        """``_codecs.encode``: how bytes look in protocol 2."""
        check(isinstance(text, str) and encoding in ("latin1", "latin-1", "utf-8", "ascii"), "wrong bytes")
        budget.spend(len(text))
        return text.encode(encoding)

    def scalar(dtype: Any, raw: Any = None, *_: Any) -> Any:
        if not isinstance(dtype, NumpyDtype):
            return Opaque("numpy.generic")
        return _array(_raw(raw, budget), dtype.value, (), "C")[()]

    def from_buffer(raw: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> NumpyArray:
        array = NumpyArray(budget)
        check(isinstance(order, str) and order in ("C", "F", "K", "A"), "a wrong order of axes")
        array.set_state((shape, dtype, order == "F", raw))
        return array

    def bytes_of(value: Any = b"", encoding: Any = "latin1", *_: Any) -> bytes:
        return value if isinstance(value, bytes) else encode(value, encoding)

    found: dict[str, Any] = {"_codecs.encode": encode, "numpy.dtype": _dtype}
    for module in ("builtins", "__builtin__"):
        found |= {f"{module}.set": _listed, f"{module}.frozenset": _listed, f"{module}.complex": _complex}
        found |= {f"{module}.bytearray": bytes_of, f"{module}.bytes": bytes_of}
    for module in ("numpy.core", "numpy._core"):
        found[f"{module}.multiarray._reconstruct"] = lambda *_: NumpyArray(budget)
        found[f"{module}.multiarray.scalar"] = scalar
        found[f"{module}.numeric._frombuffer"] = from_buffer
    found |= {"collections.OrderedDict": _dictionary, "collections.Counter": _dictionary}
    found["collections.defaultdict"] = lambda *arguments: _dictionary(*arguments[1:])
    return found


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    """Of nothing, of a dictionary, or of the list of pairs that Python 2 wrote."""
    if not arguments:
        return {}
    items = arguments[0]
    if isinstance(items, dict):
        return items
    check(isinstance(items, list), "a dictionary of something else than pairs")
    made = make_dict(items)
    items.clear()  # so that a file cannot use one long list again and again
    return made


def _listed(items: Any = None, *_: Any) -> Any:
    check(items is None or isinstance(items, list | tuple), "a set of something else than a list")
    return [] if items is None else items


def _complex(real: Any = 0.0, imaginary: Any = 0.0, *_: Any) -> complex:
    check(all(type(part) in (int, float) for part in (real, imaginary)), "a wrong complex number")
    return complex(real, imaginary)


def _dtype(described: Any, *_: Any) -> NumpyDtype | Opaque:
    check(isinstance(described, str), "a wrong dtype")
    numbers = re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)", described)
    return NumpyDtype(np.dtype(described)) if numbers else Opaque("numpy.dtype")


def _raw(value: Any, budget: Budget) -> bytes:
    if isinstance(value, str):  # Python 2
        budget.spend(len(value))
        return value.encode("latin1")
    check(isinstance(value, bytes), "an array without numbers")
    return value


def _array(raw: bytes, dtype: np.dtype, shape: Any, order: Any) -> np.ndarray:
    check(isinstance(shape, tuple) and len(shape) <= MAX_AXES, "an array without a shape")
    check(all(map(is_size, shape)), "an array of a wrong size")
    check(math.prod(shape) * dtype.itemsize == len(raw), "an array of another size than its bytes")
    # A byte other than 0 and 1 would be an undefined bool.
    flat = np.frombuffer(raw, np.uint8) != 0 if dtype == np.bool_ else np.frombuffer(raw, dtype)
    return flat.reshape(shape, order=order)


def is_size(value: Any) -> bool:
    """Whether `value` can be a size, a stride or an offset, in elements."""
    return type(value) is int and 0 <= value < MAX_SIZE
