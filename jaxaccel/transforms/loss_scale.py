"""Loss scaling: gradients that float16 can hold, as an ``init``/``update`` pair."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxaccel.core import numerics
from jaxaccel.core.options import Options
from jaxaccel.errors import UserError

PyTree = Any


class LossScaleState(NamedTuple):
    """The scale, and how long it has been good."""

    scale: jax.Array
    """() float32: what the loss is multiplied by."""
    good_steps: jax.Array
    """() int32: finite steps since the scale last changed."""


@dataclasses.dataclass(frozen=True)
class LossScale(Options):
    """A factor on the loss that keeps small gradients from vanishing in float16.

    Dynamic by default: halved when a gradient overflows, and doubled after `period` steps without an overflow
    (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2; the growth rule is NVIDIA's). A power of two changes no
    bit of a gradient that fits. `period` 0 makes it static.

        scaling = LossScale()
        state = scaling.init()
        grads = jax.grad(lambda p: scaling.scale(loss(p), state))(params)
        grads, finite = scaling.unscale(grads, state)
        params = jax.tree.map(lambda new, old: jnp.where(finite, new, old), step(params, grads), params)
        state = scaling.update(state, finite)
    """

    initial: float = 2.0**15
    period: int = 2000
    factor: float = 2.0
    minimum: float = 1.0
    maximum: float = 2.0**24

    def check_values(self) -> None:
        """Checks the bounds."""
        if not 0 < self.minimum <= self.initial <= self.maximum or self.factor <= 1 or self.period < 0:
            raise UserError(
                "a LossScale needs 0 < minimum <= initial <= maximum, factor > 1 and period >= 0, got"
                f" minimum={self.minimum}, initial={self.initial}, maximum={self.maximum}, factor={self.factor},"
                f" period={self.period}"
            )

    @classmethod
    def static(cls, scale: float) -> "LossScale":
        """A scale that stays as it is."""
        return cls(initial=scale, period=0, minimum=min(scale, 1.0), maximum=max(scale, 2.0**24))

    def init(self) -> LossScaleState:
        """The state before the first step."""
        return LossScaleState(jnp.float32(self.initial), jnp.int32(0))

    def scale(self, loss: jax.Array, state: LossScaleState) -> jax.Array:
        """The loss to differentiate, in float32 at least: what it is scaled to may be more than float16 holds."""
        loss = numerics.widen(loss)
        return loss * state.scale.astype(loss.dtype)

    def unscale(self, grads: PyTree, state: LossScaleState) -> tuple[PyTree, jax.Array]:
        """The gradients of the loss itself, and whether all of them are finite: if not, leave the step out.

        They keep their dtypes, and are divided in float32 at least.
        """

        def unscaled(g: jax.Array) -> jax.Array:
            wide = numerics.widen(g)
            return (wide / state.scale.astype(wide.dtype)).astype(g.dtype)

        grads = jax.tree.map(unscaled, grads)
        finite = jnp.array(True)
        for leaf in jax.tree.leaves(grads):
            finite &= jnp.all(jnp.isfinite(leaf))
        return grads, finite

    def update(self, state: LossScaleState, finite: jax.Array) -> LossScaleState:
        """The state after a step whose gradients were all finite, or were not."""
        if self.period == 0:
            return state
        grows = state.good_steps + 1 >= self.period
        grown = jnp.where(grows, jnp.minimum(state.scale * self.factor, self.maximum), state.scale)
        shrunk = jnp.maximum(state.scale / self.factor, self.minimum)
        good_steps = jnp.where(finite & ~grows, state.good_steps + 1, 0)
        return LossScaleState(jnp.where(finite, grown, shrunk), good_steps)
