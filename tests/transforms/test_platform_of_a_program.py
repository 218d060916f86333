"""Transformed programs are those of the devices that they are compiled for, not of this process."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

import jaxaccel as ja
from jaxaccel.core.sites import record_runs

PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 3, 16)), "head": jnp.ones((16, 4))}
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


def f(params, x):
    x = jax.lax.conv_general_dilated(
        x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x, _ = jax.lax.scan(lambda x, w: (x + w @ params["head"].T, None), x, jnp.ones((3, 2, 4, 4, 4)))
    return x.mean((1, 2)) @ params["head"]


TRANSFORMATIONS = {
    "retarget": (ja.retarget, PARAMS),
    "bfloat16": (ja.bfloat16, PARAMS),
    "float16": (ja.float16, PARAMS),
    "int8": (ja.int8, ja.quantize(PARAMS)),
    "fake_int8": (ja.fake_int8, PARAMS),
}


def context(platform):
    """Four devices that need not be attached."""
    device = AbstractDevice(device_kind="any", num_cores=None, platform=platform)
    mesh = AbstractMesh((4,), ("data",), (AxisType.Auto,), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def choices(g, params):
    """What became of each operation of a program."""
    with record_runs() as runs:
        jax.eval_shape(jax.jit(g), params, X)
    return [(run.transformation, [(r.name, r.lowering, r.reason) for r in run.records]) for run in runs]


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_of_the_mesh_in_context(name, platform):
    transformation, params = TRANSFORMATIONS[name]
    g = transformation(f)  # before the mesh is known
    default, wanted = choices(g, params), choices(transformation(f, backend=platform), params)
    with context(platform):
        assert choices(g, params) == wanted
        assert choices(transformation(f, backend="cpu"), params) == default
    assert (wanted == default) == (platform == "cpu")


def test_float8_of_a_gpu_that_is_not_attached():
    def product(params, x):
        return x.mean((1, 2)) @ params["head"][:3]

    g = ja.float8(product)
    with context("gpu"):
        ((_, ((_, lowering, _),)),) = choices(g, PARAMS)
    assert lowering == "float8 x float8 -> float32"
    with context("tpu"), pytest.raises(ja.UserError, match="no float8 products on this tpu"):
        choices(g, PARAMS)


def test_forms_are_timed_on_an_attached_device_whatever_the_mesh(monkeypatch):
    monkeypatch.setenv("JAXACCEL_CACHE", "0")

    def pool(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))):
        tuned = jax.jit(ja.retarget(pool, tune=True, argnums=()))(X)
    assert jnp.array_equal(tuned, pool(X))
