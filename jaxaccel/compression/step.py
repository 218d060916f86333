"""What a step of a pipeline is, and checks of its options."""

import abc
from typing import Annotated, Any, ClassVar

from annotated_types import Interval

from jaxaccel.compression.stage import Setting, Stage
from jaxaccel.core.options import Options
from jaxaccel.errors import UserError, option

Part = Annotated[float, Interval(gt=0, le=1)]
"""What shall be left, as a share."""


class Step(Options, abc.ABC):
    """Base of all steps: frozen dataclasses of options, which are checked when one is made."""

    same_function: ClassVar[bool] = True
    """Whether the model computes afterward as before, with other variables: those are all there is to restore."""

    @property
    def prunes(self) -> tuple[str, ...]:
        """Which weights it sets to zero, as patterns of paths."""
        return ()

    @abc.abstractmethod
    def apply(self, stage: Stage, setting: Setting, name: str) -> Stage:
        """The stage after this step, which is called `name` in its pipeline.

        Raises:
          UserError: an option has no meaning for this model.
        """


def pick_one(**values: Any) -> dict[str, Any]:
    """The one that is given; empty where none is.

    Raises:
      UserError: there are several.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if len(given) > 1:
        several = " and ".join(f"{name}={value:g}" for name, value in given.items())
        raise UserError(f"give one of {', '.join(map(option, values))}, not {several}: None takes one back")
    return given
