"""The same numbers, lowered well: convolutions, products, poolings and loops in forms that the backend runs fast.

XLA takes a program as it is written, and on a CPU equal mathematics written in another way runs up to 20 times as
fast. The forms are in `jaxaccel.transforms.lowering`; results are equal up to the order of summation.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxaccel.core.interpret import Transformation, hoist, transform
from jaxaccel.core.options import checked
from jaxaccel.core.sites import BILINEAR, Backend, Site, on
from jaxaccel.transforms.lowering import menu


@checked
def retarget(
    f: Callable[..., Any],
    *,
    tune: bool = False,
    argnums: int | Sequence[int] = 0,
    backend: Backend | None = None,
) -> Callable[..., Any]:
    """`f` with the same results, each convolution, product and pooling in the form that the backend runs fast.

    Matrix products of a `jax.lax.scan` that do not depend on what it carries are taken out of it, as are those that it
    only sums; those of one operand with several matrices become one.

    Apply it last, to a whole training step: gradients are convolutions, poolings and loops of their own. On GPUs and
    TPUs, where XLA's forms are the best, it changes nothing. `explain` says what was chosen and why.

    Args:
      f: any JAX function.
      tune: time all forms of each site on this device, once, rather than go by the menu's rules. Verdicts are kept on
        disk (`jaxaccel.transforms.lowering.tuning`).
      argnums: which arguments hold the parameters, by whose paths `explain` names the sites.
      backend: ``cpu``, ``gpu`` or ``tpu``, to compile for another backend than the default one.
    """
    compute = Retargeted(on(backend), tune)

    def rule(site: Site, *operands: Any) -> Any:
        form, reason = compute.choose(site.primitive, site.params, site.inputs)
        if site.narrowed:
            form, reason = menu.XLA, f"is {site.narrowed} already"
        site.record("-" if form == menu.XLA else form, str(site.inputs[0].dtype), reason)
        if form == menu.XLA:
            return NotImplemented
        if site.primitive in BILINEAR:
            return site.product(compute, *operands)
        return menu.compute(site.primitive, site.params, operands, form)

    def loop(site: Site, *operands: Any) -> Any:
        found = hoist(site.params, operands, menu.leaves_a_loop, inside)
        if found is None:
            return NotImplemented
        counts = {"before the loop": found.before, "after it": found.after, "merged in it": found.merged}
        said = ", ".join(f"{n} {where}" for where, n in counts.items() if n)
        site.record(f"products: {said}", str(site.output.dtype), "small products at each step")
        return found.outs

    def inside(f: Callable[..., Any]) -> Callable[..., Any]:
        return transform(f, Transformation("retarget loops", {"scan": loop}, argnums=argnums))

    if compute.backend == "cpu":
        f = inside(f)
    return transform(f, Transformation("retarget", dict.fromkeys(menu.PRIMITIVES, rule), argnums=argnums))


@dataclasses.dataclass(frozen=True)
class Retargeted:
    """A product in the form that suits its shapes, which are known last: after `jax.vmap`, and of its gradients."""

    backend: str
    tune: bool
    name: str = "retargeted"

    def choose(self, primitive: str, params: Mapping[str, Any], shapes: Sequence[Any]) -> tuple[str, str]:
        """(form, reason)."""
        if self.backend != "cpu":
            return menu.XLA, f"XLA's own form is the best on a {self.backend}"
        pick = menu.tuned if self.tune else menu.known
        return pick(primitive, params, shapes)

    def __call__(
        self, primitive: Any, params: Mapping[str, Any], lhs: jax.Array, rhs: jax.Array
    ) -> jax.Array:
        """``primitive.bind(lhs, rhs, **params)``, up to rounding."""
        form, _ = self.choose(primitive.name, params, (lhs, rhs))
        if form == menu.XLA:
            return primitive.bind(lhs, rhs, **params)
        return menu.compute(primitive.name, params, (lhs, rhs), form)

    def transposed(self, cotangent: int) -> "Retargeted":
        """The same: a gradient chooses a form of its own."""
        return self
