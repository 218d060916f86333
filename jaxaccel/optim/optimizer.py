"""From a recipe's few numbers to an Optax gradient transformation."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxaccel.calls import nearest
from jaxaccel.errors import UserError
from jaxaccel.trees import matches, path_text


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An Optax optimizer by its Optax name, and what stands around it."""

    name: str = "adamw"
    """Any optimizer of Optax: sgd, adamw, lamb, lion, muon (under contrib), ..."""
    learning_rate: float = 1e-3
    """At the peak of the schedule."""
    args: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Further arguments of that optimizer: `--optimizer.args momentum 0.9 nesterov 1`."""
    weight_decay: float = 0.0
    """Decoupled where the optimizer has it (adamw, lion, ...), else added to the gradient (L2, as for sgd)."""
    decay_where: str = "**/{kernel,embedding}"
    """Which parameters decay, by path."""
    clip_norm: float = 0.0
    """Clip the global norm of the gradient to this; 0 does not clip."""
    accumulate: int = 1
    """Split each batch into this many parts and average their gradients: less memory; BatchNorm sees the parts."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights that evaluation then uses; 0 keeps none."""

    def build(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The gradient transformation, driven by `schedule`.

        Raises:
          UserError: Optax has no such optimizer, or it does not take one of `args`.
        """
        factory = _factory(self.name)
        parameters = inspect.signature(factory).parameters
        for name in self.args:
            if name not in parameters:
                raise UserError(f"optimizer {self.name} takes no {name!r}{nearest(name, list(parameters))}")
        options = {name: _as_declared(parameters[name], value) for name, value in self.args.items()}
        steps = []
        if is_on(self.clip_norm):
            norm = jnp.where(
                jnp.asarray(self.clip_norm) > 0, self.clip_norm, jnp.inf
            )  # replicas may not clip
            steps.append(optax.clip_by_global_norm(norm))
        if "weight_decay" in parameters:
            options["weight_decay"] = self.weight_decay
            # Optax names the mask differently from optimizer to optimizer.
            for mask in ("mask", "weight_decay_mask"):
                if mask in parameters:
                    options[mask] = self._decays
        elif is_on(self.weight_decay):
            steps.append(optax.add_decayed_weights(self.weight_decay, mask=self._decays))
        try:
            return optax.chain(*steps, factory(learning_rate=schedule, **options))
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer {self.name}({', '.join(options)}): {error}") from error

    def _decays(self, params: Any) -> Any:
        found = jax.tree_util.tree_map_with_path(
            lambda path, _: matches(self.decay_where, path_text(path)), params
        )
        if is_on(self.weight_decay) and not any(jax.tree.leaves(found)):
            raise UserError(f"optimizer.decay_where {self.decay_where!r} matches no parameter")
        return found


def is_on(value: float | jax.Array) -> bool:
    """Whether a number, above 0, switches something on; one that differs between replicas (an array) does."""
    return isinstance(value, jax.Array) or value > 0


def _factory(name: str) -> Any:
    for module in (optax, optax.contrib):
        factory = getattr(module, name, None)
        if callable(factory) and "learning_rate" in inspect.signature(factory).parameters:
            return factory
    raise UserError(f"Optax has no optimizer {name!r}{nearest(name, _names())}")


def _names() -> list[str]:
    # The aliases are what Optax calls its ready-made optimizers.
    return [n for n in dir(optax.contrib) + dir(optax) if n.islower() and not n.startswith("_")]


def _as_declared(parameter: inspect.Parameter, value: float) -> Any:
    """A command line gives numbers only: 1 is True where the default is a flag, 5 an int where it is one."""
    kind = type(parameter.default)
    return kind(value) if kind in (bool, int) and value == int(value) else value
