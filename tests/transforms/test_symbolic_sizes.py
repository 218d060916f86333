"""Programs exported for any batch size, under every transformation: the same numbers as compiled for one size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import jaxaccel as ja
from jaxaccel.core.sizes import exceeds
from jaxaccel.transforms.lowering import matmul


def export_any_batch(f, params, x, constraints=()):
    (batch,) = export.symbolic_shape("b", constraints=constraints)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    return export.export(jax.jit(f))(shapes, jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype))


def int8_static(f, params, x):
    return ja.int8(f, calibration=ja.calibrate(f, params, [x])), ja.quantize(params)


TRANSFORMATIONS = {
    "float32": lambda f, params, x: (f, params),
    "retarget": lambda f, params, x: (ja.retarget(f), params),
    "bfloat16": lambda f, params, x: (ja.bfloat16(f), params),
    "float16": lambda f, params, x: (ja.float16(f), params),
    "int8 dynamic": lambda f, params, x: (ja.retarget(ja.int8(f, attention=True)), ja.quantize(params)),
    "int8 static": int8_static,
    "int8 weights only": lambda f, params, x: (ja.int8(f, activations="none"), ja.quantize(params)),
    "low rank": lambda f, params, x: (ja.transforms.compressed(f), ja.low_rank(params, rank=2)),
    "fold": lambda f, params, x: ja.fold(f, params, x),
}


def network(params, x):
    """Convolutions in several forms, poolings that overlap and that do not, a vector where the batch is one."""
    x = jax.lax.conv_general_dilated(
        x, params["stem"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x * params["gain"] + params["shift"])
    x = nnx.max_pool(x, (3, 3), (2, 2), "SAME")
    x = jax.lax.conv_general_dilated(
        x, params["depthwise"]["kernel"], (1, 1), "SAME", feature_group_count=16,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    x = nnx.avg_pool(x, (2, 2), (2, 2))
    query = x.reshape(x.shape[0], -1, 16)
    weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", query, query) / 4)
    x = jnp.einsum("bqk,bkc->bqc", weights, query).reshape(x.shape[0], -1)
    return jax.nn.gelu(x @ params["hidden"]["kernel"]) @ params["head"]["kernel"]


@functools.cache
def parameters():
    rng = np.random.default_rng(0)
    shapes = {
        "stem": (3, 3, 3, 16), "gain": (16,), "shift": (16,), "depthwise": (3, 3, 1, 16), "hidden": (64, 24),
        "head": (24, 5),
    }  # fmt: skip
    arrays = {name: jnp.asarray(0.3 * rng.standard_normal(s), jnp.float32) for name, s in shapes.items()}
    return {name: x if x.ndim == 1 else {"kernel": x} for name, x in arrays.items()}


def images(count):
    return jnp.asarray(np.random.default_rng(count).standard_normal((count, 8, 8, 3)), jnp.float32)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_one_program_serves_all_batches(name):
    g, params = TRANSFORMATIONS[name](network, parameters(), images(6))
    exported = export_any_batch(g, params, images(1))
    tolerance = {"bfloat16": 2e-2, "float16": 3e-3}.get(name, 1e-5)
    for count in (1, 2, 7):
        expected = jax.jit(g)(params, images(count))
        largest = np.abs(expected).max()
        np.testing.assert_allclose(exported.call(params, images(count)), expected, atol=tolerance * largest)
        assert largest > 1e-3


def test_a_batch_that_is_never_one_keeps_narrow_products():
    exported = export_any_batch(ja.bfloat16(network), parameters(), images(2), ["b >= 2"])
    assert "bf16" in exported.mlir_module()
    np.testing.assert_allclose(
        exported.call(parameters(), images(3)),
        jax.jit(ja.bfloat16(network))(parameters(), images(3)),
        atol=2e-2,
    )


def test_an_open_comparison_has_the_answer_that_it_is_given():
    batch, length = export.symbolic_shape("b, t", constraints=["b >= 2", "t <= 64"])
    assert exceeds(batch, 1, unknown=False) and not exceeds(length, 64, unknown=True)
    assert exceeds(batch, 8, unknown=True) and not exceeds(batch, 8, unknown=False)
    assert exceeds(3, 2, unknown=False) and not exceeds(2, 2, unknown=True)


def test_products_of_a_scan_stay_where_sizes_are_open():
    (batch,) = export.symbolic_shape("b")
    assert matmul.should_hoist("gpu", "before", 8, 1024)
    assert not matmul.should_hoist("gpu", "before", batch, 1024)
    assert not matmul.should_hoist("gpu", "before", 8, 1024 * batch)
