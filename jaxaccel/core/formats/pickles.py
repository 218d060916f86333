"""Pickles read as data: nothing that one asks for is run.

A pickle is a program for a small stack machine. `pickletools` takes it apart, and its operations are carried out
here on plain data. What a file names is never looked up, let alone called: a caller gives the few functions that may
be, written for hostile arguments, and all else becomes an `Opaque`. (`pickle.Unpickler` with a strict `find_class` runs
no foreign code either; but deep nesting, or a tuple inside itself often enough as the key of a dictionary, makes it
hang or crash.)

The work is bounded by the length of the pickle: each operation takes constant time but for the items that it takes
from the stack and the bytes that it reads, and there are at most `MAX_OPERATIONS`.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, NamedTuple, Protocol, runtime_checkable

from jaxaccel.core.formats.bounds import Refused, check, shorten

MAX_OPERATIONS = 1 << 22
"""Of a pickle: half a minute of work and a gigabyte of Python objects at the worst; 1,000 tensors need 100,000."""
_MAX_KEY_LENGTH, _MAX_NAME_LENGTH = (
    4096,
    200,
)  # characters of a key; of a global's module and of what it names
_MAX_INTEGER_BITS = 4096  # bits
_MAX_INTEGER_KEY = 1 << 31
"""Larger integers can be chosen so that all fall into one place of a dictionary, which makes it slow."""


class Name(NamedTuple):
    """A global that a pickle names, by name alone: ``collections.OrderedDict``."""

    text: str


class Opaque:
    """What a pickle makes of a class or function that is not known here: its name is kept, nothing of it is run."""

    __slots__ = ("entries", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: dict[Any, Any] | None = None
        """Where it was filled like a dictionary: those items."""

    def __repr__(self) -> str:
        return f"Opaque({shorten(self.name)!r})"


@runtime_checkable
class Stateful(Protocol):
    """Something whose state a pickle sets after it was made."""

    def set_state(self, state: Any) -> None:
        """Takes what a pickle holds of it."""


Functions = Mapping[str, Callable[..., Any]]
"""What may be called, by module and name; each takes what arguments a hostile file gives, and runs in constant time."""


def load(file: IO[bytes], functions: Functions, stored: Callable[[Any], Any] | None = None) -> Any:
    """The value of the pickle at the position of `file`, which is left behind it.

    Dictionaries, lists, tuples, text, bytes, numbers, True, False and None come as they are; of dictionaries, only
    items whose keys are text, None or numbers of ordinary size. Byte strings of Python 2 come as text in Latin-1; sets
    come as lists.

    Args:
      file: binary, seekable.
      functions: what may be called.
      stored: gives what a persistent id stands for.

    Raises:
      Refused: it asks for what no such file does.
      ValueError, LookupError, TypeError: it makes no sense.
    """
    machine = _Machine(functions, stored)
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if count >= MAX_OPERATIONS:
            raise Refused(f"has a pickle of more than {MAX_OPERATIONS:,} operations; refused")
        if operation.name == "STOP":
            return machine.pop()
        step = _STEPS.get(operation.name)
        if step is None:
            raise Refused(
                f"asks for the pickle operation {operation.name}, which such files never need; refused"
            )
        step(machine, argument)
    raise ValueError("a pickle without end")


class _Machine:
    """The stack, and what the operations do to it."""

    def __init__(self, functions: Functions, stored: Callable[[Any], Any] | None) -> None:
        self.functions, self.stored = functions, stored
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # what lies below each mark
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_number(self, value: int) -> None:
        check(value.bit_length() <= _MAX_INTEGER_BITS, "an integer of thousands of bits")
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_pair(self) -> tuple[Any, Any]:
        second = self.stack.pop()
        return self.stack.pop(), second

    def pop_last(self, count: int) -> tuple[Any, ...]:
        items = tuple(self.stack[-count:])
        check(len(items) == count, "an empty stack")
        del self.stack[-count:]
        return items

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def extend(self, items: Iterable[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Opaque):
            check(isinstance(target, list), "an item of no list")
            target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target.entries = {} if target.entries is None else target.entries
            target = target.entries
        check(isinstance(target, dict), "an item of no dictionary")
        target.update(make_dict(zip(items[::2], items[1::2], strict=True)))

    def remember(self, place: int | None) -> None:
        place = len(self.memo) if place is None else place
        check(place <= MAX_OPERATIONS, "a memo out of proportion")
        self.memo[place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def name(self, module: Any, attribute: Any) -> None:
        names = (module, attribute)
        check(all(isinstance(name, str) for name in names), "a global without a name")
        check(all(len(name) <= _MAX_NAME_LENGTH for name in names), "a global with too long a name")
        self.stack.append(Name(f"{module}.{attribute}"))

    def call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, Opaque):
            function = Name(function.name)
        check(isinstance(function, Name), "a call of what is no function")
        check(isinstance(arguments, tuple), "a call without arguments")
        known = self.functions.get(function.text)
        if known is not None:
            # Arguments may come from the memo: taking them apart again and again must not be long work.
            check(len(arguments) <= 16, "a call with too many arguments")
            self.stack.append(known(*arguments))
        else:
            self.stack.append(Opaque(function.text))

    def call_with_names(self, _: Any) -> None:
        named, arguments = self.pop(), self.pop()
        check(isinstance(named, dict), "a call without arguments")
        function = self.pop()
        check(
            not named or not isinstance(function, Name) or function.text not in self.functions, "a wrong call"
        )
        self.call(function, arguments)

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Stateful):
            target.set_state(state)
        else:  # a state dict's _metadata, or what an object of an unknown class holds: left out
            check(isinstance(target, dict | Opaque), "attributes of something else than an object")

    def persistent(self, _: Any) -> None:
        if self.stored is None:
            raise Refused("refers to what lies outside of it; refused")
        self.stack.append(self.stored(self.pop()))


def make_dict(items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dictionary of those `items` whose keys are quick to hash and to compare."""
    return {key: value for key, value in items if _is_key(key)}


def _is_key(key: Any) -> bool:
    if isinstance(key, str | bytes):
        return len(key) <= _MAX_KEY_LENGTH
    if type(key) is int:
        return abs(key) < _MAX_INTEGER_KEY
    return key is None or isinstance(key, bool | float)


def _pushing(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(value)


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(machine.pop_last(count))


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4"), _Machine.push_number),
    **dict.fromkeys(
        ("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING",
         "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine.push,
    ),
    "BYTEARRAY8": lambda machine, argument: machine.push(bytes(argument)),
    "NONE": _pushing(None), "NEWTRUE": _pushing(True), "NEWFALSE": _pushing(False), "EMPTY_TUPLE": _pushing(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": _tuple_of(1), "TUPLE2": _tuple_of(2), "TUPLE3": _tuple_of(3),
    "FROZENSET": lambda machine, _: machine.push(machine.pop_mark()),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.pop_mark())),
    "SETITEM": lambda machine, _: machine.update(list(machine.pop_pair())),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop_pair()),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, _: machine.call(*machine.pop_pair())),
    "NEWOBJ_EX": _Machine.call_with_names,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}  # fmt: skip
