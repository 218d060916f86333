"""bfloat16 and float16: what becomes narrow, what stays, the derivatives of products, and loss scaling."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from grids import slow_but
from jax.test_util import check_grads

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core import sites
from jaxaccel.core.interpret import Transformation, transform
from jaxaccel.models.adapter import as_model
from jaxaccel.transforms import LossScaleState

# LLVM's optimizations are most of the compile time and see nothing that differs.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
NARROW = {"bfloat16": (ja.bfloat16, "bf16", 0.02), "float16": (ja.float16, "f16", 0.003)}


def normal(*shape, seed=0, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def operations(f, *args):
    """Of every line of the StableHLO of `f`: (operation, element types of operands, and of results)."""
    text = jax.jit(f).lower(*args).as_text()
    found = re.findall(r"(?:stablehlo|chlo)\.(\w+)(.*)", text)
    return [
        (name, *(re.findall(r"(?:x|<)([a-z]+\d+\w*)>", part) for part in _split(rest)))
        for name, rest in found
    ]


def _split(rest):
    """What stands left and right of the last arrow, or all of it twice where operands and results are alike."""
    left, arrow, right = rest.rpartition("->")
    return (left, right) if arrow else (rest, rest)


def products(f, *args):
    return [
        (tuple(sorted(set(operands))), *set(results))
        for name, operands, results in operations(f, *args)
        if name in ("dot_general", "convolution")
    ]


def assert_near(got, wanted, tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
        assert error <= tolerance, error


PARAMS = {"a": normal(16, 24, scale=0.25), "b": normal(24, 8, seed=1, scale=0.2)}
X = normal(6, 16, seed=2)


def mlp(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


def loss(f):
    return lambda params, x: jnp.sum(f(params, x) ** 2)


def attention(params, x):
    q, k, v = (jnp.einsum("btd,dhe->bthe", x, params[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bthe,bshe->bhts", q, k))
    return jnp.einsum("bthe,hed->btd", jnp.einsum("bhts,bshe->bthe", weights, v), params["o"])


HEADS = {name: normal(8, 2, 4, seed=i, scale=0.5) for i, name in enumerate("qkv")} | {
    "o": normal(2, 4, 8, scale=0.5)
}
TOKENS = normal(3, 5, 8, seed=9)


# What is narrow in the program.


@pytest.mark.parametrize(("f", "params", "x", "count"), [(mlp, PARAMS, X, 2), (attention, HEADS, TOKENS, 6)])
@pytest.mark.parametrize("name", NARROW)
def test_products_have_narrow_operands_and_float32_results(name, f, params, x, count):
    t, element, tolerance = NARROW[name]
    assert products(t(f), params, x) == [((element,), "f32")] * count
    gradient = functools.partial(jax.grad, argnums=(0, 1))
    # Two products for each of the forward pass.
    for g in (gradient(loss(t(f))), t(gradient(loss(f))), gradient(t(loss(f)))):
        assert products(g, params, x) == [((element,), "f32")] * (3 * count)
        assert_near(jit(g)(params, x), jit(gradient(loss(f)))(params, x), 3 * tolerance)


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("name", NARROW)
def test_accelerators_round_the_result_of_a_convolution_and_nothing_else(name, backend):
    t, element, _ = NARROW[name]
    params, x = {"kernel": normal(3, 3, 4, 8), "head": normal(8, 2)}, normal(2, 5, 5, 4)

    def f(params, x):
        x = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x.mean((1, 2)) @ params["head"]

    convolution, dot = products(t(f, backend=backend, lowering=name), params, x)
    assert convolution == ((element,), "f32" if backend == "cpu" else element)
    assert dot == ((element,), "f32")


@pytest.mark.parametrize("name", NARROW)
def test_what_the_cpu_widens_is_left_in_float32(name):
    t, element, _ = NARROW[name]
    kernel, vector = normal(3, 3, 4, 8), normal(16)

    def convolve(kernel, x):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def multiply(w, x):
        return x @ w

    narrow, wide = ((element,), "f32"), (("f32",), "f32")
    on_cpu = functools.partial(t, backend="cpu")
    assert products(on_cpu(convolve), kernel, normal(2, 5, 5, 4)) == [wide]
    assert products(on_cpu(multiply), PARAMS["a"], vector) == [wide]
    assert products(t(multiply, backend="gpu"), PARAMS["a"], vector) == [narrow]
    # A model written for one example: many of them are a matrix.
    assert products(jax.vmap(on_cpu(multiply), (None, 0)), PARAMS["a"], X) == [narrow]
    (row,) = ja.explain(on_cpu(convolve), kernel, normal(2, 5, 5, 4)).rows
    assert (row["after"], row["lowering"]) == ("float32", "-") and "XLA:CPU" in row["reason"]
    (row,) = ja.explain(on_cpu(multiply), PARAMS["a"], vector).rows
    assert row["after"] == "float32" and "vector" in row["reason"]


def step_of(name):
    """A training step of a small network with BatchNorm or LayerNorm and softmax: a function of params."""
    if name == "convnet":
        shape = (8, 8, 1)
        factory = functools.partial(models.ConvNet, (4, 6), hidden=8, image_size=8, channels=1)
    else:
        shape = (8, 8, 3)
        factory = functools.partial(
            models.VisionTransformer, width=8, depth=1, heads=2, patch_size=4, image_size=8
        )
    x = normal(4, *shape)
    model = as_model(factory, {"classes": 5}, (jax.ShapeDtypeStruct(x.shape, x.dtype),))
    params, state = jax.jit(model.init)(jax.random.key(0))

    def step(params):
        def loss(params):
            logits, new = model.apply(params, state, x, key=jax.random.key(1), train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean(), new

        return jax.value_and_grad(loss, has_aux=True)(params)

    return step, params


@pytest.mark.parametrize("model", ["convnet", "vit"])
@pytest.mark.parametrize("name", NARROW)
def test_all_but_products_stays_float32(name, model):
    t, element, _ = NARROW[name]
    step, params = step_of(model)
    before, after = operations(step, params), operations(t(step, lowering=name), params)
    touched = {op for op, operands, results in after if element in (*operands, *results)}
    layout = {"convert", "transpose", "reshape", "broadcast_in_dim", "optimization_barrier"}
    assert touched <= {"dot_general", "convolution", *layout}
    for kind in ("exponential", "reduce", "rsqrt", "divide", "log", "maximum", "erf", "tanh"):
        assert sum(op == kind for op, *_ in before) == sum(op == kind for op, *_ in after)
    (value, state), _ = jax.eval_shape(t(step), params)
    assert value.dtype == jnp.float32 and all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))


@pytest.mark.parametrize("name", NARROW)
def test_carries_and_outputs_keep_their_dtypes(name):
    def f(params, x):
        def step(carry, row):
            h, count, half = carry
            h = jnp.tanh(row @ params["a"][:, :16] + h)
            return (h, count + 1, half * 2), {"h": h, "half": half}

        carry, ys = jax.lax.scan(step, (jnp.zeros(16), jnp.int32(0), jnp.ones((), jnp.float16)), x)
        return carry, ys, (x @ params["a"]).astype(jnp.bfloat16), x.astype(jnp.float16) @ params["a"]

    g = NARROW[name][0](f)
    shapes = jax.eval_shape(f, PARAMS, X)
    assert jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), jax.eval_shape(g, PARAMS, X), shapes
    )
    assert_near(g(PARAMS, X), f(PARAMS, X), 0.02)


# What is left alone.


@pytest.mark.parametrize("keep", ["b", ("a", "b"), lambda path: path == "b"])
def test_kept_parameters_are_multiplied_in_float32_backwards_too(keep):
    kept = 2 if isinstance(keep, tuple) else 1
    g = ja.bfloat16(jax.grad(loss(mlp), argnums=(0, 1)), keep=keep)
    outside = jax.grad(loss(ja.bfloat16(mlp, keep=keep)), argnums=(0, 1))
    assert sum(types == ("f32",) for types, _ in products(outside, PARAMS, X)) == 3 * kept
    # Seen from outside, the gradient of the kept weight is a product of two activations.
    assert sum(types == ("f32",) for types, _ in products(g, PARAMS, X)) == 2 * kept
    if kept == 2:
        assert_near(jit(outside)(PARAMS, X), jit(jax.grad(loss(mlp), argnums=(0, 1)))(PARAMS, X), 1e-6)


def test_a_precision_that_was_asked_for_is_kept():
    def f(params, x):
        x = jnp.matmul(x, params["a"], precision=jax.lax.Precision.HIGHEST)
        return jnp.matmul(x, params["b"], precision=("default", "high")) @ params["b"].T

    assert products(ja.bfloat16(f), PARAMS, X) == [(("f32",), "f32")] * 2 + [(("bf16",), "f32")]
    with jax.default_matmul_precision("float32"):
        assert products(ja.bfloat16(mlp), PARAMS, X) == [(("f32",), "f32")] * 2


def test_integers_and_narrow_products_are_left_alone():
    def f(i, x):
        half = x.astype(jnp.bfloat16)
        return (
            i @ i.T,
            half @ half.T,
            jnp.matmul(half, half.T, preferred_element_type=jnp.float32),
            x @ half.T,
        )

    i = jnp.arange(12).reshape(3, 4)
    assert products(ja.float16(f), i, X) == [
        (("i32",), "i32"), (("bf16",), "bf16"), (("bf16",), "f32"), (("f16",), "f32"),
    ]  # fmt: skip
    assert_near(ja.float16(f)(i, X), f(i, X), 0.01)


def test_float64_and_complex_are_left_alone():
    with jax.enable_x64(True):
        x = np.random.default_rng(0).standard_normal((4, 4))
        f = jax.jit(ja.bfloat16(lambda x: x @ x))
        assert products(f, x) == [(("f64",), "f64")]
        np.testing.assert_allclose(f(x), x @ x, rtol=1e-12)
        mixed = ja.bfloat16(lambda x: x.astype(jnp.float32) @ x.astype(jnp.float32))
        assert products(mixed, x) == [(("bf16",), "f32")]
    z = X[:4, :4] + 1j * X[:4, 4:8]
    np.testing.assert_array_equal(jit(ja.bfloat16(lambda z: z @ z))(z), jit(lambda z: z @ z)(z))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [0.0, 1e-37, 1e-20, 1.0, 100.0])
def test_float8_of_any_magnitude(size, dtype):
    """Zeros are what the first tangent of a loop and the gradient of a dead unit are."""
    w = jax.random.normal(jax.random.key(0), (16, 8), dtype)
    x = (size * jax.random.normal(jax.random.key(1), (4, 16))).astype(dtype)

    def f(w, x):
        return (x @ w).astype(jnp.float32)

    def difference(a, b):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300)

    narrow = ja.float8(f, emulate=True)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    assert difference(narrow(w, x), exact) < 0.1
    _, tangents = jax.jvp(narrow, (w, x), (jnp.zeros_like(w), jnp.ones_like(x)))
    assert difference(tangents, np.ones(x.shape) @ np.asarray(w, np.float64)) < 0.1
    gradient = jax.grad(lambda w: narrow(w, x).sum())(w)
    assert difference(gradient, np.asarray(x, np.float64).T @ np.ones(exact.shape)) < 0.3


def test_float8_is_refused_where_there_is_none_and_leaves_convolutions():
    with pytest.raises(ja.UserError, match="no float8 products on this cpu"):
        ja.float8(mlp)(PARAMS, X)
    conv = ja.float8(lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"), emulate=True, argnums=1)
    with sites.record_runs() as runs:
        jax.eval_shape(conv, normal(1, 2, 5, 5), normal(3, 2, 3, 3))
    assert [r.reason for r in runs[0].records] == ["float8 is for matrix products alone"]
    assert products(jax.grad(loss(ja.float8(mlp, emulate=True))), PARAMS, X) == [
        *[(("f8E4M3FN",), "f32")] * 2, *[(("f8E4M3FN", "f8E5M2"), "f32")] * 3,
    ]  # fmt: skip


# Derivatives.


TANGENT = jax.tree.map(jnp.cos, PARAMS)


def forward_over_reverse(f):
    return lambda params: jax.jvp(jax.grad(lambda p: loss(f)(p, X)), (params,), (TANGENT,))[1]


def reverse_over_reverse(f):
    def slope(params):
        grads = jax.grad(lambda p: loss(f)(p, X))(params)
        return sum(jnp.sum(grads[name] * TANGENT[name]) for name in grads)

    return jax.grad(slope)


def reverse_over_forward(f):
    return jax.grad(lambda params: jax.jvp(lambda p: loss(f)(p, X), (params,), (TANGENT,))[1])


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("product", [forward_over_reverse, reverse_over_reverse, reverse_over_forward])
@pytest.mark.parametrize("name", NARROW)
def test_hessian_vector_products(name, product, place):
    t, element, tolerance = NARROW[name]
    g = t(product(mlp)) if place == "inside" else product(t(mlp))
    assert {types for types, _ in products(g, PARAMS)} == {(element,)}
    # XLA:CPU fails on this one in bfloat16, compiled ("Unsupported element type for DotThunk").
    run = g if (name, product) == ("bfloat16", reverse_over_reverse) else jit(g)
    assert_near(run(PARAMS), jit(forward_over_reverse(mlp))(PARAMS), 5 * tolerance)


@pytest.mark.parametrize("name", NARROW)
def test_hessian(name):
    t, _, tolerance = NARROW[name]

    def f(x):
        return loss(mlp)(PARAMS, x[None])

    assert_near(jit(t(jax.hessian(f)))(X[0]), jit(jax.hessian(f))(X[0]), 5 * tolerance)
    assert_near(jit(jax.hessian(t(f)))(X[0]), jit(jax.hessian(f))(X[0]), 5 * tolerance)


@dataclasses.dataclass(frozen=True)
class Exact:
    """The product in the dtype that it has."""

    name: str = "exact"

    def __call__(self, primitive, params, lhs, rhs) -> Any:
        return primitive.bind(lhs, rhs, **params)

    def transposed(self, cotangent):
        return self


def exact(f):
    rule = lambda site, lhs, rhs: site.product(Exact(), lhs, rhs)  # noqa: E731
    return transform(f, Transformation("exact", dict.fromkeys(sites.BILINEAR, rule)))


def convolution(*, dims=2, lhs=None, rhs=None, strides=1, padding="SAME", **options):
    """(function, operands) of a convolution of that many spatial dimensions, channels last."""
    letters = "DHW"[-dims:]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    more = {"lhs_dilation": (lhs,) * dims if lhs else None, "rhs_dilation": (rhs,) * dims if rhs else None}
    groups = options.get("feature_group_count", 1)
    x = normal(4, *(6, 7, 5)[:dims], 4)
    kernel = normal(*(3, 2, 3)[:dims], 4 // groups, 8, seed=1, scale=0.3)

    def f(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (strides,) * dims, padding, dimension_numbers=numbers, **more, **options
        )

    return f, (x, kernel)


def einsum(formula, *shapes):
    return functools.partial(jnp.einsum, formula), tuple(normal(*s, seed=i) for i, s in enumerate(shapes))


FORMS = {
    "conv": convolution(),
    "conv strided": convolution(strides=2),
    "conv dilated": convolution(rhs=2),
    "conv transposed": convolution(lhs=2, padding=((1, 1), (2, 1))),
    "conv strided, dilated and padded": convolution(strides=2, rhs=2, padding=((2, 1), (3, 0))),
    "conv valid": convolution(padding="VALID"),
    "conv grouped": convolution(feature_group_count=2),
    "conv depthwise": convolution(feature_group_count=4, strides=2),
    "conv in batch groups": convolution(batch_group_count=2),
    "conv 1-D": convolution(dims=1, strides=2),
    "conv 3-D": convolution(dims=3),
    "conv NCHW": (lambda x, k: jax.lax.conv(x, k, (2, 1), "SAME"), (normal(2, 3, 6, 5), normal(4, 3, 3, 3))),
    "conv_transpose": (
        lambda x, k: jax.lax.conv_transpose(x, k, (2, 2), "SAME"), (normal(2, 4, 4, 3), normal(3, 3, 3, 5)),
    ),
    "vmapped conv": (jax.vmap(convolution()[0]), (normal(2, 2, 5, 5, 4), normal(2, 3, 3, 4, 8))),
    "dot": einsum("ij,jk->ik", (5, 6), (6, 7)),
    "dot of vectors": (lambda x, y: jnp.dot(jnp.abs(x), jnp.abs(y)), (normal(9), normal(9, seed=1))),
    "outer product": einsum("i,j->ij", (5,), (6,)),
    "dot transposed": einsum("ji,kj->ki", (6, 5), (7, 6)),
    "dot of tokens": einsum("btd,de->bte", (3, 4, 6), (6, 5)),
    "dot of tokens and heads": einsum("btd,dhe->bthe", (3, 4, 6), (6, 2, 5)),
    "dot over heads": einsum("bthe,hed->btd", (3, 4, 2, 5), (2, 5, 6)),
    "attention": einsum("bthe,bshe->bhts", (2, 4, 3, 5), (2, 6, 3, 5)),
    "batch dot": einsum("bij,bjk->bik", (3, 4, 5), (3, 5, 6)),
    "batch dot transposed": einsum("ijb,kbj->kbi", (4, 5, 3), (6, 3, 5)),
    "batch of two": einsum("abij,bakj->ikab", (2, 3, 4, 5), (3, 2, 6, 5)),
}  # fmt: skip


KINDS = (
    "conv strided, dilated and padded",
    "conv transposed",
    "conv depthwise",
    "conv in batch groups",
    "conv 1-D",
    "outer product",
    "dot transposed",
    "dot over heads",
    "batch of two",
)
"""Of each kind of form the one that has most of what the others have."""


def with_derivatives(f):
    def both(*args):
        out, pullback = jax.vjp(f, *args)
        tangents = tuple(jnp.cos(3 * x) for x in args)
        return (
            out,
            pullback(jnp.cos(jnp.arange(out.size).reshape(out.shape)).astype(out.dtype)),
            jax.jvp(f, args, tangents)[1],
        )

    return both


@pytest.mark.parametrize("form", slow_but(KINDS, FORMS))
def test_every_form_of_a_product(form):
    f, args = FORMS[form]
    wanted = jit(with_derivatives(f))(*args)
    for name, (t, _, tolerance) in NARROW.items():
        t = functools.partial(t, lowering=name)
        for g in (with_derivatives(t(f)), t(with_derivatives(f))):
            assert_near(jit(g)(*args), wanted, 2 * tolerance)


@pytest.mark.parametrize("form", slow_but(KINDS, FORMS))
def test_the_rule_of_a_product_is_that_of_finite_differences(form):
    f, args = FORMS[form]
    g = exact(f)
    assert_near(jit(with_derivatives(g))(*args), jit(with_derivatives(f))(*args), 1e-6)
    with jax.enable_x64(True):
        args = tuple(np.asarray(x, np.float64) for x in args)
        assert_near(jit(with_derivatives(g))(*args), jit(with_derivatives(f))(*args), 1e-13)
        check_grads(jax.jit(lambda *args: jnp.sin(g(*args))), args, order=1, rtol=1e-5, atol=1e-5)


def test_second_order_of_the_rule_is_that_of_finite_differences():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: np.asarray(p[:4, :4], np.float64), PARAMS)
        x = np.asarray(X[:2, :4], np.float64)
        check_grads(
            jax.jit(lambda *args: loss(exact(mlp))(*args)), (params, x), order=2, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", NARROW)
def test_reverse_over_reverse_compiles_and_runs(name):
    t, _, tolerance = NARROW[name]

    def product_with_hessian(f):
        def directional(params, x):
            gradients = jax.grad(loss(f))(params, x)
            return sum(jnp.vdot(g, params[key]) for key, g in gradients.items())

        return jax.grad(directional)

    want = jax.jit(product_with_hessian(mlp))(PARAMS, X)
    for g in (product_with_hessian(t(mlp)), t(product_with_hessian(mlp))):
        assert_near(jax.jit(g)(PARAMS, X), want, 2 * tolerance)


def test_products_of_one_array_with_itself_and_of_constants():
    def f(x):
        return (x @ x.T).sum() + (x @ jnp.eye(16)).sum() + (jnp.ones((3, 6)) @ x).sum()

    assert_near(jit(jax.grad(ja.bfloat16(f)))(X), jit(jax.grad(f))(X), 0.02)


def test_empty_products():
    x = jnp.zeros((0, 16))
    assert ja.bfloat16(mlp)(PARAMS, x).shape == (0, 8)
    assert not jax.grad(loss(ja.bfloat16(mlp)))(PARAMS, x)["a"].any()


def test_results_are_those_of_rounded_operands():
    """Not only near: exactly the products of rounded numbers, which float32 sums with the usual error."""
    for t, dtype in ((ja.bfloat16, jnp.bfloat16), (ja.float16, jnp.float16)):
        rounded = [np.asarray(x.astype(dtype), np.float64) for x in (X, PARAMS["a"])]
        got = jit(t(jnp.matmul))(X, PARAMS["a"])
        np.testing.assert_allclose(got, rounded[0] @ rounded[1], rtol=1e-5, atol=1e-6)


def test_nnx_modules_learn_in_bfloat16():
    model = nnx.Sequential(nnx.Linear(4, 16, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(16, 1, rngs=nnx.Rngs(1)))
    graph, params = nnx.split(model)
    x = normal(64, 4)
    y = x[:, :1] * x[:, 1:2]
    apply = ja.bfloat16(lambda params, x: nnx.merge(graph, params, copy=True)(x))

    def step(params, _):
        value, grads = jax.value_and_grad(lambda p: jnp.mean((apply(p, x) - y) ** 2))(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, grads), value

    _, losses = jax.jit(lambda params: jax.lax.scan(step, params, length=300))(params)
    assert losses[-1] < 0.3 * losses[0]


# Loss scaling.


def scaled_step(scaling, f=None, lr=0.01):
    f = f or ja.float16(mlp)

    @jax.jit
    def step(params, state, x):
        grads = jax.grad(lambda p: scaling.scale(loss(f)(p, x), state))(params)
        grads, finite = scaling.unscale(grads, state)
        new = jax.tree.map(lambda p, g: jnp.where(finite, p - lr * g, p), params, grads)
        return new, scaling.update(state, finite), finite

    return step


def test_overflow_halves_leaves_the_step_out_and_recovers():
    scaling = ja.transforms.LossScale(initial=2.0**20, period=3)
    step, params, state = scaled_step(scaling), PARAMS, scaling.init()
    scales, finites = [float(state.scale)], []
    for _ in range(20):
        new, state, finite = step(params, state, X)
        same = all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), new, params)))
        assert same == (not finite)
        params = new
        scales.append(float(state.scale))
        finites.append(bool(finite))
    assert not finites[0] and finites.index(True) > 2 and sum(finites) > 8
    good = 0
    for before, after, finite in zip(scales[:-1], scales[1:], finites, strict=True):
        good = good + 1 if finite else 0
        assert after == (before / 2 if not finite else before * 2 if good == 3 else before)
        good = 0 if good == 3 else good
    # It settles at what float16 can hold: what grows too far overflows again.
    assert False in finites[finites.index(True) :]


def test_it_grows_after_as_many_good_steps_as_said_and_a_bad_one_counts_anew():
    scaling = ja.transforms.LossScale(initial=8.0, period=3)
    update = jax.jit(scaling.update)
    state, seen = scaling.init(), []
    for finite in (True, True, False, True, True, True, True):
        state = update(state, jnp.array(finite))
        seen.append((float(state.scale), int(state.good_steps)))
    assert seen == [(8, 1), (8, 2), (4, 0), (4, 1), (4, 2), (8, 0), (8, 1)]
    assert state.scale.dtype == jnp.float32 and state.good_steps.dtype == jnp.int32


@pytest.mark.parametrize(("finite", "bound"), [(True, 32.0), (False, 2.0)])
def test_it_is_bounded_at_both_ends(finite, bound):
    scaling = ja.transforms.LossScale(initial=8.0, period=1, minimum=2.0, maximum=32.0, factor=4.0)
    states = jax.lax.scan(
        lambda s, _: (scaling.update(s, jnp.array(finite)), s.scale), scaling.init(), length=9
    )
    assert states[0].scale == bound and states[1][0] == 8


@pytest.mark.parametrize("scale", [2.0**40, 128.0, 0.25])
def test_a_static_scale_never_moves(scale):
    scaling = ja.transforms.LossScale.static(scale)
    state = scaling.init()
    for finite in (True, False) * 3:
        state = jax.jit(scaling.update)(state, jnp.array(finite))
    assert state == LossScaleState(jnp.float32(scale), jnp.int32(0))


@pytest.mark.parametrize("t", [lambda f: f, ja.bfloat16, ja.float16])
@pytest.mark.parametrize("scale", [2.0**-2, 2.0**4])
def test_a_power_of_two_changes_no_bit(t, scale):
    scaling = ja.transforms.LossScale.static(scale)
    gradient = jit(lambda params, state: jax.grad(lambda p: scaling.scale(loss(t(mlp))(p, X), state))(params))
    plain = jit(jax.grad(lambda p: loss(t(mlp))(p, X)))(PARAMS)
    grads, finite = scaling.unscale(gradient(PARAMS, scaling.init()), scaling.init())
    assert finite
    jax.tree.map(np.testing.assert_array_equal, grads, plain)


def test_small_gradients_vanish_without_it_and_not_with_it():
    def tiny(params, x):
        return 1e-6 * ja.float16(mlp)(params, x).sum()

    plain = jit(jax.grad(tiny))(PARAMS, X)
    scaling = ja.transforms.LossScale.static(2.0**16)
    scaled = jit(jax.grad(lambda p: scaling.scale(tiny(p, X), scaling.init())))(PARAMS)
    wanted = jax.tree.map(lambda g: 1e-6 * g, jit(jax.grad(lambda p: mlp(p, X).sum()))(PARAMS))
    assert_near(scaling.unscale(scaled, scaling.init())[0], wanted, 0.005)
    error = jnp.linalg.norm(plain["b"] - wanted["b"]) / jnp.linalg.norm(wanted["b"])
    assert error > 0.01


def test_any_leaf_that_is_not_finite_is_noticed():
    scaling = ja.transforms.LossScale()
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not scaling.unscale({"a": jnp.ones(3), "b": jnp.ones(2).at[1].set(bad)}, scaling.init())[1]
    assert scaling.unscale({}, scaling.init())[1]


@pytest.mark.parametrize(
    "options", [{"initial": 0.5}, {"initial": 2.0**30}, {"factor": 1.0}, {"minimum": 0.0}, {"period": -1}]
)
def test_bounds_that_contradict_each_other(options):
    with pytest.raises(ja.UserError, match="LossScale needs"):
        ja.transforms.LossScale(**options)
