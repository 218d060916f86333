"""int8 x int8 -> int32 is exact: bit-equal to NumPy's integers, in every form of product, on extreme inputs too."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned

import jaxaccel as ja
from jaxaccel.core.arrays import QuantArray
from jaxaccel.transforms import int8_products
from jaxaccel.transforms.lowering import convolution
from jaxaccel.transforms.lowering.int8_forms import IntegerProduct, choose_int8_form

DOTS = {
    "matrix": ((5, 7), (7, 3), (((1,), (0,)), ((), ()))),
    "transposed": ((7, 5), (3, 7), (((0,), (1,)), ((), ()))),
    "vector": ((7,), (7, 3), (((0,), (0,)), ((), ()))),
    "inner": ((7,), (7,), (((0,), (0,)), ((), ()))),
    "outer": ((4,), (3,), (((), ()), ((), ()))),
    "batched": ((2, 5, 7), (2, 7, 3), (((2,), (1,)), ((0,), (0,)))),
    "batch axes anywhere": ((5, 2, 7), (7, 3, 2), (((2,), (0,)), ((1,), (2,)))),
    "two batch axes": ((2, 3, 5, 7), (3, 2, 7, 4), (((3,), (2,)), ((0, 1), (1, 0)))),
    "two sums": ((5, 2, 7), (7, 2, 3), (((1, 2), (1, 0)), ((), ()))),
    "long sum": ((3, 4096), (4096, 2), (((1,), (0,)), ((), ()))),
    "row": ((1, 7), (7, 3), (((1,), (0,)), ((), ()))),
    "column": ((5, 7), (7, 1), (((1,), (0,)), ((), ()))),
    "rows in a batch": ((2, 1, 7), (7, 3, 2), (((2,), (0,)), ((0,), (2,)))),
    "columns in a batch": ((5, 2, 7), (7, 2), (((2,), (0,)), ((1,), (1,)))),
    "empty": ((0, 7), (7, 3), (((1,), (0,)), ((), ()))),
    "empty sum": ((4, 0), (0, 3), (((1,), (0,)), ((), ()))),
}
NHWC = ("NHWC", "HWIO", "NHWC")
CONVS = {
    "same": ((2, 6, 6, 8), (3, 3, 8, 4), NHWC, {"padding": "SAME"}),
    "strided": ((2, 7, 6, 8), (3, 3, 8, 40), NHWC, {"padding": "SAME", "window_strides": (2, 3)}),
    "dilated": ((1, 9, 9, 8), (3, 3, 8, 4), NHWC, {"padding": "VALID", "rhs_dilation": (2, 3)}),
    "transposed": ((1, 4, 5, 8), (3, 3, 8, 4), NHWC, {"padding": ((2, 2), (1, 2)), "lhs_dilation": (2, 3)}),
    "grouped": ((1, 5, 5, 8), (3, 3, 2, 12), NHWC, {"padding": "SAME", "feature_group_count": 4}),
    "depthwise": ((1, 5, 5, 6), (3, 3, 1, 6), NHWC, {"padding": "SAME", "feature_group_count": 6}),
    "batch groups": ((4, 5, 5, 3), (3, 3, 3, 4), NHWC, {"padding": "SAME", "batch_group_count": 2}),
    "pointwise": ((2, 5, 5, 8), (1, 1, 8, 40), NHWC, {"padding": "VALID"}),
    "pointwise and strided": (
        (2, 5, 6, 8),
        (1, 1, 8, 4),
        NHWC,
        {"padding": "VALID", "window_strides": (2, 2)},
    ),
    "negative padding": ((1, 8, 8, 8), (3, 3, 8, 4), NHWC, {"padding": ((-1, 0), (1, -2))}),
    "NCHW": ((2, 8, 6, 5), (4, 8, 3, 3), ("NCHW", "OIHW", "NCHW"), {"padding": "SAME"}),
    "mixed layouts": ((2, 8, 6, 5), (3, 3, 8, 33), ("NCHW", "HWIO", "NHWC"), {"padding": "SAME"}),
    "1-D": ((2, 9, 8), (3, 8, 4), ("NHC", "HIO", "NHC"), {"padding": "SAME", "window_strides": (2,)}),
    "3-D": ((1, 4, 5, 4, 8), (2, 3, 2, 8, 4), ("NDHWC", "DHWIO", "NDHWC"), {"padding": "SAME"}),
    "stem": ((1, 9, 9, 3), (5, 5, 3, 32), NHWC, {"padding": "SAME", "window_strides": (2, 2)}),
    "empty batch": ((0, 5, 5, 8), (3, 3, 8, 4), NHWC, {"padding": "SAME"}),
}


def integers(shape, kind, seed):
    rng = np.random.default_rng(seed)
    if kind == "random":
        return rng.integers(-127, 128, shape).astype(np.int8)
    return (
        rng.choice(np.array([-127, 127], np.int8), shape)
        if kind == "extreme"
        else np.full(shape, 127, np.int8)
    )


def numpy_dot(a, b, numbers):
    letters = "abcdefghijkl"
    (contracted, batch), left = numbers, list(letters[: a.ndim])
    right = [""] * b.ndim
    for i, j in itertools.chain(zip(*contracted, strict=True), zip(*batch, strict=True)):
        right[j] = left[i]
    fresh = iter("mnopqr")
    right = [letter or next(fresh) for letter in right]
    out = [left[i] for i in batch[0]]
    out += [x for i, x in enumerate(left) if i not in (*contracted[0], *batch[0])]
    out += [x for j, x in enumerate(right) if j not in (*contracted[1], *batch[1])]
    return np.einsum(
        f"{''.join(left)},{''.join(right)}->{''.join(out)}", a.astype(np.int64), b.astype(np.int64)
    )


def numpy_conv(x, w, params):
    """By the definition: features first, zeros put in, then one shifted product for each tap of the window."""
    numbers = params["dimension_numbers"]
    x = x.transpose(numbers.lhs_spec).astype(np.int64)
    w = w.transpose(numbers.rhs_spec).astype(np.int64)
    ndim = x.ndim - 2
    for axis, d in enumerate(params["lhs_dilation"]):
        wide = np.zeros([(n - 1) * d + 1 if k == axis + 2 else n for k, n in enumerate(x.shape)], np.int64)
        wide[(slice(None),) * (axis + 2) + (slice(None, None, d),)] = x
        x = wide
    for axis, (low, high) in enumerate(params["padding"]):
        x = np.pad(x, [(max(low, 0), max(high, 0)) if k == axis + 2 else (0, 0) for k in range(x.ndim)])
        cut = slice(max(-low, 0), x.shape[axis + 2] - max(-high, 0))
        x = x[(slice(None),) * (axis + 2) + (cut,)]
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], params["rhs_dilation"], strict=True)]
    sizes = [
        (n - s) // stride + 1
        for n, s, stride in zip(x.shape[2:], spans, params["window_strides"], strict=True)
    ]
    groups, batches = params["feature_group_count"], params["batch_group_count"]
    out = np.zeros((x.shape[0] // batches, w.shape[0], *sizes), np.int64)
    per_group, inputs = w.shape[0] // max(groups, batches), w.shape[1]
    for tap in np.ndindex(*w.shape[2:]):
        shifted = x
        for axis in range(ndim):
            start = tap[axis] * params["rhs_dilation"][axis]
            stop = start + (sizes[axis] - 1) * params["window_strides"][axis] + 1
            step = params["window_strides"][axis]
            shifted = shifted[(slice(None),) * (axis + 2) + (slice(start, stop, step),)]
        for o in range(w.shape[0]):
            group = o // per_group
            rows = shifted[:, group * inputs : (group + 1) * inputs] if groups > 1 else shifted
            if batches > 1:
                rows = rows[group * out.shape[0] : (group + 1) * out.shape[0]]
            out[:, o] += np.tensordot(rows, w[(o, slice(None), *tap)], axes=(1, 0))
    back = np.argsort(numbers.out_spec)
    return out.transpose(back)


def conv_eqn(shapes, numbers, options):
    options = {"window_strides": (1,) * (len(shapes[0]) - 2), **options}

    def f(x, w):
        return jax.lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)

    (eqn,) = jax.make_jaxpr(f)(*(jnp.zeros(shape, jnp.int8) for shape in shapes)).eqns
    return eqn


def bind_of(eqn):
    return lambda *values, **changed: eqn.primitive.bind(*values, **{**eqn.params, **changed})


@pytest.mark.parametrize(("form", "kind"), thinned(2, DOTS, ["random", "extreme", "largest"]))
def test_matrix_products(form, kind):
    left, right, numbers = DOTS[form]
    a, b = integers(left, kind, 0), integers(right, kind, 1)
    want = numpy_dot(a, b, numbers)

    def plain(a, b):
        return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.int32)

    def lowered(a, b):
        (eqn,) = jax.make_jaxpr(plain)(a, b).eqns
        return IntegerProduct("cpu")(eqn.primitive, eqn.params, a, b)

    for f in (plain, lowered):
        got = jax.jit(f)(a, b)
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("transpose", [False, True])
def test_a_vector_is_multiplied_as_two_rows_unless_vmap_makes_a_matrix_of_it(transpose):
    w, x = integers((8, 6), "random", 0), np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    q = QuantArray(jnp.asarray(w), jnp.ones((1, 6), jnp.float32))

    def f(q, x):
        return q.T @ x if transpose else x @ q

    def shapes(g, *args):
        text = jax.jit(g).lower(*args).as_text()
        return sorted(re.findall(r"tensor<([\dx]+)xi8>", re.findall(r"stablehlo.dot_general.*", text)[0]))

    one, many = ja.int8(f, backend="cpu"), jax.vmap(ja.int8(f, backend="cpu"), (None, 0))
    assert any("2" in shape.split("x") for shape in shapes(one, q, x[0]))
    assert any("5" in shape.split("x") for shape in shapes(many, q, x))
    np.testing.assert_allclose(many(q, x), np.stack([one(q, row) for row in x]), rtol=1e-6)
    assert not any("2" in shape.split("x") for shape in shapes(ja.int8(f, backend="gpu"), q, x[0]))


def forms(conv):
    """All that it has but XLA's own."""
    lhs, rhs, numbers, options = CONVS[conv]
    eqn = conv_eqn((lhs, rhs), numbers, options)
    yield from convolution.list_forms(eqn.params, lhs, rhs, integers=True)[1:]


LOWERED = [(conv, form) for conv in CONVS for form in forms(conv)]


@pytest.mark.parametrize(("conv", "form", "kind"), thinned(3, LOWERED, ["random", "extreme"]))
def test_convolutions_in_every_lowering(conv, form, kind):
    lhs, rhs, numbers, options = CONVS[conv]
    eqn = conv_eqn((lhs, rhs), numbers, options)
    x, w = integers(lhs, kind, 0), integers(rhs, kind, 1)
    params = {**eqn.params, "preferred_element_type": jnp.dtype("int32"), "precision": None}
    got = jax.jit(lambda x, w: convolution.convolve(params, (x, w), form))(x, w)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, numpy_conv(x, w, eqn.params))


@pytest.mark.parametrize("form", DOTS)
def test_scales_meet_the_right_axes_of_matrix_products(form):
    left, right, numbers = DOTS[form]
    params = {"dimension_numbers": numbers}
    pair, dense = [], []
    for operand, shape in enumerate((left, right)):
        shared = int8_products.shared_axes("dot_general", params, operand, len(shape))
        sizes = [1 if axis in shared else n for axis, n in enumerate(shape)]
        scale = np.random.default_rng(operand).uniform(0.5, 2, sizes).astype(np.float32)
        q = integers(shape, "random", operand)
        pair.append(QuantArray(jnp.asarray(q), jnp.asarray(scale)))
        dense.append(q * scale.astype(np.float64))

    def bind(*values, **changed):
        return jax.lax.dot_general(*values, numbers, preferred_element_type=changed["preferred_element_type"])

    got = int8_products.multiply_integers("dot_general", params, bind, *pair)
    want = jax.lax.dot_general(*map(np.float32, dense), numbers, precision="highest")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=0.5)


@pytest.mark.parametrize("conv", CONVS)
def test_scales_meet_the_right_axes_of_convolutions(conv):
    lhs, rhs, numbers, options = CONVS[conv]
    eqn = conv_eqn((lhs, rhs), numbers, options)
    pair, dense = [], []
    for operand, shape in enumerate((lhs, rhs)):
        shared = int8_products.shared_axes("conv_general_dilated", eqn.params, operand, len(shape))
        sizes = [1 if axis in shared else n for axis, n in enumerate(shape)]
        scale = np.random.default_rng(operand).uniform(0.5, 2, sizes).astype(np.float32)
        q = integers(shape, "random", operand)
        pair.append(QuantArray(jnp.asarray(q), jnp.asarray(scale)))
        dense.append(jnp.asarray(q * scale))
    got = int8_products.multiply_integers("conv_general_dilated", eqn.params, bind_of(eqn), *pair)
    want = bind_of(eqn)(*dense, preferred_element_type=None)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=0.5)


def test_a_grouped_convolution_is_not_given_to_a_gpu_as_int8():
    eqn = conv_eqn(CONVS["grouped"][:2], NHWC, CONVS["grouped"][3])
    form, reason = choose_int8_form(eqn.params, *(x.aval for x in eqn.invars), "gpu", "int8")
    assert form == "float32" and "wrong" in reason
