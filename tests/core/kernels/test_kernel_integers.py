"""Convolutions of integers by oneDNN: exact sums, and the same bits as XLA's arithmetic behind them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxaccel.core import kernels, numerics
from jaxaccel.core.kernels import integers
from tests.core.kernels import reference
from tests.core.kernels.reference import LAYOUTS, count_calls, needs_kernels, read_params

SHAPES = st.tuples(
    st.sampled_from([1, 2, 4]), st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(1, 2)
)


def make_case(seed, rank, groups, channels, features, window, stride, signed, dilation=1):
    rng = np.random.default_rng(seed)
    layout = LAYOUTS[rank][seed % len(LAYOUTS[rank])]
    lhs, rhs = reference.make_operands(
        rng,
        [7] * rank,
        layout,
        batch=2,
        channels=groups * channels,
        features=groups * features,
        groups=groups,
        window=[window] * rank,
    )
    lhs = rng.integers(-127 if signed else 0, 128 if signed else 256, lhs.shape)
    rhs = rng.integers(-127, 128, rhs.shape)
    params = read_params(
        lhs.astype(np.int8),
        rhs.astype(np.int8),
        window_strides=[stride] * rank,
        padding=[(1, 2)] * rank,
        rhs_dilation=[dilation] * rank,
        dimension_numbers=layout,
        feature_group_count=groups,
    )
    return rng, params, lhs.astype(np.int8 if signed else np.uint8), rhs.astype(np.int8)


@needs_kernels
@given(SHAPES, st.integers(0, 99), st.integers(1, 3), st.booleans(), st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_sums_are_exact(shape, seed, rank, signed, dilation):
    _, params, lhs, rhs = make_case(seed, rank, *shape, signed, dilation)
    out = kernels.convolve_integers(params, lhs, rhs)
    assert out.dtype == jnp.int32
    np.testing.assert_array_equal(out, reference.convolve(params, lhs, rhs))


@needs_kernels
@given(
    SHAPES,
    st.integers(0, 99),
    st.booleans(),
    st.sets(st.sampled_from(integers.ORDER)),
    st.booleans(),
    st.sampled_from(integers.RESULTS),
)
@settings(max_examples=25, deadline=None)
def test_epilogues(shape, seed, signed, parts, relu, dtype):
    """Integers may differ by one where a sum falls between two of them, floats by rounding."""
    rng, params, lhs, rhs = make_case(seed, 2, *shape, signed)
    if dtype == "int32":
        parts -= {"scale"}
    features = rhs.shape[params["dimension_numbers"].rhs_spec[0]]
    out = jax.eval_shape(
        lambda a, b: jax.lax.conv_general_dilated_p.bind(a, b, **params), lhs.astype(np.int8), rhs
    )
    values = {
        "scale": rng.uniform(0.5, 2, features if seed % 2 else 1) / 1000,
        "bias": rng.normal(size=features) * 9,
        "zero_point": 3,
        "addend": rng.integers(-100, 100, out.shape).astype(np.int8),
        "low": -20.0,
        "high": 25.5,
        "divisor": 0.37,
        "output_zero": -5,
    }
    epilogue = kernels.Epilogue(**{k: jnp.asarray(v) for k, v in values.items() if k in parts}, relu=relu)
    got = kernels.convolve_integers(params, lhs, rhs, epilogue, dtype)
    plain = jax.jit(lambda lhs, rhs, e: integers._finish(params, lhs, rhs, e, jnp.dtype(dtype)))
    flat = jax.tree.map(lambda x: x if x.ndim > 1 else x.reshape(-1), epilogue)
    expected = np.asarray(plain(lhs, rhs, flat), np.float64)
    assert got.dtype == dtype
    slack = {"bfloat16": 2**-7, "float32": 1e-6}.get(dtype, 0) * np.abs(expected) + (
        0 if "float" in dtype else 1
    )
    assert (np.abs(np.asarray(got, np.float64) - expected) <= slack + 1e-4).all()


@needs_kernels
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("channels", [16, 64])
def test_requantized_bits(channels, relu):
    """As `numerics.to_integers` of the scaled sum."""
    rng, params, lhs, rhs = make_case(0, 2, 1, channels, 32, 3, 1, True)
    scale = jnp.asarray(rng.uniform(0.5, 2, 32).astype(np.float32) / 1000)
    step = jnp.float32(0.0371)

    @jax.jit
    def plain(lhs, rhs):
        sums = integers._convolve_wide(params, lhs, rhs).astype(jnp.float32) * scale
        return numerics.to_integers(jax.nn.relu(sums) if relu else sums, step)

    epilogue = kernels.Epilogue(scale=scale, low=-127 * step, divisor=step, relu=relu)
    got = jax.jit(lambda a, b: kernels.convolve_integers(params, a, b, epilogue, jnp.int8))(lhs, rhs)
    np.testing.assert_array_equal(got, plain(lhs, rhs))


@needs_kernels
def test_vmap_and_calls():
    _, params, lhs, rhs = make_case(0, 2, 1, 8, 8, 3, 1, True)
    many = jnp.stack([lhs, lhs[::-1]])
    f = jax.vmap(lambda a: kernels.convolve_integers(params, a, rhs))
    assert count_calls(f, many) == 1
    np.testing.assert_array_equal(f(many)[1], reference.convolve(params, lhs[::-1], rhs))


def test_without_the_kernels(monkeypatch):
    reference.pretend(monkeypatch, "", "not installed: do this")
    _, params, lhs, rhs = make_case(1, 2, 2, 3, 5, 3, 2, False)
    assert not kernels.supports_integers(params, lhs, rhs)
    np.testing.assert_array_equal(
        kernels.convolve_integers(params, lhs, rhs), reference.convolve(params, lhs, rhs)
    )
