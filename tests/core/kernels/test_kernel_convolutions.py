"""Convolutions by oneDNN against NumPy in float64: all layouts, and the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxaccel.core import kernels
from tests.core.kernels import reference
from tests.core.kernels.reference import LAYOUTS, count_calls, needs_kernels, read_params

TOLERANCES = {"float32": 2e-6, "bfloat16": 2e-2}


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    axis = st.integers(1, 3)
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    channels, features = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 9))
    window = [draw(axis) for _ in range(rank)]
    dilation = [draw(st.integers(1, 2)) for _ in range(rank)]
    inner = [draw(st.integers(1, 2)) for _ in range(rank)] if draw(st.booleans()) else [1] * rank
    strides = [1 if max(inner) > 1 else draw(st.integers(1, 3)) for _ in range(rank)]
    spatial = [draw(st.integers(d * (w - 1) + 1, 9)) for w, d in zip(window, dilation, strict=True)]
    padding = [(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(rank)]
    layout = draw(st.sampled_from(LAYOUTS[rank]))
    shape = {
        "batch": draw(st.integers(1, 3)),
        "channels": channels,
        "features": features,
        "groups": groups,
        "window": window,
    }
    lhs, rhs = reference.make_operands(
        np.random.default_rng(draw(st.integers(0, 99))), spatial, layout, **shape
    )
    options = {
        "window_strides": strides, "padding": padding, "lhs_dilation": inner, "rhs_dilation": dilation,
        "dimension_numbers": layout, "feature_group_count": groups,
    }  # fmt: skip
    return lhs, rhs, options


def close(got, expected, dtype):
    scale = np.abs(expected).max() + 1e-6
    assert np.abs(np.asarray(got, np.float64) - expected).max() <= TOLERANCES[dtype] * scale


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCES)
@given(convolutions())
@settings(max_examples=40, deadline=None)
def test_values(dtype, case):
    lhs, rhs, options = case
    params = read_params(lhs, rhs, **options)
    out = kernels.convolve(params, lhs, rhs, dtype)
    assert out.dtype == jnp.float32
    close(out, reference.convolve(params, lhs, rhs), dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", TOLERANCES)
@given(convolutions())
@settings(max_examples=10, deadline=None)
def test_gradients(dtype, case):
    """Against XLA's, which are compared with NumPy elsewhere; the cotangent is rounded too."""
    lhs, rhs, options = case
    params = read_params(lhs, rhs, **options)

    def plain(a, b):
        return jax.lax.conv_general_dilated_p.bind(a, b, **params)

    ct = np.random.default_rng(0).normal(size=jax.eval_shape(plain, lhs, rhs).shape).astype(np.float32)
    got = jax.vjp(lambda a, b: kernels.convolve(params, a, b, dtype), lhs, rhs)[1](ct)
    expected = jax.vjp(plain, lhs, rhs)[1](ct)
    for g, e in zip(got, expected, strict=True):
        close(g, np.asarray(e, np.float64), dtype)


@needs_kernels
def test_bfloat16_is_exact_where_operands_are():
    rng = np.random.default_rng(0)
    lhs, rhs = (rng.integers(-8, 9, size=n).astype(np.float32) for n in ((2, 8, 8, 16), (3, 3, 16, 8)))
    params = read_params(lhs, rhs, window_strides=(1, 1), padding="SAME", dimension_numbers=LAYOUTS[2][0])
    expected = reference.convolve(params, lhs, rhs)
    np.testing.assert_array_equal(kernels.convolve(params, lhs, rhs, "bfloat16"), expected)
    narrow = kernels.convolve(params, lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16), "bfloat16")
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, expected.astype(jnp.bfloat16))


@needs_kernels
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 16])
def test_gradients_are_kernels(stride, groups):
    rng = np.random.default_rng(0)
    shape = {"batch": 2, "channels": 16, "features": 16, "groups": groups, "window": (3, 3)}
    lhs, rhs = reference.make_operands(rng, (12, 13), LAYOUTS[2][0], **shape)
    options = {"dimension_numbers": LAYOUTS[2][0], "feature_group_count": groups}
    params = read_params(lhs, rhs, window_strides=(stride, stride), padding="SAME", **options)

    def loss(a, b):
        return jnp.sum(kernels.convolve(params, a, b) ** 2)

    assert count_calls(jax.grad(loss, (0, 1)), lhs, rhs) == 3


@needs_kernels
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (2, 1)])
def test_vmap(axes):
    rng = np.random.default_rng(0)
    lhs, rhs = rng.normal(size=(3, 2, 8, 8, 4)), rng.normal(size=(3, 3, 3, 4, 6))
    lhs, rhs = lhs.astype(np.float32), rhs.astype(np.float32)
    one = lhs[0], rhs[0]
    params = read_params(*one, window_strides=(1, 1), padding="SAME", dimension_numbers=LAYOUTS[2][0])
    pick = [x[0] if a is None else np.moveaxis(x, 0, a) for x, a in zip((lhs, rhs), axes, strict=True)]
    f = jax.vmap(lambda a, b: kernels.convolve(params, a, b), axes)
    plain = jax.vmap(lambda a, b: jax.lax.conv_general_dilated_p.bind(a, b, **params), axes)
    assert count_calls(f, *pick) == 1
    np.testing.assert_allclose(f(*pick), plain(*pick), rtol=0, atol=2e-5)


@needs_kernels
def test_second_derivatives():
    rng = np.random.default_rng(0)
    shape = {"batch": 2, "channels": 3, "features": 4, "groups": 1, "window": (3, 3)}
    lhs, rhs = reference.make_operands(rng, (6, 6), LAYOUTS[2][0], **shape)
    params = read_params(lhs, rhs, window_strides=(2, 2), padding="SAME", dimension_numbers=LAYOUTS[2][0])

    def slope(convolve):
        def loss(a, b):
            return jnp.sum(jnp.tanh(convolve(a, b)))

        return jax.grad(lambda a, b: jnp.sum(jax.grad(loss, 1)(a, b) ** 2), (0, 1))(lhs, rhs)

    got = slope(lambda a, b: kernels.convolve(params, a, b))
    expected = slope(lambda a, b: jax.lax.conv_general_dilated_p.bind(a, b, **params))
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=1e-4 * np.abs(e).max())


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_without_the_kernels(monkeypatch, dtype):
    """XLA computes the same."""
    rng = np.random.default_rng(0)
    shape = {"batch": 2, "channels": 3, "features": 4, "groups": 1, "window": (3, 3)}
    lhs, rhs = reference.make_operands(rng, (6, 6), LAYOUTS[2][0], **shape)
    params = read_params(lhs, rhs, window_strides=(1, 1), padding="SAME", dimension_numbers=LAYOUTS[2][0])
    reference.pretend(monkeypatch, "", "not installed: do this")
    assert kernels.why_unavailable() == "not installed: do this"
    assert not kernels.supports(params, lhs, rhs)

    def f(a, b):
        return kernels.convolve(params, a, b, dtype)

    assert count_calls(lambda a: f(a, rhs) + 1, lhs) == 0
    close(jax.jit(lambda a: f(a, rhs) + 0)(lhs), reference.convolve(params, lhs, rhs), dtype)
