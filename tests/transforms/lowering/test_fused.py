"""Convolutions that oneDNN computes with what follows them: values, derivatives, batches, and what `explain` says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.core import kernels
from jaxaccel.core.kernels.library import computes_integers, has_bfloat16_units
from jaxaccel.core.platform import trace_for

pytestmark = pytest.mark.skipif(not kernels.is_available(), reason=kernels.why_unavailable() or "-")
needs_int8 = pytest.mark.skipif(not computes_integers(), reason="no instructions for int8")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 9, 9, 8)).astype(np.float32)
PARAMS = {
    "first": 0.2 * RNG.normal(size=(3, 3, 8, 16)).astype(np.float32),
    "depthwise": 0.3 * RNG.normal(size=(3, 3, 1, 16)).astype(np.float32),
    "second": 0.2 * RNG.normal(size=(3, 3, 16, 16)).astype(np.float32),
    "linear": 0.2 * RNG.normal(size=(1, 1, 16, 16)).astype(np.float32),
    "bias": RNG.normal(size=16).astype(np.float32),
}

QUANTIZED = ja.quantize(PARAMS, where="{first,depthwise,second,linear}")


def conv(x, w, stride=1):
    groups = x.shape[-1] // w.shape[-2]
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def network(params, x):
    """A strided one, a depthwise one, a linear one with a residual sum, and a mean."""
    y = jax.nn.relu(conv(x, params["first"], 2) + params["bias"])
    z = jax.nn.relu6(conv(y, params["depthwise"]) + params["bias"])
    z = conv(z, params["linear"]) + params["bias"]
    y = jax.nn.relu(y + z)
    return jnp.tanh(conv(y, params["second"])).mean((1, 2))


def square(f):
    return lambda params, x: jnp.sum(f(params, x) ** 2)


def count_calls(f, *args):
    return jax.jit(f).lower(*args).compile().as_text().count('custom_call_target="jaxaccel_onednn')


def plainly(monkeypatch, f, *args):
    """The result without the kernels."""
    with monkeypatch.context() as patched:
        patched.setenv("JAXACCEL_ONEDNN", "0")
        return f(*args)


def test_a_network_in_float32():
    f = ja.retarget(network)
    assert count_calls(f, PARAMS, X) == 4
    np.testing.assert_allclose(f(PARAMS, X), network(PARAMS, X), rtol=0, atol=2e-6)
    said = str(ja.explain(f, PARAMS, X))
    assert "oneDNN with bias, ReLU" in said and "oneDNN with bias, residual, ReLU" in said


def test_derivatives_are_those_of_the_single_operations():
    f = ja.retarget(network)
    for argument in (0, 1):
        got, expected = (jax.grad(square(g), argument)(PARAMS, X) for g in (f, network))
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(g, e, rtol=0, atol=1e-5 * max(1, np.abs(e).max()))
    zero = jax.grad(lambda x: ja.retarget(lambda x: jax.nn.relu(conv(x, PARAMS["first"])))(x).sum())(0 * X)
    assert not np.asarray(zero).any()  # that of ReLU at 0 is 0


def test_a_whole_step():
    def step(params, x):
        value, slope = jax.value_and_grad(lambda p: jnp.sum(network(p, x) ** 2))(params)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)

    assert count_calls(ja.retarget(step), PARAMS, X) >= 10
    for g, e in zip(
        *(jax.tree.leaves(jax.jit(f)(PARAMS, X)) for f in (ja.retarget(step), step)), strict=True
    ):
        np.testing.assert_allclose(g, e, rtol=0, atol=1e-5)


@pytest.mark.parametrize("over", ["examples", "parameters", "both"])
def test_vmap(over):
    many = {name: np.stack([x, 0.5 * x]) for name, x in PARAMS.items()}
    params, p_axis = (PARAMS, None) if over == "examples" else (many, 0)
    x, x_axis = (X, None) if over == "parameters" else (np.stack([X, X + 1]), 0)
    got, expected = (jax.vmap(f, (p_axis, x_axis))(params, x) for f in (ja.retarget(network), network))
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6)


@needs_int8
def test_static_int8_is_joined(monkeypatch):
    calibration = ja.calibrate(network, PARAMS, [X])
    f = ja.int8(network, calibration=calibration, lowering="int8")
    text = jax.jit(f).lower(QUANTIZED, X).compile().as_text()
    integers = [line for line in text.splitlines() if "jaxaccel_onednn" in line]
    assert len(integers) == 4 and sum("= s8[" in line for line in integers) >= 2
    assert not any("= s32[" in line for line in integers)
    expected = plainly(monkeypatch, f, QUANTIZED, X)
    np.testing.assert_allclose(f(QUANTIZED, X), expected, rtol=0, atol=0.02 * np.abs(expected).max())
    assert "rounding" in str(ja.explain(f, QUANTIZED, X))


@needs_int8
def test_sums_of_integers_are_exact(monkeypatch):
    """Dynamic scales join nothing that depends on the result, so the integers must be those of XLA."""
    f = ja.int8(network, lowering="int8")
    assert count_calls(f, QUANTIZED, X) == 4
    np.testing.assert_allclose(f(QUANTIZED, X), plainly(monkeypatch, f, QUANTIZED, X), rtol=0, atol=1e-6)


@needs_int8
def test_what_saturates_saturates_alike(monkeypatch):
    """A linear convolution whose result is beyond the range that was calibrated: ±127, not -128."""

    def f(params, x):
        return conv(conv(x, params["first"]), params["second"])

    calibration = ja.calibrate(f, PARAMS, [0.01 * X])
    g = ja.int8(f, calibration=calibration, lowering="int8")
    np.testing.assert_allclose(g(QUANTIZED, X), plainly(monkeypatch, g, QUANTIZED, X), rtol=1e-6, atol=1e-6)


@needs_int8
def test_int8_under_vmap(monkeypatch):
    calibration = ja.calibrate(network, PARAMS, [X])
    f = ja.int8(network, calibration=calibration, lowering="int8")
    x = np.stack([X, 0.5 * X])
    got = jax.vmap(lambda x: f(QUANTIZED, x))(x)
    expected = np.stack([f(QUANTIZED, one) for one in x])
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.02 * np.abs(expected).max())


@pytest.mark.skipif(not has_bfloat16_units(), reason="no instructions for bfloat16")
def test_bfloat16_convolutions_are_bfloat16():
    f = ja.bfloat16(network)
    text = jax.jit(f).lower(PARAMS, X).compile().as_text()
    calls = [line for line in text.splitlines() if "jaxaccel_onednn" in line]
    assert len(calls) == 4 and all("bf16" in line for line in calls)
    expected = network(PARAMS, X)
    np.testing.assert_allclose(f(PARAMS, X), expected, rtol=0, atol=0.02 * np.abs(expected).max())
    slope, wanted = (jax.grad(square(g))(PARAMS, X) for g in (f, network))
    for g, e in zip(jax.tree.leaves(slope), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(g - e) < 0.03 * np.linalg.norm(e)
    assert "bfloat16 x bfloat16 -> float32 by oneDNN" in str(ja.explain(f, PARAMS, X))


def test_programs_for_elsewhere_call_no_kernel():
    f = ja.retarget(network)
    with trace_for("cpu"), kernels.left_out():
        exported = jax.export.export(jax.jit(f), platforms=["cpu"])(PARAMS, X)
    assert "jaxaccel_onednn" not in exported.mlir_module()
    np.testing.assert_allclose(exported.call(PARAMS, X), network(PARAMS, X), rtol=0, atol=2e-6)


def test_the_same_bits_again():
    f = jax.jit(ja.retarget(network))
    first = np.asarray(f(PARAMS, X))
    for _ in range(20):
        np.testing.assert_array_equal(f(PARAMS, X), first)
