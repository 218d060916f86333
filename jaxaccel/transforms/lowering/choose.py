"""Which form each convolution, product and pooling takes: by rules that measurements back, or by timing.

`python -m benchmarks lowerings` measures the forms, `python -m benchmarks retargeted` what they give whole steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.transforms import lowering
from jaxaccel.transforms.lowering import autotune
from jaxaccel.transforms.lowering.base import XLA, Choice, Lowering, Params

LOWERINGS: Mapping[str, Lowering] = {
    record.name: record for record in (getattr(lowering, name) for name in dir(lowering))
}
"""All there are, by primitive."""


def list_forms(primitive: str, params: Params, shapes: Sequence[Any]) -> list[str]:
    """Lists the forms that compute it, `XLA` first. `shapes` are the operands', with dtypes."""
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in shapes):
        return [XLA]
    return LOWERINGS[primitive].list_forms(params, shapes)


def compute(primitive: str, params: Params, operands: Sequence[jax.Array], form: str) -> jax.Array:
    """Computes the primitive on `operands` in one of its forms."""
    record = LOWERINGS[primitive]
    if form == XLA:
        return record.primitive.bind(*operands, **params)
    return record.compute(params, operands, form)


def choose(primitive: str, params: Params, shapes: Sequence[Any]) -> Choice:
    """Chooses a form by the rules, which go by float32 alone: that is what was measured."""
    found = list_forms(primitive, params, shapes)
    if len(found) == 1:
        return XLA, "has no other form"
    if any(x.dtype != jnp.float32 for x in shapes):
        return XLA, f"was not measured in {shapes[0].dtype}"
    form, reason = LOWERINGS[primitive].rule(params, shapes)
    better = form != XLA and form in found
    return (form, reason) if better else (XLA, "no other form is known to be faster")


def choose_by_timing(primitive: str, params: Params, shapes: Sequence[Any], platform: str) -> Choice:
    """Chooses the form that runs fastest on the first device of a platform: all are timed, once."""
    found = list_forms(primitive, params, shapes)
    if len(found) == 1:
        return XLA, "has no other form"
    kept = {key: str(value) for key, value in sorted(params.items()) if key not in ("out_sharding",)}
    what = f"{primitive} {kept} {[f'{x.dtype}{list(x.shape)}' for x in shapes]} {found}"
    contenders = {
        form: lambda *operands, form=form: compute(primitive, params, operands, form) for form in found
    }
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes]
    device = jax.local_devices(backend=platform)[0]
    return autotune.find_fastest(what, contenders, shapes, device), "timed on this device"
