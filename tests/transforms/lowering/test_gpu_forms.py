"""The forms of narrow products for GPUs: which are chosen, and that they are exact, computed on this machine's CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

import jaxaccel as ja
from jaxaccel.core.unattached import GPUS
from jaxaccel.transforms.lowering.int8_forms import choose_int8_form
from jaxaccel.transforms.lowering.matmul import multiply_flat

NHWC = ("NHWC", "HWIO", "NHWC")
CONVS = {
    "forward": ((2, 9, 9, 8), (3, 3, 8, 4), {}, "xla", ""),
    "channels that are filled up": ((2, 9, 9, 5), (3, 3, 5, 7), {}, "xla", ""),
    "one dimension": ((2, 9, 8), (3, 8, 4), {"dimension_numbers": ("NHC", "HIO", "NHC")}, "xla", ""),
    "pointwise": ((2, 5, 5, 8), (1, 1, 8, 40), {}, "matmul", ""),
    "pointwise and strided": ((2, 5, 6, 8), (1, 1, 8, 4), {"window_strides": (2, 2)}, "matmul", ""),
    "stem": ((2, 16, 16, 3), (7, 7, 3, 8), {"window_strides": (2, 2)}, "space to depth", ""),
    "patches": (
        (2, 16, 16, 3),
        (8, 8, 3, 8),
        {"window_strides": (8, 8), "padding": "VALID"},
        "space to depth",
        "",
    ),
    "the whole image": ((3, 4, 4, 8), (4, 4, 8, 6), {"padding": "VALID"}, "places", ""),
    "a window larger than the result": ((3, 7, 7, 8), (5, 5, 8, 6), {"padding": "VALID"}, "places", ""),
    "a large one": ((1, 19, 19, 2), (11, 11, 2, 3), {"padding": "VALID"}, "float32", "gradient by weights"),
    "dilated": ((1, 9, 9, 8), (3, 3, 8, 4), {"rhs_dilation": (2, 2)}, "float32", "dilated"),
    "transposed": (
        (1, 4, 4, 8),
        (3, 3, 8, 4),
        {"padding": ((2, 1), (2, 1)), "lhs_dilation": (2, 2)},
        "float32",
        "transposed",
    ),
    "grouped": ((1, 5, 5, 8), (3, 3, 2, 12), {"feature_group_count": 4}, "float32", "49123"),
    "patches of three dimensions": (
        (1, 4, 16, 16, 3),
        (2, 4, 4, 3, 4),
        {"window_strides": (2, 4, 4), "padding": "VALID", "dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")},
        "float32",
        "3-D",
    ),
    "three dimensions": (
        (1, 4, 5, 4, 8),
        (2, 3, 2, 8, 4),
        {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")},
        "float32",
        "3-D",
    ),
}


def convolve(options, x, w):
    options = {
        "window_strides": (1,) * (x.ndim - 2),
        "padding": "SAME",
        "dimension_numbers": NHWC,
    } | options
    return jax.lax.conv_general_dilated(x, w, **options)


@pytest.mark.parametrize("x, w, options, form, why", CONVS.values(), ids=CONVS)
def test_the_form_of_a_convolution(x, w, options, form, why):
    (eqn,) = jax.make_jaxpr(partial(convolve, options))(jnp.zeros(x), jnp.zeros(w)).eqns
    found, reason = choose_int8_form(eqn.params, *(v.aval for v in eqn.invars), "gpu", "int8")
    assert found == form and why in reason


@pytest.mark.parametrize("x, w, options, form, why", CONVS.values(), ids=CONVS)
def test_a_convolution_has_the_values_of_its_quantized_operands(x, w, options, form, why):
    keys = jax.random.split(jax.random.key(0))
    x, params = jax.random.normal(keys[0], x), {"kernel": jax.random.normal(keys[1], w)}

    def f(params, x):
        return convolve(options, x, params["kernel"])

    q = ja.quantize(params)
    got = ja.int8(f, calibration=ja.calibrate(f, params, [x]), backend="gpu")(q, x)
    scale = np.abs(x).max() / 127
    rounded = np.round(np.asarray(x, np.float64) / scale) * scale if form != "float32" else x
    want = convolve(options, jnp.asarray(rounded, jnp.float32), q["kernel"].materialize())
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_kernels_that_are_mapped_make_a_grouped_convolution_in_float32():
    x, kernels = jax.random.normal(jax.random.key(0), (3, 2, 9, 9, 8)), jnp.ones((3, 3, 3, 8, 4))

    def f(params, x):
        return convolve({}, x, params["kernel"])

    q = jax.vmap(ja.quantize)({"kernel": kernels})
    mapped = jax.vmap(ja.int8(f, backend="gpu"))
    want = jax.vmap(ja.int8(f, lowering="int8", backend="cpu"))(q, x)
    np.testing.assert_allclose(mapped(q, x), want, rtol=1e-5, atol=1e-4)
    program = jax.jit(mapped).lower(q, x).as_text()
    assert "feature_group_count = 3" in program and "xi8>) -> tensor<2x9x9x12" not in program


PRODUCTS = {
    "matrices": ("ab,bc->ac", (5, 7), (7, 3)),
    "a transposed one": ("ab,cb->ac", (5, 7), (3, 7)),
    "heads to be joined": ("bhtd,hdw->btw", (2, 3, 5, 4), (3, 4, 6)),
    "heads to be made": ("btw,whd->bthd", (2, 5, 6), (6, 3, 4)),
    "batched": ("eab,ebc->eac", (2, 5, 7), (2, 7, 3)),
    "two batch axes, anywhere": ("aefb,fbec->efac", (5, 2, 3, 7), (3, 7, 2, 4)),
    "a vector": ("a,ab->b", (7,), (7, 3)),
    "an inner product": ("a,a->", (7,), (7,)),
    "an outer product": ("a,b->ab", (4,), (3,)),
    "no rows": ("ab,bc->ac", (0, 7), (7, 3)),
    "an empty sum": ("ab,bc->ac", (5, 0), (0, 3)),
}


@pytest.mark.parametrize("written", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("subscripts, lhs, rhs", PRODUCTS.values(), ids=PRODUCTS)
def test_flat_products_are_exact(subscripts, lhs, rhs, written):
    rng = np.random.default_rng(0)
    pair = [rng.integers(-127, 128, shape).astype(np.int8) for shape in (lhs, rhs)]
    einsum = partial(jnp.einsum, subscripts, preferred_element_type=jnp.int32)
    program = jax.make_jaxpr(einsum)(*pair)
    inner = [e for e in jax.tree.leaves(program.jaxpr.eqns) if e.primitive.name == "dot_general"]
    nested = [e.params["jaxpr"] for e in program.jaxpr.eqns if "jaxpr" in e.params]
    (eqn,) = inner or [e for j in nested for e in j.jaxpr.eqns if e.primitive.name == "dot_general"]
    numbers, order = eqn.params["dimension_numbers"], [v.aval.shape for v in eqn.invars]
    pair = pair if order == [lhs, rhs] else pair[::-1]
    got = multiply_flat(jax.lax.dot_general_p, eqn.params, *map(jnp.asarray, pair), written)
    want = jax.lax.dot_general(*(x.astype(np.int32) for x in pair), numbers)
    np.testing.assert_array_equal(got, want)


QUANTIZABLE = {name: case for name, case in PRODUCTS.items() if len(case[2]) > 1 and 0 not in case[2]}


@pytest.mark.parametrize("subscripts, lhs, rhs", QUANTIZABLE.values(), ids=QUANTIZABLE)
def test_int8_of_a_gpu_has_the_bits_of_int8_of_a_cpu(subscripts, lhs, rhs):
    keys = jax.random.split(jax.random.key(0))
    x, w = jax.random.normal(keys[0], lhs), jax.random.normal(keys[1], rhs)

    def f(params, x):
        return jnp.einsum(subscripts, x, params["w"])

    q = ja.quantize({"w": w}, where="w")
    np.testing.assert_array_equal(ja.int8(f, backend="gpu")(q, x), ja.int8(f, backend="cpu")(q, x))


def on(name):
    """A mesh of one GPU that need not be attached."""
    device = AbstractDevice(device_kind=GPUS[name].name, num_cores=None, platform="cuda")
    mesh = AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize(
    "gpu, bfloat16, float8",
    [("t4", False, False), ("a100", True, False), ("l4", True, True), ("h100", True, True)],
)
def test_a_gpu_without_units_keeps_float32(gpu, bfloat16, float8):
    params, x = {"w": jnp.ones((8, 4))}, jnp.ones((2, 8))

    def f(params, x):
        return x @ params["w"]

    def become(transformed):
        (row,) = ja.explain(transformed, params, x).rows
        return row["after"], row["reason"]

    with on(gpu):
        left = ("float32", "this GPU has no units for bfloat16, but for float16")
        assert become(ja.bfloat16(f)) == (("bfloat16", "") if bfloat16 else left)
        assert become(ja.bfloat16(f, lowering="bfloat16")) == ("bfloat16", "")
        assert become(ja.float16(f)) == ("float16", "")
        if float8:
            assert become(ja.float8(f)) == ("float8", "")
        else:
            with pytest.raises(ja.UserError, match="no float8 products on this gpu"):
                become(ja.float8(f))


def test_training_in_int8_leaves_to_float32_what_cudnn_has_not():
    keys = jax.random.split(jax.random.key(0))
    x, w = jax.random.normal(keys[0], (2, 8, 8, 8)), jax.random.normal(keys[1], (3, 3, 8, 4))

    def loss(options, backend, w, x):
        def f(params, x):
            return convolve(options, x, params["w"])

        g = ja.int8(f, train=True, key=jax.random.key(1), backend=backend)
        return (g({"w": w}, x) ** 2).sum()

    for options in ({}, {"window_strides": (2, 2)}, {"feature_group_count": 2}):
        kernel = w[:, :, :4] if "feature_group_count" in options else w
        gradient = jax.jit(jax.grad(partial(loss, options, "gpu"), argnums=(0, 1)))
        exact = jax.grad(lambda w, x, o=options: (convolve(o, x, w) ** 2).sum(), argnums=(0, 1))(kernel, x)
        for got, want in zip(gradient(kernel, x), exact, strict=True):
            assert float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)) < 0.03
        text = gradient.lower(kernel, x).as_text()
        convolutions = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        narrow = [line for line in convolutions if "i8>" in line]
        assert all("lhs_dilate = [2" not in line for line in narrow)
        assert all("feature_group_count = 1 " in line for line in narrow)
        assert len(narrow) == {"": 2, "window_strides": 1, "feature_group_count": 0}["".join(options)]
