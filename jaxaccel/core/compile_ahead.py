"""Compiles programs for devices that need not be attached; what comes back can be read, not run."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxaccel.errors import UserError


def compile_on(
    mesh: Mesh, name: str, f: Callable[..., Any], *args: Any, in_shardings: Any
) -> jax.stages.Compiled:
    """Compiles `f` for the devices of `mesh`; the transformations in `f` are those for them.

    Args:
      mesh: devices that need not be attached.
      name: what they are called in messages.
      f: a function of arrays.
      args: its arguments, trees of `jax.ShapeDtypeStruct` or of arrays, of which only the shapes matter.
      in_shardings: how `jax.jit` is to split them.

    Raises:
      UserError: XLA cannot compile it.
    """
    shapes = jax.tree.map(_drop_place, args)
    try:
        with jax.set_mesh(mesh):
            return jax.jit(f, in_shardings=in_shardings).lower(*shapes).compile()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"XLA cannot compile this for {name}: {first_line(error)}; leave the site out with where= or keep=, or"
            " report it"
        ) from error


def _drop_place(x: Any) -> Any:
    """An array or its shape, without the device that it is on."""
    if isinstance(x, (jax.Array, np.ndarray)):
        x = jax.typeof(x)
    elif not isinstance(x, jax.ShapeDtypeStruct):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a period."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")
