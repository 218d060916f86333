"""What follows a convolution, read off its program: what is joined, what is not, and the same numbers."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.core.interpret import Transformation, transform
from jaxaccel.transforms.lowering.epilogue import evaluate_operands, find_chains

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6, 6, 3)).astype(np.float32)
W = RNG.normal(size=(3, 3, 3, 4)).astype(np.float32)
BIAS = RNG.normal(size=4).astype(np.float32)
R = RNG.normal(size=(2, 6, 6, 4)).astype(np.float32)
PLACES = RNG.normal(size=(6, 6, 1)).astype(np.float32)


def conv(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def join(f, seen, wanted=lambda product, epilogue: True):
    """`f` with each chain computed in float32 by NumPy's rules, one operation of the epilogue after the other."""

    def rule(epilogue, site, reference, lhs, rhs, *operands):
        seen.append(epilogue)
        values = evaluate_operands(epilogue, operands)
        y = site.bind(lhs, rhs).astype(jnp.float32)
        axis = site.params["dimension_numbers"].out_spec[1]
        shape = [-1 if a == axis else 1 for a in range(y.ndim)]
        for x, combine in ((values.scale, jnp.multiply), (values.bias, jnp.add)):
            y = y if x is None else combine(y, x if x.ndim == 0 else x.reshape(shape))
        if values.residual is not None:
            y = y + values.residual * (1 if values.residual_step is None else values.residual_step)
        y = jnp.clip(y, epilogue.low, epilogue.high)
        y = y if values.steps is None else y * values.steps
        return jnp.clip(jnp.round(y), -127, 127).astype(jnp.int8) if epilogue.rounded else y

    rules = {"conv_general_dilated": lambda site, *operands: NotImplemented}
    return transform(
        f, Transformation("join", rules, fuse=lambda program: find_chains(program, wanted, rule))
    )


def parts(epilogue):
    return (
        [name for name, _ in epilogue.affine], epilogue.residual is not None, epilogue.low, epilogue.high,
        epilogue.rounded,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x, w: conv(x, w) + BIAS, (["add"], False, -math.inf, math.inf, False)),
        (lambda x, w: jax.nn.relu(conv(x, w) * 2 + BIAS), (["mul", "add"], False, 0, math.inf, False)),
        (lambda x, w: jax.nn.relu6(conv(x, w)), ([], False, 0, 6, False)),
        (lambda x, w: jnp.clip(conv(x, w), -1, 2), ([], False, -1, 2, False)),
        (lambda x, w: jax.nn.relu(conv(x, w) + BIAS + R), (["add"], True, 0, math.inf, False)),
        (lambda x, w: jax.nn.relu(R + conv(x, w)), ([], True, 0, math.inf, False)),
        (lambda x, w: jnp.maximum(conv(x, w), 0.5) + 0, ([], False, 0.5, math.inf, False)),
    ],
)
def test_what_is_joined(f, expected):
    seen = []
    y = join(f, seen)(X, W)
    assert list(map(parts, seen)) == [expected]
    np.testing.assert_allclose(y, f(X, W), rtol=1e-6, atol=1e-6)


def leaky(x):
    return jnp.where(x > 0, x, 0.1 * x)


@jax.jit
def relu(x):  # a name says nothing
    return leaky(x)


@pytest.mark.parametrize(
    "f",
    [
        lambda x, w: relu(conv(x, w)),
        lambda x, w: jax.nn.silu(conv(x, w)),
        lambda x, w: conv(x, w) * conv(x, w[::-1]),
        lambda x, w: conv(x, w).sum(),
        lambda x, w: jnp.square(conv(x, w)),
        lambda x, w: (conv(x, w), 1),
        lambda x, w: conv(x, w) + PLACES,  # for each place, not for each channel
        lambda x, w: 1 / conv(x, w),
    ],
)
def test_what_is_not(f):
    seen = []
    for y, expected in zip(jax.tree.leaves(join(f, seen)(X, W)), jax.tree.leaves(f(X, W)), strict=True):
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert all(not parts(one)[0] and one.residual is None and not one.is_bounded for one in seen)


def test_a_value_that_something_else_reads_ends_the_chain():
    def f(x, w):
        y = conv(x, w) + BIAS
        return jax.nn.relu(y), y.mean()

    seen = []
    got, expected = join(f, seen)(X, W), f(X, W)
    assert [parts(one) for one in seen] == [(["add"], False, -math.inf, math.inf, False)]
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-6, atol=1e-6)


def test_of_two_that_are_summed_the_last_has_the_sum():
    def f(x, w):
        return jax.nn.relu((conv(x, w) + BIAS) + (conv(x, -w) + 2 * BIAS))

    seen = []
    np.testing.assert_allclose(join(f, seen)(X, W), f(X, W), rtol=1e-5, atol=1e-5)
    assert sorted(one.residual is not None for one in seen) == [False, True]


def test_bounds_and_bias_keep_their_order():
    def f(x, w):
        return jax.nn.relu(conv(x, w)) + BIAS  # the bias comes after the bound

    seen = []
    np.testing.assert_allclose(join(f, seen)(X, W), f(X, W), rtol=1e-6, atol=1e-6)
    assert [parts(one) for one in seen] == [([], False, 0, math.inf, False)]


def test_loops_branches_and_jit_are_entered():
    def f(x, w):
        y, _ = jax.lax.scan(lambda c, _: (jax.nn.relu(conv(c, w) + BIAS)[..., :3], None), x, length=3)
        return jax.lax.cond(y.sum() > 0, jax.jit(lambda z: jax.nn.relu(conv(z, w))), lambda z: conv(z, w), y)

    seen = []
    np.testing.assert_allclose(join(f, seen)(X, W), f(X, W), rtol=1e-5, atol=1e-5)
    assert len(seen) >= 2


def test_what_is_not_wanted_is_left():
    seen = []
    join(lambda x, w: jax.nn.relu(conv(x, w)), seen, lambda product, epilogue: False)(X, W)
    assert seen == []


def block(params, x):
    """Convolutions with biases, a residual sum and a linear end, as of a folded network."""
    y = jax.nn.relu(conv(x, params["first"]) + BIAS)
    z = jax.nn.relu(conv(y, params["second"]) + BIAS)
    z = conv(z, params["third"]) + BIAS
    return jax.nn.relu6(y + z).mean((1, 2))


def test_integers_all_the_way(monkeypatch):
    """Every convolution of a calibrated network ends in integers, but for that whose values are averaged."""
    monkeypatch.setattr(sys.modules[ja.int8.__module__], "choose_int8_form", lambda *args: ("xla", ""))
    params = {name: 0.3 * RNG.normal(size=(3, 3, n, 4)).astype(np.float32)
              for name, n in (("first", 3), ("second", 4), ("third", 4))}  # fmt: skip
    calibration = ja.calibrate(block, params, [X])
    f, quantized = ja.int8(block, calibration=calibration), ja.quantize(params, where="*")
    seen = []
    np.testing.assert_allclose(join(f, seen)(quantized, X), f(quantized, X), rtol=3e-7)
    assert [(one.rounded, one.residual is not None, one.low, one.high) for one in seen] == [
        (True, False, 0, math.inf), (True, False, 0, math.inf), (False, True, 0, 6),
    ]  # fmt: skip
    assert seen[-1].residual.integers.aval.dtype == jnp.int8  # read as it is, in one byte
