"""Compiling for a mesh of devices: what arguments it takes, and what is said where XLA cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxaccel.core.compile_ahead import compile_on
from jaxaccel.core.platform import count_devices
from jaxaccel.errors import UserError

MESH = Mesh(np.array(jax.devices()[:1]), ("data",))
WHOLE = NamedSharding(MESH, PartitionSpec())


def test_arrays_stand_for_their_shapes():
    meshes = []

    def f(tree, x, y, number):
        meshes.append(count_devices())
        return tree["a"] + x + y * number

    arguments = {"a": jnp.ones(3)}, np.ones(3), jax.ShapeDtypeStruct((3,), jnp.bfloat16), 2.0
    compiled = compile_on(MESH, "here", f, *arguments, in_shardings=WHOLE)
    assert meshes == [1] and [x.dtype for x in jax.tree.leaves(compiled.out_info)] == [jnp.float32]


def test_what_the_compiler_cannot_do_is_one_line():
    def f(x):
        raise jax.errors.JaxRuntimeError("INTERNAL: no kernel for s8.\nStack trace:\n ...")

    with pytest.raises(UserError) as raised:
        compile_on(MESH, "h100", f, jnp.ones(3), in_shardings=WHOLE)
    assert str(raised.value) == (
        "XLA cannot compile this for h100: INTERNAL: no kernel for s8; leave the site out with where= or keep=, or"
        " report it"
    )
