"""From the words of a command line to a recipe, and from mistakes to one line and exit code 2."""

import contextlib
import dataclasses
import errno
import importlib
import io
import os
import re
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_type_hints

import jax
import tyro

from jaxaccel.core.call_text import suggest_nearest
from jaxaccel.core.files import disk_error
from jaxaccel.core.options import Options
from jaxaccel.distributed import peers
from jaxaccel.errors import UserError
from jaxaccel.training import recipe_file
from jaxaccel.training.function_names import UnreadableCall, allow_own_names
from jaxaccel.training.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class RunOptions(Options):
    """What to do with the run, beside the recipe."""

    run: Path | None = None
    """Write the run to this directory [default: runs/NAME]."""
    resume: bool = False
    """Go on from the newest checkpoint in that directory."""
    overwrite: bool = False
    """Replace what is in that directory."""
    init_from: Path | None = None
    """Start from the weights of another run (its directory), of a file (safetensors, npz, PyTorch), or of a model that
    an installed package brings (minilm_l6), everything else anew; also a head for other classes."""
    trust: bool = False
    """Execute code that a run brings along, or a teacher's, also where somebody else wrote it."""
    logger: tuple[str, ...] = ()
    """Also send the metrics to the loggers that these functions of (recipe, directory) make, such as Weights
    & Biases, given by dotted name: my_module.my_logger."""
    traceback: bool = False
    """Show Python's traceback when something goes wrong."""


@dataclasses.dataclass(frozen=True)
class _Command:
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    options: Annotated[RunOptions, tyro.conf.arg(name="")]


def make_callable(module: str, home: str, name: str) -> None:
    """Lets a command's module be called as the public function of its name.

    ``ja.train`` is a function, and ``python -m jaxaccel.train`` a module; once that is imported, Python puts it where
    the function was.

    Args:
      module: of the command.
      home: the module that has the function.
      name: of the function.
    """

    class CallableModule(types.ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(home), name)(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule


def read(
    program: str, description: str, argv: Sequence[str]
) -> tuple[Recipe, RunOptions, Path | None] | None:
    """The recipe and the options that `argv` asks for, and the recipe file of the user's own that it names.

    None when the command line asked for ``--list`` and has its answer.

    Raises:
      UserError: a misspelled recipe or flag, or a value that cannot be read.
      SystemExit: ``--help`` was asked for, and printed.
    """
    words = list(argv)
    if "--list" in words:
        for name, line in recipe_file.list_recipes().items():
            print(f"{name:18} {line}")
        return None
    named = words.pop(0) if words and not words[0].startswith("-") else "digits"
    loaded = recipe_file.load(named, trust="--trust" in words)
    default = _Command(loaded.recipe, RunOptions())
    with allow_own_names(loaded.definitions):
        command = parse_options(program, f"{description}\n\nRecipe {named}: {loaded.about}", default, words)
    return command.recipe, command.options, loaded.source


def run(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> NoReturn:
    """Calls `main` and exits with what it returns; a mistake becomes one line and exit code 2."""
    if "--traceback" not in argv:
        # What fails in a thread of Orbax reaches this one as well, and is told here, once.
        threading.excepthook = lambda _: None
    try:
        sys.exit(main(argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        os._exit(0)
    except UserError as error:
        fail(error.as_flags(), "--traceback" in argv)
    except Exception as error:
        found = disk_error(error, Path("the run directory")) or error
        if isinstance(found, OSError) and found.errno is not None:
            said = _SAID.get(found.errno, os.strerror(found.errno))
            fail(f"{found.filename or 'the run directory'}: {said}", "--traceback" in argv)
        if jax.process_count() == 1:
            raise
        peers.wait_for_the_cause()  # a collective operation fails in many ways where another process has gone
        _leave_the_others()


def _leave_the_others() -> NoReturn:
    """Ends at once with a traceback: JAX would wait at its exit for processes that have to be told first."""
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)


def fail(message: str, trace: bool = False) -> NoReturn:
    """Prints ``error: MESSAGE`` and ends the process at once with exit code 2."""
    if trace:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if jax.distributed.is_initialized():
        time.sleep(0.5)  # the others may be about to say the same, and end with the first process
    # Threads that Orbax or grain still run must not keep the process, nor add their tracebacks to the line.
    os._exit(2)


_SAID = {
    errno.ENOSPC: "the disk is full: make room, then go on with --resume",
    errno.EDQUOT: "the disk quota is used up: make room, then go on with --resume",
    errno.EFBIG: "no file may become so large here: raise the limit (ulimit -f), then go on with --resume",
    errno.EIO: "the disk does not answer as it should: see what is wrong with it, then go on with --resume",
    errno.ESTALE: "its network file system has lost it: mount that again, then go on with --resume",
    errno.EACCES: "no permission to write there: choose another place with --run DIR",
    errno.EPERM: "no permission to write there: choose another place with --run DIR",
    errno.EROFS: "that file system is read-only: choose another place with --run DIR",
    errno.ENOTDIR: "a file stands where a directory is needed: choose another place with --run DIR",
}


_NO_TYPE = (
    r"Error parsing (--\S+): no type matching (.+?) could be instantiated from \[(.*?)\]\. Got errors:.*"
)
"""What tyro says of a value that is of none of several types."""
_TITLE = r"(Value error|Invalid choice|Parsing error|Missing argument|Unrecognized options)[ -]*"


def parse_options(program: str, description: str, default: Any, words: Sequence[str]) -> Any:
    """`default`, a dataclass, with what `words` change in it: ``--field.inner value``.

    A dataclass without an instance, some of whose fields have no default, is made of `words` alone.

    Raises:
      UserError: a misspelled flag, or a value that cannot be read.
      SystemExit: ``--help`` was asked for, and printed.
    """
    config = (tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff)
    said = io.StringIO()
    helps = {"-h", "--help"} & set(words)
    try:
        with contextlib.nullcontext() if helps else _captured(said):
            given = {} if isinstance(default, type) else {"default": default}
            command, unknown = tyro.cli(
                default if isinstance(default, type) else type(default), prog=program, description=description,
                args=list(words), config=config, return_unknown_args=True, **given,
            )  # fmt: skip
    except UserError as error:  # of fields whose flags have no prefix, which tyro lets through
        raise error.under("") from error
    except UnreadableCall as error:
        raise error.args[0] from None
    except SystemExit as error:
        if not error.code:
            raise
        raise _refusal(error, default) or UserError(_one_line(said.getvalue())) from None
    if unknown:
        word = unknown[0].split("=")[0]
        known = [*_flags(command, ""), "list", "help"]
        hint = suggest_nearest(word.lstrip("-").replace("_", "-"), known).replace("mean ", "mean --")
        raise UserError(f"unknown argument {word}{hint} (--help shows all)")
    return command


def _refusal(exit: SystemExit, command: Any) -> UserError | None:
    """What an option itself said of its value, before tyro wrapped it and gave up; None where it was tyro alone."""
    error, prefix = exit.__context__, ""
    while error is not None and not isinstance(error, UserError):
        # Where the options that refused it stand in the command: training.optimizer.
        prefix = error.arg if isinstance(getattr(error, "arg", None), str) else prefix  # type: ignore[attr-defined]
        error = error.__context__
    if error is None:
        return None
    first, _, rest = prefix.partition(".")
    return error.under((rest if first in _unnamed(command) else prefix).replace("-", "_"))


def _unnamed(command: Any) -> set[str]:
    """Fields of a command whose own fields are flags without a prefix."""
    kind = command if isinstance(command, type) else type(command)
    hints = get_type_hints(kind, include_extras=True)
    return {
        name
        for name, hint in hints.items()
        if any(getattr(mark, "name", None) == "" for mark in getattr(hint, "__metadata__", ()))
    }


@contextlib.contextmanager
def _captured(into: io.StringIO) -> Any:
    with contextlib.redirect_stderr(into), contextlib.redirect_stdout(into):
        yield


def _one_line(text: str) -> str:
    """Tyro's box of complaint without its frame."""
    lines = (re.sub(r"[─│╭╮╰╯]+", " ", line).strip() for line in text.splitlines())
    kept = " ".join(line for line in lines if line and not re.fullmatch(_TITLE, line))
    kept = re.sub(r"-{5,}", " ", kept).split("Argument helptext")[0].split("For full helptext")[0]
    plain = re.sub(_NO_TYPE, r"Error parsing \1: must be \2, got \3", " ".join(kept.split()))
    return f"{plain} (--help shows all)"


def _flags(value: Any, prefix: str) -> list[str]:
    unnamed, found = _unnamed(value), []
    for field in dataclasses.fields(value):
        name, inner = f"{prefix}{field.name}".replace("_", "-"), getattr(value, field.name)
        nested = dataclasses.is_dataclass(inner) and not callable(inner)
        found += _flags(inner, prefix if field.name in unnamed else f"{name}.") if nested else [name]
    return found
