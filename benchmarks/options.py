"""The options of benchmarks: those that repeat are declared here once, and each command line is read here."""

import argparse
import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

Options = argparse.Namespace
RESULTS = Path(__file__).parent / "results"


class Mistake(Exception):
    """What the user can mend: one line, printed without a traceback; the exit code is 2."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a command line."""

    name: str
    help: str
    default: Any = None
    quick: Any = None
    """The default under ``--quick``, where that is another one."""
    type: Callable[[str], Any] = str
    choices: Sequence[str] = ()
    several: bool = False
    metavar: str | None = None
    rest: bool = False
    """Whether it takes all words that follow."""
    flag: bool = False
    """Whether it takes none."""


def choose_names(name: str, known: Iterable[str], help: str, default: Sequence[str] = ()) -> Option:
    """Declares an option that picks some of the known names, by default all of them."""
    choices = tuple(known)
    return Option(name, help, default or choices, choices=choices, several=True, metavar="NAME")


def choose_batches(*sizes: int, quick: Sequence[int] = (4,)) -> Option:
    """Declares the option for batch sizes."""
    return Option("batch", "Batch sizes.", sizes, quick, type=read_count, several=True, metavar="N")


def choose_words(help: str) -> Option:
    """Declares the option that picks sites by words in their names."""
    return Option("sites", help, ("",), several=True, metavar="WORD")


def time_by(rounds: int, seconds: float, budget: float = math.inf) -> tuple[Option, ...]:
    """Declares how long contenders are timed."""
    return (
        Option("rounds", "Rounds in which each contender takes a turn.", rounds, 1, read_count, metavar="N"),
        Option("seconds", "Seconds that a turn takes about.", seconds, 0.0, read_number),
        Option(
            "budget",
            "Seconds after which a cell's rounds end, once there are three.",
            budget,
            None,
            read_number,
        ),
    )


QUICK = Option("quick", "Only show that all works: the figures mean nothing.", flag=True)
COMMON = (
    Option("output", "Directory of the record (under --quick: none is written unless this is given).",
           RESULTS, type=Path, metavar="DIR"),
)  # fmt: skip


def read_count(text: str) -> int:
    """Reads a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def read_number(text: str) -> float:
    """Reads a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def read_choice(choices: Sequence[str], text: str) -> str:
    """Reads one of `choices`; the error names the nearest."""
    if text in choices:
        return text
    near = difflib.get_close_matches(text, choices, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}"
    raise argparse.ArgumentTypeError(f"{text!r} is unknown: {hint}")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which knows what a misspelled option was to be."""

    def error(self, message: str) -> NoReturn:
        """Raises the mistake instead of printing the usage."""
        raise Mistake(message.removeprefix("argument "))

    def read(self, words: Sequence[str]) -> Options:
        """Reads the words of a command line."""
        found, unknown = self.parse_known_args(words)
        if unknown:
            near = difflib.get_close_matches(unknown[0], list(self._option_string_actions), n=1)
            hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help lists the options"
            raise Mistake(f"there is no option {unknown[0]}: {hint}")
        return found


def read_options(
    name: str, teaches: str, options: Sequence[Option], words: Sequence[str], quick: bool = True
) -> Options:
    """Reads the options of a command. What is not given has its default, or its quick one under ``--quick``.

    Args:
      name: what stands behind ``python -m benchmarks``.
      teaches: what ``--help`` says first.
      options: the options that it has.
      words: the command line behind the name.
      quick: whether it has ``--quick``.
    """
    parser = Parser(
        prog=f"python -m benchmarks {name}", description=teaches, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    if quick:
        options = [QUICK, *options]
    for option in options:
        add_option(parser, option)
    found = parser.read(words)
    for option in options:
        if getattr(found, option.name) is None:
            is_quick = quick and found.quick and option.quick is not None
            setattr(found, option.name, option.quick if is_quick else option.default)
    return found


def add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """Adds one option to a parser."""
    if option.flag:
        parser.add_argument(f"--{option.name}", action="store_true", help=option.help)
        return
    read = functools.partial(read_choice, option.choices) if option.choices else option.type
    many = argparse.REMAINDER if option.rest else "+" if option.several else None
    about = f"{option.help}{describe_choices(option)}{describe_default(option)}"
    parser.add_argument(
        f"--{option.name.replace('_', '-')}", type=read, nargs=many, metavar=option.metavar, help=about
    )


def describe_choices(option: Option) -> str:
    """Describes what an option may be, for its help."""
    return f" Of: {', '.join(option.choices)}." if option.choices else ""


def describe_default(option: Option) -> str:
    """Describes the default of an option, for its help."""
    value = option.default
    if value is None or value in ((), "", ("",), math.inf):
        return ""
    if value == option.choices:
        return " (default: all)"
    return f" (default: {' '.join(map(str, value)) if option.several else value})"
