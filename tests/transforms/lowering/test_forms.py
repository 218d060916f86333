"""Every form of a convolution or pooling computes what XLA's own does, whatever its shapes: values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

import jaxaccel as ja
from jaxaccel.transforms.lowering.base import XLA
from jaxaccel.transforms.lowering.choose import LOWERINGS, choose, compute, list_forms

# Most of the time goes to compiling the reference.
few = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
many = settings(few, max_examples=20)
LAYOUTS = {
    1: [("NHC", "HIO", "NHC"), ("NCH", "OIH", "NCH")],
    2: [
        ("NHWC", "HWIO", "NHWC"),
        ("NCHW", "OIHW", "NCHW"),
        ("NHWC", "HWIO", "NCHW"),
        ("CHWN", "IHWO", "HWNC"),
    ],
    3: [("NDHWC", "DHWIO", "NDHWC")],
}


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def equation(f, *args):
    """The last operation that has forms in the program of `f`."""
    return [e for e in jax.make_jaxpr(f)(*args).eqns if e.primitive.name in LOWERINGS][-1]


def check_forms(eqn, tolerance=1e-4):
    """All forms of an equation on random operands; the forms that it has."""
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    # Few different values, so that windows hold equal ones.
    pooled = eqn.primitive.name != "conv_general_dilated"
    operands = [normal(s.shape, i, s.dtype) for i, s in enumerate(shapes)]
    operands = [jnp.round(x) if pooled else x for x in operands]
    want = eqn.primitive.bind(*operands, **eqn.params)
    found = list_forms(eqn.primitive.name, eqn.params, shapes)
    for form in found[1:]:
        got = jax.jit(lambda *x, form=form: compute(eqn.primitive.name, eqn.params, x, form))(*operands)
        assert got.shape == want.shape and got.dtype == want.dtype, form
        scale = np.abs(np.asarray(want, np.float32)).max(initial=1)
        np.testing.assert_allclose(
            np.asarray(got, np.float32), np.asarray(want, np.float32), atol=tolerance * scale, err_msg=form
        )
    return found


@st.composite
def convolutions(draw):
    """(function of inputs and weights, their shapes)."""
    dims = draw(st.integers(1, 3))
    layout = draw(st.sampled_from(LAYOUTS[dims]))
    axes = sorted(set(layout[0]) - set("NC"))

    def fuse_steps(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    channels, features = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    groups = draw(st.sampled_from([1, channels]))
    # Sixteen examples: the gradient by the weights can be cut into pieces.
    lhs = {
        "N": draw(st.sampled_from([0, 1, 2, 16, 16])),
        "C": channels,
        **dict(zip(axes, fuse_steps(2, 7), strict=True)),
    }
    rhs = {
        "I": channels // groups,
        "O": features * groups,
        **dict(zip(axes, fuse_steps(1, 3), strict=True)),
    }
    uneven = tuple(zip(fuse_steps(-1, 2), fuse_steps(-1, 2), strict=True))
    padding = draw(st.sampled_from(["SAME", "VALID", uneven]))
    options = {
        "window_strides": fuse_steps(1, 3),
        "padding": padding,
        "lhs_dilation": fuse_steps(1, 2) if padding is uneven else (1,) * dims,
        "rhs_dilation": fuse_steps(1, 2),
        "feature_group_count": groups,
        "dimension_numbers": layout,
    }
    shapes = tuple(lhs[a] for a in layout[0]), tuple(rhs[a] for a in layout[1])
    return lambda x, w: lax.conv_general_dilated(x, w, **options), shapes


@many
@given(convolutions())
def test_convolutions_and_their_gradients(drawn):
    f, shapes = drawn
    x, w = (jnp.zeros(shape) for shape in shapes)
    y = jax.eval_shape(f, x, w)
    check_forms(equation(f, x, w))
    if 0 in y.shape or 0 in x.shape:
        return  # JAX itself cannot always differentiate what is empty
    g = jnp.zeros(y.shape)
    check_forms(equation(lambda w, g: jax.vjp(lambda x: f(x, w), x)[1](g)[0], w, g))
    check_forms(equation(lambda x, g: jax.vjp(lambda w: f(x, w), w)[1](g)[0], x, g))


@st.composite
def poolings(draw):
    """(window, strides, padding, dilation) of an array, and its shape."""
    shape = (
        draw(st.integers(1, 2)),
        draw(st.integers(2, 9)),
        draw(st.integers(2, 9)),
        draw(st.integers(1, 3)),
    )
    window = (1, draw(st.integers(1, 3)), draw(st.integers(1, 3)), 1)
    strides = draw(st.sampled_from([window, (1, 1, 2, 1), (1, 2, 2, 1), (1, 3, 1, 1)]))
    padding = draw(st.sampled_from(["SAME", "VALID", ((0, 0), (1, 0), (0, 1), (0, 0))]))
    return (window, strides, padding), shape


@few
@given(poolings())
def test_poolings_and_their_gradients(drawn):
    config, shape = drawn
    x = jnp.zeros(shape)
    for start, combine in ((-jnp.inf, lax.max), (0.0, lax.add)):

        def f(x, start=start, combine=combine):
            return lax.reduce_window(x, start, combine, *config)

        y = jax.eval_shape(f, x)
        check_forms(equation(f, x))
        if 0 not in y.shape:
            gradient = equation(lambda x, g, f=f: jax.vjp(f, x)[1](g)[0], x, jnp.zeros(y.shape))
            check_forms(gradient)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types_keep_their_dtype(dtype):
    x, w = jnp.zeros((2, 4, 6, 6), dtype), jnp.zeros((8, 4, 3, 3), dtype)
    found = check_forms(equation(lambda x, w: lax.conv(x, w, (1, 1), "SAME"), x, w), 0.03)
    assert len(found) > 1

    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    check_forms(equation(pool, x), 0)


def test_what_has_no_other_form_is_left_alone():
    integers = jnp.zeros((1, 4, 4, 8), jnp.int8), jnp.zeros((3, 3, 8, 8), jnp.int8)
    numbers = ("NHWC", "HWIO", "NHWC")

    def f(x, w, **options):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, **options)

    assert check_forms(equation(f, *integers)) == ["xla"]
    grouped = normal((1, 4, 4, 8)), normal((3, 3, 4, 8))
    assert check_forms(equation(lambda x, w: f(x, w, feature_group_count=2), *grouped)) == ["xla"]
    batches = normal((4, 4, 4, 8)), normal((3, 3, 8, 8))
    assert check_forms(equation(lambda x, w: f(x, w, batch_group_count=2), *batches)) == ["xla"]
    assert check_forms(equation(f, normal((0, 4, 4, 8)), normal((3, 3, 8, 8)))) == ["xla"]
    dilated = equation(
        lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 1), "VALID", base_dilation=(2, 2)),
        normal((4, 4)),
    )
    assert check_forms(dilated) == ["xla"]


@pytest.mark.parametrize("channels", [(3, 5), (5, 3)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [8, 47, 64])  # one block, blocks that must be filled up, and even ones
def test_the_gradient_of_a_window_of_1_by_its_weights_is_a_product_of_blocks(size, batch, channels):
    x, w = normal((batch, size, size, channels[0])), normal((1, 1, *channels))
    numbers = ("NHWC", "HWIO", "NHWC")

    def f(w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

    eqn = equation(lambda g: jax.vjp(f, w)[1](g)[0], jnp.zeros((batch, size, size, channels[1])))
    assert "row blocks" in check_forms(eqn)
    shapes = [v.aval for v in eqn.invars]
    assert choose(eqn.primitive.name, eqn.params, shapes)[0] == "row blocks"


def test_a_gradient_by_weights_transposes_no_whole_activation():
    shapes = [(8, 56, 56, 64), (1, 1, 64, 32), (8, 56, 56, 32)]

    def gradient(x, w, g):
        def f(w):
            numbers = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(jax.nn.relu(x), w, (1, 1), "SAME", dimension_numbers=numbers)

        return jax.vjp(f, w)[1](g)[0]

    assert largest_moved(gradient, shapes) == 8 * 56 * 56 * 64
    assert largest_moved(ja.retarget(gradient), shapes) <= 64 * 32


def test_a_gradient_by_the_weights_of_a_dense_layer_transposes_the_narrower_activation():
    shapes = [(4, 128, 64), (64, 256), (4, 128, 256)]

    def gradient(x, w, g):
        return jax.vjp(lambda w: jax.nn.relu(x) @ w, w)[1](g)[0]

    assert largest_moved(gradient, shapes) == 4 * 128 * 256
    assert largest_moved(ja.retarget(gradient), shapes) == 4 * 128 * 64


def largest_moved(f, shapes):
    """Elements of the largest array that the compiled program copies or transposes."""
    text = jax.jit(f).lower(*(jnp.zeros(shape) for shape in shapes)).compile().as_text()
    found = re.findall(r" = f32\[([\d,]+)\]\S* (?:copy|transpose)\(", text)
    return max((np.prod([int(n) for n in dims.split(",")]) for dims in found), default=0)


@pytest.mark.parametrize(
    ("lhs", "rhs", "contracting", "swaps"),
    [
        ((6, 5), (6, 3), ((0,), (0,)), True),
        ((2, 6, 5), (2, 6, 3), ((0, 1), (0, 1)), True),
        ((2, 6, 5, 4), (2, 6, 3), ((1, 0), (1, 0)), True),
        ((6, 5), (6, 3, 2), ((0,), (0,)), False),  # the narrower one is first already
        ((6, 5), (6, 1), ((0,), (0,)), False),  # a vector
        ((5, 6), (6, 3), ((1,), (0,)), False),
        ((2, 6, 5), (6, 2, 3), ((0, 1), (1, 0)), False),
    ],
)
def test_products_that_sum_over_rows(lhs, rhs, contracting, swaps):
    def f(x, y):
        precision = (lax.Precision.HIGHEST, lax.Precision.DEFAULT)
        return lax.dot_general(x, y, (contracting, ((), ())), precision, jnp.float32)

    eqn = equation(f, jnp.zeros(lhs), jnp.zeros(rhs))
    assert check_forms(eqn) == (["xla", "swapped"] if swaps else ["xla"])
    assert (choose("dot_general", eqn.params, [v.aval for v in eqn.invars])[0] == "swapped") == swaps


def test_batches_of_products_have_no_other_form():
    def f(x, y):
        return lax.dot_general(x, y, (((1,), (1,)), ((0,), (0,))))

    assert check_forms(equation(f, jnp.zeros((2, 6, 5)), jnp.zeros((2, 6, 3)))) == ["xla"]


def test_a_dense_layer_and_its_gradients_of_two_orders():
    x, w, v = normal((8, 6, 3)), normal((3, 5), 1), normal((3, 5), 2)

    def gradient(w, x):
        return jax.grad(lambda w: jnp.sum(jnp.sin(x @ w)))(w)

    changed = ja.retarget(gradient, backend="cpu")
    np.testing.assert_allclose(changed(w, x), gradient(w, x), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(changed)(w, x), gradient(w, x), rtol=1e-5)
    found, wanted = (jax.jvp(lambda w, f=f: f(w, x), (w,), (v,))[1] for f in (changed, gradient))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    several = jnp.stack([x, -x])
    np.testing.assert_allclose(
        jax.vmap(changed, (None, 0))(w, several), jax.vmap(gradient, (None, 0))(w, several), rtol=1e-5
    )


def test_shapes_that_are_symbolic_have_no_other_form():
    (size,) = jax.export.symbolic_shape("size")

    def f(x, y):
        return lax.dot_general(x, y, (((0,), (0,)), ((), ())))

    shapes = (jax.ShapeDtypeStruct((8, size), jnp.float32), jax.ShapeDtypeStruct((8, 3), jnp.float32))
    exported = jax.export.export(jax.jit(ja.retarget(f, backend="cpu")))(*shapes)
    x, y = normal((8, 5)), normal((8, 3), 1)
    np.testing.assert_allclose(exported.call(x, y), f(x, y), rtol=1e-5)


@pytest.mark.parametrize(("size", "pieces"), [(16, True), (4, False)])
def test_gradients_by_weights_are_made_of_pieces_that_are_worth_it(size, pieces):
    x, w = normal((64, size, size, 16)), normal((3, 3, 16, 8))

    def f(w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    eqn = equation(lambda g: jax.vjp(f, w)[1](g)[0], jnp.zeros((64, size, size, 8)))
    assert ("pieces" in check_forms(eqn)) == pieces
    found = choose(eqn.primitive.name, eqn.params, [v.aval for v in eqn.invars])[0]
    assert found == ("pieces" if pieces else XLA)
