"""int8 of every kind of product and scale, against the float64 product of what the integers stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned
from test_int8_exact import NHWC, numpy_conv

import jaxaccel as ja
from jaxaccel.core import sites
from jaxaccel.core.arrays import QuantArray
from jaxaccel.transforms import int8_products

RNG = np.random.default_rng(0)


def weights(*shape, shift=0.7):
    """Weights to one side of 0, so that a zero point that is forgotten shows."""
    return jnp.asarray(RNG.standard_normal(shape) + shift, jnp.float32)


def activations(*shape):
    """Numbers that int8 holds exactly at a scale of a row, an example or the whole: 127 is in each row."""
    x = RNG.integers(-127, 128, shape)
    x[..., 0] = 127
    return jnp.asarray(x / 64, jnp.float32)


def dense(x):
    """What `x` stands for, in float64."""
    if not isinstance(x, QuantArray):
        return np.asarray(x, np.float64)
    parts = [np.asarray(p, np.float64) for p in (x.scale, 0 if x.zero_point is None else x.zero_point)]
    wide = [np.broadcast_to(p, x.scale.shape) for p in parts]
    for axis, n in enumerate(x.shape):
        wide = [p if p.shape[axis] in (1, n) else p.repeat(n // p.shape[axis], axis) for p in wide]
    return wide[0] * (np.asarray(x.integers(), np.float64) - wide[1])


def near(got, want, rtol=1e-5):
    assert np.abs(np.asarray(got, np.float64) - want).max() <= rtol * max(np.abs(want).max(), 1e-9)


def lowering_of(f, *args):
    with sites.record_runs() as runs:
        jax.eval_shape(f, *args)
    return [(r.lowering, r.reason) for r in runs[-1].records]


WEIGHTS = {
    "symmetric": {},
    "zero points": {"symmetric": False},
    "int4": {"bits": 4},
    "int4 zero points": {"bits": 4, "symmetric": False},
    "blocks": {"bits": 4, "block": 4},
    "blocks zero points": {"block": 4, "symmetric": False},
    "one scale": {"channels": ()},
    "one scale a block": {"channels": (), "block": 4},
    "scales of inputs": {"channels": -2},
}
MODES = ("dynamic", "static", "none")
DOTS = {
    "x @ w": ("ij,jk->ik", (4, 8), (8, 12)),
    "w.T @ x": ("jk,ij->ki", (8, 12), (4, 8)),
    "x @ w.T": ("ik,jk->ij", (4, 12), (8, 12)),
    "batches": ("bij,bjk->bik", (4, 4, 8), (4, 8, 12)),
    "two sums": ("ibj,jbk->ik", (4, 4, 8), (8, 4, 12)),
    "vector": ("j,jk->k", (8,), (8, 12)),
}


def one_parameter(form):
    spec, left, right = DOTS[form]
    first = form == "w.T @ x"  # which operand is the parameter
    w, x = weights(*(left if first else right)), activations(*(right if first else left))
    return spec, (lambda p, x: jnp.einsum(spec, *((p["w"], x) if first else (x, p["w"])))), w, x, first


def mode_options(mode, f, p, x):
    return {"calibration": ja.calibrate(f, p, [x])} if mode == "static" else {"activations": mode}


@pytest.mark.parametrize(("form", "kind", "mode"), thinned(4, DOTS, WEIGHTS, MODES))
def test_products_with_a_parameter(form, kind, mode):
    spec, f, w, x, first = one_parameter(form)
    q = ja.quantize({"w": w}, "w", **WEIGHTS[kind])
    got = jax.jit(ja.int8(f, **mode_options(mode, f, {"w": w}, x)))(q, x)
    operands = [dense(q["w"]), dense(x)][:: 1 if first else -1]
    exact = "scales of inputs" not in kind and form not in (
        "two sums",
        "x @ w.T",
    )  # else x is rounded at other scales
    near(got, np.einsum(spec, *operands), 1e-5 if exact or mode == "none" else 2e-2)


SIDES = [
    {},
    {"symmetric": False},
    {"bits": 4, "symmetric": False},
    {"block": 4, "symmetric": False},
    {"channels": ()},
]


@pytest.mark.parametrize(("form", "left", "right"), thinned(5, list(DOTS)[:-1], SIDES, SIDES), ids=str)
def test_products_of_two_parameters(form, left, right):
    spec, a, b = DOTS[form]
    f = lambda p: jnp.einsum(spec, p["a"], p["b"])  # noqa: E731
    q = {
        "a": ja.quantize({"a": weights(*a)}, "a", **left)["a"],
        "b": ja.quantize({"b": weights(*b)}, "b", **right)["b"],
    }
    near(jax.jit(ja.int8(f))(q), np.einsum(spec, dense(q["a"]), dense(q["b"])))


PAIRS = {
    "lora": (lambda p, x: x @ (p["a"] @ p["b"]), lambda a, b, x: x @ (a @ b)),
    "gram": (lambda p, x: x @ (p["a"] @ p["a"].T), lambda a, b, x: x @ (a @ a.T)),
    "other gram": (lambda p, x: x[:, :4] @ (p["a"].T @ p["a"]), lambda a, b, x: x[:, :4] @ (a.T @ a)),
    "chained": (lambda p, x: (x @ p["a"]) @ p["b"], None),
}


@pytest.mark.parametrize(
    ("name", "options"), thinned(3, PAIRS, [{}, {"symmetric": False}, {"bits": 4}]), ids=str
)
def test_parameters_made_of_parameters(name, options):
    f, wanted = PAIRS[name]
    q = ja.quantize({"a": weights(8, 4), "b": weights(4, 6)}, "*", **options)
    x = activations(4, 8)
    for mode in MODES:
        more = mode_options(mode, f, q, x)
        if wanted is not None:
            near(jax.jit(ja.int8(f, **more))(q, x), wanted(dense(q["a"]), dense(q["b"]), dense(x)))
        else:
            near(jax.jit(ja.int8(f, **more))(q, x), dense(x) @ dense(q["a"]) @ dense(q["b"]), 2e-2)
        trained = ja.fake_int8(f, "*", **{k: v for k, v in options.items() if k == "bits"}, **more)
        if options != {"symmetric": False}:
            floats = {k: jnp.asarray(v, jnp.float32) for k, v in ja.params.dequantize(q).items()}
            near(trained(floats, x), np.asarray(ja.int8(f, **more)(q, x), np.float64), 1e-4)
    slope = jax.grad(lambda x: ja.int8(f, activations="none")(q, x).sum())(x)
    near(slope, jax.grad(lambda x: f(ja.params.dequantize(q), x).sum())(x), 1e-4)


CONVS = {
    "padded": ((2, 6, 6, 8), (3, 3, 8, 16), {"padding": "SAME"}),
    "strided": ((2, 7, 6, 8), (3, 3, 8, 16), {"padding": ((2, 1), (0, 3)), "window_strides": (2, 3)}),
    "grouped": ((2, 5, 5, 8), (3, 3, 4, 16), {"padding": "SAME", "feature_group_count": 2}),
    "depthwise": ((2, 5, 5, 8), (3, 3, 1, 8), {"padding": "SAME", "feature_group_count": 8}),
    "transposed": ((2, 4, 5, 8), (3, 3, 8, 16), {"padding": ((2, 2), (1, 2)), "lhs_dilation": (2, 3)}),
    "dilated": ((2, 7, 7, 8), (3, 3, 8, 16), {"padding": "SAME", "rhs_dilation": (2, 2)}),
    "pointwise": ((2, 5, 5, 8), (1, 1, 8, 16), {"padding": "VALID"}),
}


def convolve(options):
    options = {"window_strides": (1, 1), **options}
    return functools.partial(jax.lax.conv_general_dilated, dimension_numbers=NHWC, **options)


def float64_conv(conv, x, w):
    (eqn,) = jax.make_jaxpr(conv)(jnp.zeros(x.shape), jnp.zeros(w.shape)).eqns
    # Integers in NumPy: fixed point with 24 bits after the point is float64 enough.
    return numpy_conv(np.round(x * 2**24), np.round(w * 2**24), eqn.params) / 2.0**48


@pytest.mark.parametrize(
    ("name", "options", "mode", "lowering"),
    thinned(
        5, CONVS, [{}, {"symmetric": False}, {"bits": 4}, {"bits": 4, "symmetric": False}], MODES, ["auto", "int8"]
    ), ids=str,
)  # fmt: skip
def test_convolutions_with_a_parameter(name, options, mode, lowering):
    x_shape, w_shape, more = CONVS[name]
    conv, x, q = convolve(more), activations(*x_shape), ja.quantize({"w": weights(*w_shape)}, "w", **options)
    f = lambda p, x: conv(x, p["w"])  # noqa: E731
    got = jax.jit(ja.int8(f, lowering=lowering, **mode_options(mode, f, q, x)))(q, x)
    near(got, float64_conv(conv, dense(x), dense(q["w"])))


@pytest.mark.parametrize(
    ("name", "options"),
    thinned(3, CONVS, [{}, {"symmetric": False}, {"channels": ()}, {"channels": 0}]),
    ids=str,
)
def test_convolutions_of_two_parameters(name, options):
    x_shape, w_shape, more = CONVS[name]
    conv, w = convolve(more), ja.quantize({"w": weights(*w_shape)}, "w")["w"]
    q = {"x": ja.quantize({"x": weights(*x_shape)}, "x", **options)["x"], "w": w}
    for lowering in ("auto", "int8"):
        got = jax.jit(ja.int8(lambda p: conv(p["x"], p["w"]), lowering=lowering))(q)
        near(got, float64_conv(conv, dense(q["x"]), dense(w)))


def test_zero_points_on_both_sides_are_exact():
    """Sums of 16,384 terms that nearly cancel: exact in int32, off where float32 adds the terms up."""
    rng = np.random.default_rng(1)
    point = jnp.full((1, 1), 127, jnp.int8)
    a, b = (
        QuantArray(jnp.asarray(rng.integers(100, 128, shape), jnp.int8), jnp.ones((1, 1)), point)
        for shape in ((3, 16384), (16384, 2))
    )
    assert not int8_products.may_overflow(
        "dot_general", {"dimension_numbers": (((1,), (0,)), ((), ()))}, a, b
    )
    got = ja.int8(lambda p: p["a"] @ p["b"])({"a": a, "b": b})
    np.testing.assert_array_equal(np.asarray(got, np.float64), (dense(a) @ dense(b)))


def test_a_sum_that_int32_cannot_hold_is_left_in_float32():
    n = 140_000  # times 127 * 127: more than 2**31
    q, x = ja.quantize({"w": jnp.ones((n, 2))}, "w"), jnp.ones((1, n))
    f = ja.int8(lambda p, x: x @ p["w"])
    near(f(q, x), np.full((1, 2), float(n)))
    assert lowering_of(f, q, x) == [("dequantized", "its sum may exceed int32")]


def test_training_sums_what_int32_cannot_hold_in_float32():
    n = 140_000
    train = functools.partial(ja.int8, train=True, key=jax.random.key(0))
    f = train(lambda p, x: x @ p["w"])
    p, x = {"w": jnp.ones((n, 2))}, jnp.ones((1, n))
    near(f(p, x), np.full((1, 2), float(n)))
    assert "exceed int32" in lowering_of(f, p, x)[0][1]
    # The gradient of a weight is a sum over all examples, that of a kernel over all their positions too.
    x = jnp.ones((n, 1))
    near(jax.grad(lambda p: f(p, x).sum())({"w": jnp.ones((1, 1))})["w"], np.full((1, 1), float(n)))
    images, conv = jnp.ones((2, 280, 250, 1)), train(lambda p, x: convolve({"padding": "VALID"})(x, p["w"]))
    slope = jax.grad(lambda p: conv(p, images).sum())({"w": jnp.ones((1, 1, 1, 1))})["w"]
    near(slope, np.full((1, 1, 1, 1), float(n)))


def test_attention_sums_what_int32_cannot_hold_in_float32():
    x = jnp.ones((1, 140_000))
    f = ja.int8(lambda p, x: x @ x.T, attention=True)
    near(f({}, x), np.full((1, 1), 140_000.0))
    assert lowering_of(f, {}, x) == [("-", "its sum may exceed int32")]


def test_weights_alone_do_not_overflow_float16():
    q, x = ja.quantize({"w": jnp.full((2048, 4), 1.0)}, "w"), jnp.ones((2, 2048), jnp.float16)
    f = ja.int8(lambda p, x: x @ p["w"].astype(jnp.float16), activations="none")
    np.testing.assert_allclose(np.asarray(f(q, x), np.float64), 2048, rtol=1e-3)
    kernel = ja.quantize({"w": jnp.full((1, 1, 2048, 4), 1.0)}, "w")
    g = ja.int8(lambda p, x: convolve({"padding": "SAME"})(x, p["w"].astype(jnp.float16)), activations="none")
    np.testing.assert_allclose(np.asarray(g(kernel, x[:, None, None]), np.float64), 2048, rtol=1e-3)


@pytest.mark.parametrize(("kind", "mode"), thinned(3, WEIGHTS, MODES))
def test_strict_promotion_of_dtypes_is_no_obstacle(kind, mode):
    _, f, w, x, _ = one_parameter("x @ w")
    for dtype in (jnp.float32, jnp.bfloat16):
        q = ja.quantize({"w": w.astype(dtype)}, "w", **WEIGHTS[kind])
        with jax.numpy_dtype_promotion("strict"):
            options = mode_options(mode, f, {"w": w.astype(dtype)}, x.astype(dtype))
            assert ja.int8(f, **options)(q, x.astype(dtype)).dtype == dtype
