"""The same numbers, lowered well: convolutions, products, poolings and loops in forms that the backend runs fast.

XLA takes a program as it is written, and on a CPU equal mathematics written in another way runs up to 20 times as
fast. The forms are in `jaxaccel.transforms.lowering`; results are equal up to the order of summation.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxaccel.core.interpret import Product, Transformation, hoist, transform
from jaxaccel.core.options import checked
from jaxaccel.core.platform import get_platform
from jaxaccel.core.sites import BILINEAR, Backend, Site
from jaxaccel.transforms.lowering.base import KERNEL, XLA, Choice, Params
from jaxaccel.transforms.lowering.choose import LOWERINGS, choose, choose_by_timing, compute
from jaxaccel.transforms.lowering.fused import find_float_chains
from jaxaccel.transforms.lowering.matmul import should_hoist


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

    Apply it last, to a whole training step: gradients are convolutions, poolings and loops of their own. On GPUs it
    changes loops alone, and on TPUs nothing: XLA's forms are the best there. `explain` says what was chosen and why.

    Args:
      f: any JAX function.
      tune: time all forms of each site on this device, once, rather than go by the rules. Verdicts are kept on
        disk (`jaxaccel.transforms.lowering.autotune`).
      argnums: which arguments hold the parameters, by whose paths `explain` names the sites.
      backend: ``cpu``, ``gpu`` or ``tpu``, to compile for another one than that of the mesh in context (`jax.set_mesh`)
        or, where there is none, the default one.
    """

    @functools.wraps(f)
    def retargeted(*args: Any, **kwargs: Any) -> Any:
        product = Retargeted(get_platform(backend), tune)
        # A GPU starts a kernel for each product at each step; only TPUs are left alone.
        inner = f if product.platform == "tpu" else _move_out_of_loops(f, argnums, product.platform)
        rules = dict.fromkeys(LOWERINGS, functools.partial(_lower, product))
        fuse = functools.partial(find_float_chains, wanted=product.takes_kernel)
        t = Transformation(
            "retarget", rules, argnums=argnums, fuse=fuse if product.platform == "cpu" else None
        )
        return transform(inner, t)(*args, **kwargs)

    return retargeted


def _lower(product: "Retargeted", site: Site, *operands: Any) -> Any:
    """Computes an operation in the form that was chosen, and record it."""
    form, reason = product.choose(site.primitive, site.params, site.inputs)
    if site.narrowed:
        form, reason = XLA, f"is {site.narrowed} already"
    site.record("-" if form == XLA else form, str(site.inputs[0].dtype), reason)
    if form == XLA:
        return NotImplemented
    if site.primitive in BILINEAR:
        return site.product(product, *operands)
    return compute(site.primitive, site.params, operands, form)


def _move_out_of_loops(
    f: Callable[..., Any], argnums: int | Sequence[int], platform: str
) -> Callable[..., Any]:
    """Computes products of each scan outside of it, where that pays."""

    def inside(f: Callable[..., Any]) -> Callable[..., Any]:
        return transform(f, Transformation("retarget loops", {"scan": loop}, argnums=argnums))

    def loop(site: Site, *operands: Any) -> Any:
        found = hoist(site.params, operands, functools.partial(should_hoist, platform), inside)
        if found is None:
            return NotImplemented
        counts = {"before the loop": found.before, "after it": found.after, "merged in it": found.merged}
        said = ", ".join(f"{n} {where}" for where, n in counts.items() if n)
        site.record(f"products: {said}", str(site.output.dtype), "small products at each step")
        return found.outs

    return inside(f)


@dataclasses.dataclass(frozen=True)
class Retargeted:
    """A product in the form that suits its shapes, which are known last: after `jax.vmap`, and of its gradients."""

    platform: str
    tune: bool
    name: str = "retargeted"

    def choose(self, primitive: str, params: Params, shapes: Sequence[Any]) -> Choice:
        """Chooses a form."""
        if self.platform != "cpu":
            return XLA, f"XLA's own form is the best on a {self.platform}"
        if self.tune:
            return choose_by_timing(primitive, params, shapes, self.platform)
        return choose(primitive, params, shapes)

    def takes_kernel(self, product: Product) -> bool:
        """Tells whether oneDNN is to compute a product."""
        return self.choose(product.primitive, product.params, product.inputs)[0] == KERNEL

    def __call__(self, primitive: Any, params: Params, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """Computes ``primitive.bind(lhs, rhs, **params)``, up to rounding."""
        form, _ = self.choose(primitive.name, params, (lhs, rhs))
        return compute(primitive.name, params, (lhs, rhs), form)

    def transposed(self, cotangent: int) -> "Retargeted":
        """Returns the same: a gradient chooses a form of its own."""
        return self
