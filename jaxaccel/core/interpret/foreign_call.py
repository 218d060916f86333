"""Calls of foreign functions that several devices share: each computes its own part.

XLA knows nothing of what a foreign function computes, and would gather all its operands on each device. JAX's
`custom_partitioning` says how to share it, but must know the devices while a program is lowered; JAX looks for that in
the program before it lowers it, and does not see what the lowering of `bilinear` adds. `tell_devices` is what it sees.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax._src import dispatch
from jax.extend import core as jcore
from jax.interpreters import ad, batching, mlir

tell_devices_p = jcore.Primitive("tell_devices")
foreign_call_p = jcore.Primitive("foreign_call")


def tell_devices(x: jax.Array) -> jax.Array:
    """Returns `x`, and has JAX say for which devices the program around it is lowered, if there are several."""
    mesh = jax.sharding.get_abstract_mesh()
    # What is traced for one device that need not be there has none that JAX could name.
    if jax.device_count() == 1 or (not mesh.empty and mesh.size == 1):
        return x
    return tell_devices_p.bind(x)


tell_devices_p.def_impl(lambda x: x)
tell_devices_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(tell_devices_p, lambda ctx, x: [x])
ad.deflinear2(tell_devices_p, lambda ct, x: [ct])
batching.defvectorized(tell_devices_p)
dispatch.prim_requires_devices_during_lowering.add(tell_devices_p)


def match_varying(*operands: jax.Array) -> list[jax.Array]:
    """Lets all operands differ between the devices of `jax.shard_map` between which one of them does."""
    varying = [jax.typeof(x).mat.varying for x in operands]
    every = frozenset().union(*varying)
    return [
        jax.lax.pcast(x, tuple(sorted(every - own)), to="varying") if every - own else x
        for x, own in zip(operands, varying, strict=True)
    ]


def foreign_call(call: Callable[..., Any], share: Callable[..., Any], out: Any, *operands: Any) -> Any:
    """Computes ``call(*operands)``, or ``share(*operands)`` where a program is for several devices.

    Args:
      call: calls the foreign function.
      share: the same within `custom_partitioning`.
      out: shape and dtype of the result.
      operands: arrays. Nothing is known of derivatives and of batching.
    """
    return foreign_call_p.bind(*operands, call=call, share=share, shape=tuple(out.shape), dtype=out.dtype)


def _abstract(*operands: Any, call: Any, share: Any, shape: Any, dtype: Any) -> Any:
    # As the first operand is, to `jax.shard_map` too.
    return operands[0].update(shape=shape, dtype=dtype, weak_type=False)


def _lower(ctx: Any, *operands: Any, call: Any, share: Any, shape: Any, dtype: Any) -> Any:
    context = ctx.module_context.axis_context
    # Inside of shard_map there is no device assignment, and each device has its part already.
    is_shared = getattr(context, "device_assignment", None) is not None and context.num_devices > 1
    return mlir.lower_fun(share if is_shared else call, multiple_results=False)(ctx, *operands)


foreign_call_p.def_impl(lambda *operands, call, share, shape, dtype: jax.jit(call)(*operands))
foreign_call_p.def_abstract_eval(_abstract)
mlir.register_lowering(foreign_call_p, _lower)
