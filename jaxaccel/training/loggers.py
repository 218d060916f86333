"""Where else a run tells its metrics, besides metrics.jsonl: TensorBoard, and any logger of the user's own."""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from jaxaccel.errors import UserError, option


class Logger(Protocol):
    """What takes the metrics of a run, such as a run of Weights & Biases or MLflow.

    It is called in the first process alone. Where it raises, the run says so once and goes on without it.
    """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes finite numbers such as ``train/loss`` or ``eval/accuracy`` after `step` steps, in order of steps.

        A resumed run tells the steps behind its checkpoint again.
        """
        ...

    def close(self) -> None:
        """Ends the log; nothing is told after it."""
        ...


Maker = Callable[[Any, Path], Logger]
"""What makes a logger of the recipe and the directory of a run that begins."""


class TensorBoard:
    """Event files for TensorBoard, in the folder ``tensorboard`` of a run."""

    def __init__(self, directory: Path, done: int = 0) -> None:
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(directory / "tensorboard"), flush_secs=30, purge_step=done)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one scalar a metric."""
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files."""
        self._events.close()


class Loggers:
    """Several loggers as one that never raises: `say` is told once of one that fails, which is then left out."""

    def __init__(self, loggers: Sequence[Logger], say: Callable[[str], None]) -> None:
        self._loggers, self._say = list(loggers), say

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells all of the metrics that are finite."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for logger in tuple(self._loggers):
            # A copy each: what one does to it is no concern of the others.
            self._try(logger, lambda logger=logger: logger.log(step, dict(finite)))

    def close(self) -> None:
        """Closes all."""
        for logger in tuple(self._loggers):
            self._try(logger, logger.close)
        self._loggers.clear()

    def _try(self, logger: Logger, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._loggers.remove(logger)
            reason = " ".join(str(error).split()) or "no message"
            self._say(
                f"the logger {type(logger).__name__} failed ({type(error).__name__}: {reason[:200]}) and is left out "
                "from here on; metrics.jsonl has all"
            )


def find_maker(name: str) -> Maker:
    """The maker of a logger with that dotted name, ``my_module.my_logger``; its module is imported.

    Raises:
      UserError: there is none.
    """
    module, _, function = name.rpartition(".")
    try:
        if not module:
            raise ImportError("name it as MODULE.FUNCTION")
        maker: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{option('logger', name)} cannot be imported: {error}") from error
    if not callable(maker):
        raise UserError(f"{option('logger', name)} must be a function of (recipe, directory), not {maker!r}")
    return cast(Maker, maker)


def make_loggers(wanted: Sequence[Logger | Maker], recipe: Any, directory: Path) -> list[Logger]:
    """The loggers of a run that begins: those in `wanted`, and what its makers return.

    Raises:
      UserError: one cannot be made, or has not both methods of a logger.
    """
    return [_made(one, recipe, directory) for one in wanted]


def _made(one: Logger | Maker, recipe: Any, directory: Path) -> Logger:
    made: Any = one
    if isinstance(one, type) or not hasattr(one, "log"):
        name = getattr(one, "__name__", type(one).__name__)
        if not callable(one):
            raise UserError(f"{name} is no logger: it needs log(step, metrics) and close()")
        try:
            made = one(recipe, directory)
        except Exception as error:
            reason = " ".join(str(error).split()) or "no message"
            raise UserError(
                f"the logger {name} cannot be made ({type(error).__name__}: {reason[:200]}): mend it, or train "
                "without it"
            ) from error
    if not all(callable(getattr(made, method, None)) for method in ("log", "close")):
        raise UserError(f"{type(made).__name__} is no logger: it needs log(step, metrics) and close()")
    return made
