"""The weights that a run starts from: those of another run, or of a file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxaccel.checkpoint import Checkpoints, flat
from jaxaccel.errors import UserError
from jaxaccel.modules import Model, abstract
from jaxaccel.pretrained import load_pretrained

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights of a state, by path."""

    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fresh: tuple[str, ...] = ()
    """What is not among them and starts anew: a head for other classes."""

    def said(self, origin: Path) -> str:
        """For people."""
        new = f"; new: {', '.join(path.removeprefix('params/') for path in self.fresh)}" if self.fresh else ""
        return f"starting from the weights of {origin}{new}"


def start(origin: Path, model: Model, inputs: tuple[PyTree, ...], metric: str) -> Start:
    """The weights in `origin` that fit `model`.

    Args:
      origin: directory of a run, whose best checkpoint counts, or a file that `load_pretrained` reads.
      model: what is to be trained.
      inputs: one batch's inputs to it, as `jax.ShapeDtypeStruct`s.
      metric: by which a run's best checkpoint was kept.

    Raises:
      UserError: there is no such run or file, or it is of another model. Only one layer, the last of its kind, may have
        another number of outputs.
    """
    own = _named(*abstract(model))
    if origin.is_dir():
        if (origin / "best" / "checkpoints").is_dir():
            raise UserError(
                f"{origin} holds several replicas: start from the best of them, {origin / 'best'}"
            )
        found: Mapping[str, Any] = Checkpoints.weights_of(origin, metric)
    elif origin.is_file():
        loaded = load_pretrained(model, origin, inputs=inputs, new_head=True)
        named = _named(loaded.params, loaded.state).items()
        found = {name: x for name, x in named if name.partition("/")[2] not in loaded.fresh}
    else:
        raise UserError(f"{origin} is no directory of a run and no file with weights")
    fresh = [name for name, x in own.items() if name not in found or found[name].shape != x.shape]
    _check_head(origin, own, found, fresh)
    return Start({name: np.asarray(found[name]) for name in own if name not in fresh}, tuple(fresh))


def _named(params: PyTree, state: PyTree) -> dict[str, Any]:
    return flat({"params": params, "model_state": state})


def _check_head(origin: Path, own: Mapping[str, Any], found: Mapping[str, Any], fresh: list[str]) -> None:
    """Checks that what does not fit is one layer with another number of outputs."""
    layers = {name.rpartition("/")[0] for name in fresh}
    for name in fresh:
        there = found.get(name)
        only_outputs = there is None or there.shape[:-1] == own[name].shape[:-1]
        if len(layers) > 1 or not only_outputs or (there is None and origin.is_dir()):
            has = "is missing" if there is None else f"has shape {there.shape}, not {own[name].shape}"
            raise UserError(f"{origin} is of another model: {name} {has}")
