"""What a run keeps of its data set, so that its model can be made and used where the data is not."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxaccel.core.files import write_text
from jaxaccel.data import Source
from jaxaccel.data.examples import read_elements
from jaxaccel.errors import UserError
from jaxaccel.tasks.bring_arrays import BOOKKEEPING, Example
from jaxaccel.tasks.task import Task

FILE = "facts.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a task read off its data set, and what one of its examples looks like."""

    values: Mapping[str, Any]
    """What model factories may ask for: ``classes``, ``class_names``, ``channels``, ``image_size``, ..."""
    example: Example
    """Shape and dtype of each array of one example."""
    fitted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the task that followed from the training split, and are not in the recipe."""
    missing: tuple[str, ...] = ()
    """Values that a file cannot hold, known only where the data is; those of `fitted` as ``task.NAME``."""

    @classmethod
    def of(
        cls, values: Mapping[str, Any], example: Mapping[str, Any], fitted: Mapping[str, Any] | None = None
    ) -> "Facts":
        """The facts of a data set whose first example is `example`, as the task's `element` gives it."""
        arrays = {name: np.asarray(x) for name, x in example.items() if name not in BOOKKEEPING}
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
        return cls(dict(values), shapes, dict(fitted or {}))

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of their numbers, where there are classes."""
        return self.values.get("class_names")

    def fit(self, task: Any) -> Any:
        """`task` with what it learned of the training split.

        Raises:
          UserError: it learned other things than its model was made for, such as another number of tokens.
        """
        found = dataclasses.replace(task, **self.fitted)
        for name, value in found.learned_facts().items():
            if (kept := self.values.get(name, value)) != value:
                raise UserError(
                    f"what the run keeps of its data does not fit its model, which is made for {name} {kept!r:.60}, "
                    f"and the tokens or symbols give {value!r:.60}: copy the run's {FILE} anew"
                )
        return found

    def accept(self, source: Source, task: Task, whose: str) -> Source:
        """`source`, whose classes and shapes must be these.

        Args:
          source: the split of another data set.
          task: reads it.
          whose: these facts are, for the message: "runs/digits was trained on".

        Raises:
          UserError: they are others.
        """
        known = dict(source.features.items())
        if missing := [name for name in task.columns if name not in known]:
            raise UserError(
                f"{source.name} has other parts than {whose}: it has {', '.join(known)}, and no "
                f"{missing[0]!r}"
            )
        names = task.facts(source.features).get("class_names")
        if self.class_names and names and tuple(names) != tuple(self.class_names):
            odd = sorted({*names} ^ {*self.class_names})
            raise UserError(
                f"{source.name} has other classes than {whose}: "
                + (f"{odd[0]} is only in one of them" if odd else "their order differs")
            )
        here = Facts.of({}, read_elements(source, task.example, range(1))[0]).example
        for name, expected in self.example.items():
            if name in here and here[name].shape != expected.shape:
                raise UserError(
                    f"the model takes {name} of shape {expected.shape}, {source.name} has {here[name].shape}"
                )
        return source

    def as_json(self) -> dict[str, Any]:
        """As files hold them; `from_json` reads it."""
        plain, fitted = (
            {name: _plain(value) for name, value in values.items()} for values in (self.values, self.fitted)
        )
        named = plain | {f"task.{name}": value for name, value in fitted.items()}
        return {
            "format": FORMAT,
            "facts": {name: value for name, value in plain.items() if value is not _NOT_PLAIN},
            "fitted": {name: value for name, value in fitted.items() if value is not _NOT_PLAIN},
            "missing": sorted(name for name, value in named.items() if value is _NOT_PLAIN),
            "example": {n: {"shape": list(x.shape), "dtype": str(x.dtype)} for n, x in self.example.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str | Path) -> "Facts":
        """The facts that `as_json` wrote.

        Args:
          content: plain values.
          where: they lie, for the message.

        Raises:
          UserError: they are of a newer format.
          ValueError, KeyError, TypeError, AttributeError: they are damaged.
        """
        if content["format"] > FORMAT:
            raise UserError(f"{where} is of format {content['format']}, this jaxaccel reads up to {FORMAT}")
        example = {
            name: jax.ShapeDtypeStruct(tuple(map(int, x["shape"])), np.dtype(str(x["dtype"])))
            for name, x in content["example"].items()
        }
        values, fitted = (
            {name: _restored(value) for name, value in content[part].items()} for part in ("facts", "fitted")
        )
        return cls(values, example, fitted, tuple(content["missing"]))

    def write(self, directory: Path) -> None:
        """Writes ``facts.json`` into the directory of a run."""
        write_text(directory / FILE, json.dumps(self.as_json(), indent=2) + "\n")


def read_facts(directory: Path) -> Facts | None:
    """The facts that a run kept; None where it is of an older jaxaccel, which kept none.

    Raises:
      UserError: the file is damaged.
    """
    file = directory / FILE
    if not file.exists():
        return None
    try:
        return Facts.from_json(json.loads(file.read_text(encoding="utf-8")), file)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} cannot be read or is damaged: delete it, and the data set is asked instead"
        ) from error


def find_fitted_options(before: Task, after: Task) -> dict[str, Any]:
    """The options in which `after` differs from `before`."""
    names = [field.name for field in dataclasses.fields(after)] if dataclasses.is_dataclass(after) else []
    return {name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    """`value` as JSON holds it, from which `_restored` makes it again, but that lists become tuples."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _NOT_PLAIN
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, (np.ndarray, jax.Array)):
        inner = _plain(np.asarray(value).tolist())
        return _NOT_PLAIN if inner is _NOT_PLAIN else {"array": inner, "dtype": str(value.dtype)}
    if isinstance(value, (list, tuple)):
        items = [_plain(inner) for inner in value]
        return _NOT_PLAIN if any(x is _NOT_PLAIN for x in items) else items
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        entries = {name: _plain(inner) for name, inner in value.items()}
        return _NOT_PLAIN if any(x is _NOT_PLAIN for x in entries.values()) else entries
    return _NOT_PLAIN


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_restored(inner) for inner in value)
    if isinstance(value, dict):
        if value.keys() == {"array", "dtype"}:
            return np.array(value["array"], np.dtype(value["dtype"]))
        return {name: _restored(inner) for name, inner in value.items()}
    return value
