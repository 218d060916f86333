"""Optimizers that compute in float32, and their updates, whatever the dtype of the parameters."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import optax

from jaxaccel.core import numerics

PyTree = Any


def in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx` on gradients and parameters in float32, in which its state and its updates are then as well.

    A moment in bfloat16 has 8 bits: what a step adds to an average with a decay of 0.999 is lost. A norm in float16
    overflows where gradients are above 256. Parameters of float32 or float64 are left as they are. Nothing narrow is
    left to promote, so that `tx` may promote numbers as Optax does, also under ``jax.numpy_dtype_promotion("strict")``.

    Args:
      tx: any optimizer. Of what the trainer gives it besides, ``grad`` is float32 too, and ``value_fn``, ``obj_fn`` and
        ``grad_fn`` are called with parameters in their own dtype.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> Any:
        with _promotion():
            return tx.init(_wide(params))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        def narrow(f: Callable[..., Any]) -> Callable[..., Any]:
            def called(at: PyTree, *args: Any, **kwargs: Any) -> Any:
                return _wide(f(jax.tree.map(lambda x, p: x.astype(p.dtype), at, params), *args, **kwargs))

            return called

        if params is not None:
            extra |= {
                name: narrow(extra[name]) for name in ("value_fn", "obj_fn", "grad_fn") if name in extra
            }
        if "grad" in extra:
            extra["grad"] = _wide(extra["grad"])
        with _promotion():
            return tx.update(_wide(updates), state, None if params is None else _wide(params), **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """``params + updates``, summed in float32 at least and then rounded to the dtypes of `params`, once."""
    return jax.tree.map(
        lambda p, u: (numerics.widen(p) + u.astype(numerics.widen(p).dtype)).astype(p.dtype), params, updates
    )


def _promotion() -> AbstractContextManager[None]:
    return jax.numpy_dtype_promotion("standard")


def _wide(tree: PyTree) -> PyTree:
    return jax.tree.map(numerics.widen, tree)
