"""Compiles programs for devices that need not be attached; what comes back can be read, not run."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxaccel.core.platform import platform_of
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
            lowered = jax.jit(f, in_shardings=in_shardings).lower(*shapes)
        return compile_lowered(lowered, platform_of(mesh))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"XLA cannot compile this for {name}: {first_line(error)}; leave the site out with where= or keep=, or"
            " report it"
        ) from error


def compile_lowered(lowered: jax.stages.Lowered, platform: str) -> jax.stages.Compiled:
    """Compiles a program; for a GPU once more without Triton's matrix products, where XLA fails with them.

    On a GPU that is attached, XLA tries the tiles of each product and takes cuBLAS where none of Triton's fit. Ahead of
    time it takes the first tiles, and fails where they do not fit a product of int8 or float8.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError:
        if platform != "gpu":
            raise
        return lowered.compile({"xla_gpu_enable_triton_gemm": False})


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
