"""fold: the same function with less to do."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from grids import thinned

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core.paths import path_text
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model


def served(make, shape):
    """A model in inference, its variables with statistics that are not those of the start, and an input."""
    facts = {"classes": 5, "channels": shape[-1], "image_size": shape[1]}
    model = as_model(make, facts, (jax.ShapeDtypeStruct(shape, jnp.float32),))
    params, state = model.init(jax.random.key(0))
    leaves, treedef = jax.tree.flatten((params, state))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        x + 0.3 * jax.random.uniform(k, x.shape) if x.dtype == jnp.float32 else x
        for x, k in zip(leaves, keys, strict=True)
    ]
    params, state = jax.tree.unflatten(treedef, leaves)

    def f(variables, x):
        return model.apply(*variables, x, key=jax.random.key(0), train=False)[0]

    return f, (params, state), jax.random.normal(jax.random.key(2), shape)


def equations(f, *args):
    """Names of the primitives that make arrays; arithmetic of numbers costs nothing."""

    def count(jaxpr):
        inner = [
            sub
            for eqn in jaxpr.eqns
            for v in eqn.params.values()
            for sub in ([v] if hasattr(v, "jaxpr") else [])
        ]
        return [eqn.primitive.name for eqn in jaxpr.eqns if eqn.outvars[0].aval.shape] + [
            n for sub in inner for n in count(sub.jaxpr)
        ]

    return count(jax.make_jaxpr(f)(*args).jaxpr)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(models.resnet20, (2, 16, 16, 3)), (models.ConvNet, (2, 28, 28, 1))],
)
def test_networks_compute_the_same_without_their_batch_norm(make, shape):
    f, variables, x = served(make, shape)
    g, folded = ja.fold(f, variables, x)
    want = jax.jit(f)(variables, x)
    np.testing.assert_allclose(jax.jit(g)(folded, x), want, rtol=2e-4, atol=2e-4 * float(jnp.abs(want).max()))
    assert "rsqrt" in equations(f, variables, x) and "rsqrt" not in equations(g, folded, x)
    names = {
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, _ in jax.tree_util.tree_leaves_with_path(folded)
    }
    assert not any("mean" in name or "var" in name for name in names)
    assert any(name.endswith("kernel") for name in names)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(models.resnet20, id="resnet20"),
        pytest.param(
            partial(models.VisionTransformer, width=32, depth=2, heads=4, patch_size=4),
            id="vit",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_another_batch_size_needs_no_other_parameters(make):
    f, variables, x = served(make, (1, 16, 16, 3))
    g, folded = ja.fold(f, variables, x)
    more = jax.random.normal(jax.random.key(5), (3, 16, 16, 3))
    for images in (more, x):
        want = jax.jit(f)(variables, images)
        found = jax.jit(g)(folded, images)
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-3 * float(jnp.abs(want).max()))


def test_weights_keep_their_paths_so_that_patterns_select_them():
    f, variables, x = served(models.resnet20, (1, 16, 16, 3))
    _, folded = ja.fold(f, variables, x)
    q = ja.quantize(folded)
    kinds = [
        type(leaf) for leaf in jax.tree.leaves(q, is_leaf=lambda leaf: isinstance(leaf, ja.arrays.QuantArray))
    ]
    assert kinds.count(ja.arrays.QuantArray) == 20  # every convolution and the head


CHAINS = {
    "bias": lambda y, p: y + p["b"],
    "scale": lambda y, p: y * p["s"],
    "divide": lambda y, p: y / p["s"],
    "subtract": lambda y, p: p["b"] - y,
    "negate": lambda y, p: -(y - p["b"]),
    "numbers": lambda y, p: (2 * y + 1) / 4 - 3,
    "batch norm": lambda y, p: (y - p["b"]) * jax.lax.rsqrt(p["s"] ** 2 + 1e-5) * p["s"] + p["b"],
    "used twice": lambda y, p: y * p["s"] + y,
    "varies over rows": lambda y, p: y * jnp.arange(1.0, y.shape[0] + 1).reshape(-1, *[1] * (y.ndim - 1)),
    "depends on the input": lambda y, p: y * y.mean(),
    "wraps": lambda y, p: jax.jit(lambda y: y * p["s"])(y) + p["b"],
}
PRODUCTS = {
    "dense": ((4, 6), (6, 8), lambda x, w: x @ w),
    "dense of more axes": ((2, 3, 6), (6, 8), lambda x, w: x @ w),
    "convolution": ((2, 5, 5, 6), (3, 3, 6, 8), lambda x, w: _conv(x, w, 1)),
    "grouped convolution": ((2, 5, 5, 6), (3, 3, 3, 8), lambda x, w: _conv(x, w, 2)),
    "depthwise convolution": ((2, 5, 5, 8), (3, 3, 1, 8), lambda x, w: _conv(x, w, 8)),
}


def _conv(x, w, groups):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@pytest.mark.parametrize(("product", "chain"), thinned(2, PRODUCTS, CHAINS))
def test_chains(product, chain):
    x_shape, w_shape, multiply = PRODUCTS[product]
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "kernel": jax.random.normal(keys[0], w_shape),
        "s": jax.random.uniform(keys[1], (8,), minval=0.5, maxval=2),
        "b": jax.random.normal(keys[2], (8,)),
    }

    def f(p, x):
        return CHAINS[chain](multiply(x, p["kernel"]), p)

    x = jax.random.normal(keys[3], x_shape)
    g, folded = ja.fold(f, params, x)
    np.testing.assert_allclose(g(folded, x), f(params, x), rtol=1e-4, atol=1e-4)
    left = equations(g, folded, x)
    if chain in ("scale", "divide"):
        assert not {"mul", "div"} & set(left)
    if chain in ("bias", "subtract", "negate", "numbers", "batch norm", "wraps"):
        assert len({"mul", "div", "sub", "neg"} & set(left)) == 0 and left.count("add") == 1


def drawn(*shape, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    whole = jnp.issubdtype(dtype, jnp.integer)
    return jnp.asarray(rng.integers(1, 99, shape) if whole else rng.standard_normal(shape) + 0.2, dtype)


def _int32(x, w):
    return jax.lax.dot(x, w, preferred_element_type=jnp.int32)


def _float32(x, w):
    return jax.lax.dot(x, w, preferred_element_type=jnp.float32)


ROW, COLUMN = drawn(1, 5, seed=3), drawn(4, 1, seed=4)
SAME = {  # (function of weights, vector and input; dtype of the three; shape of the weights)
    "integers divided": (lambda w, v, x: jax.lax.div(x @ w, 7), jnp.int32, (6, 8)),
    "integers divided by a vector": (lambda w, v, x: jax.lax.div(x @ w, v[None]), jnp.int32, (6, 8)),
    "int8 beyond its range": (lambda w, v, x: _int32(x, w) * 300 + 12345, jnp.int8, (6, 8)),
    "unsigned": (lambda w, v, x: 3 - (x @ w) * v, jnp.uint8, (6, 8)),
    "negated integers": (lambda w, v, x: -(x @ w) + 1, jnp.int16, (6, 8)),
    "integers, then floats": (lambda w, v, x: (x @ w).astype(jnp.float32) * 0.1 + 0.5, jnp.int32, (6, 8)),
    "complex": (lambda w, v, x: (x @ (1j * w)) * (v + 1j) / 3 + 2j, jnp.float32, (6, 8)),
    "a column times a row": (lambda w, v, x: (x @ w) * ROW, jnp.float32, (6, 1)),
    "a column and a row": (lambda w, v, x: 2 * (ROW - (x @ w)) * v + ROW, jnp.float32, (6, 1)),
    "a row times a column": (lambda w, v, x: (x[:1] @ w) * COLUMN, jnp.float32, (6, 8)),
    "one feature": (lambda w, v, x: (x @ w) * v[:1] + v[:1], jnp.float32, (6, 1)),
    "bfloat16 weights of a float32 product": (lambda w, v, x: _float32(x, w) * 0.3337 - 1.7, jnp.bfloat16, (6, 8)),
    "a wide chain": (lambda w, v, x: _float32(x, w) * v.astype(jnp.float32) / 3, jnp.bfloat16, (6, 8)),
    "float16 to its edge": (lambda w, v, x: (x @ (w * 1e-3)) * 1e-2, jnp.float16, (6, 8)),
    "booleans": (lambda w, v, x: (x @ w > 0) * v, jnp.float32, (6, 8)),
    "narrow products": (
        lambda w, v, x: ja.bfloat16(lambda w: x @ w, lowering="bfloat16")(w) * 2 + v, jnp.float32, (6, 8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_a_chain_may_be(name):
    f, dtype, shape = SAME[name]
    params = {"w": drawn(*shape, dtype=dtype), "v": drawn(shape[1], seed=1, dtype=dtype)}
    x = drawn(4, 6, seed=2, dtype=dtype)
    g, folded = ja.fold(lambda p, x: f(p["w"], p["v"], x), params, x)
    want, got = f(params["w"], params["v"], x), jax.jit(g)(folded, x)
    assert got.dtype == want.dtype and got.shape == want.shape
    if jnp.issubdtype(want.dtype, jnp.integer):
        np.testing.assert_array_equal(got, want)
    else:  # to the rounding of float32, also where weights are narrower
        tolerance = 1e-3 if want.dtype == jnp.float16 else 1e-6
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * float(jnp.abs(want).max()))
    if dtype == jnp.float32 and want.dtype == jnp.float32:
        slopes = [jax.grad(lambda x, h=h, p=p: jnp.sin(h(p, x)).sum())(x) for h, p in (
            (g, folded), (lambda p, x: f(p["w"], p["v"], x), params))]  # fmt: skip
        np.testing.assert_allclose(*slopes, rtol=1e-4, atol=1e-5)


def test_a_chain_is_rounded_once():
    """bfloat16 products with bfloat16 factors: no further from float64 than without folding."""
    params = {name: drawn(*shape, seed=i, dtype=jnp.bfloat16) for i, (name, shape) in enumerate(
        {"w": (64, 32), "s": (32,), "b": (32,)}.items())}  # fmt: skip
    x = drawn(16, 64, seed=5, dtype=jnp.bfloat16)
    f = lambda p, x: ((x @ p["w"] - p["b"]) * p["s"] + p["b"]) * p["s"] / 3  # noqa: E731
    g, folded = ja.fold(f, params, x)
    want = f({k: np.asarray(v, np.float64) for k, v in params.items()}, np.asarray(x, np.float64))
    errors = [np.sqrt(np.mean((np.asarray(y, np.float64) - want) ** 2)) for y in (f(params, x), g(folded, x))]
    assert folded["w"].dtype == jnp.bfloat16 and errors[1] <= errors[0]


def test_float64_stays_float64():
    with jax.enable_x64(True):
        params = {"w": drawn(6, 8, dtype=jnp.float64), "s": drawn(8, seed=1, dtype=jnp.float64)}
        x = drawn(4, 6, seed=2, dtype=jnp.float64)
        f = lambda p, x: -(x @ p["w"] / 3.0) * p["s"] + 0.1  # noqa: E731
        g, folded = ja.fold(f, params, x)
        np.testing.assert_allclose(g(folded, x), f(params, x), rtol=1e-13, atol=1e-14)
        half = {k: v.astype(jnp.bfloat16) for k, v in params.items()}
        g, folded = ja.fold(f, half, x.astype(jnp.bfloat16))
        assert g(folded, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_random_keys_of_narrow_products_are_kept():
    f = lambda p, x: ja.int8(lambda p, x: x @ p["w"], train=True, key=jax.random.key(0))(p, x) * 3  # noqa: E731
    params, x = {"w": drawn(8, 8)}, drawn(4, 8)
    g, folded = ja.fold(f, params, x)
    np.testing.assert_allclose(g(folded, x), f(params, x), rtol=1e-5, atol=1e-5)


def test_parameters_that_are_no_arrays_are_constants():
    def f(p, x):
        return x @ p["w"] * p["factor"] if p["name"] == "linear" else x

    params, x = {"w": drawn(6, 8, dtype=jnp.bfloat16), "factor": 2.5, "name": "linear"}, drawn(4, 6)
    g, folded = ja.fold(f, params, x.astype(jnp.bfloat16))
    assert set(folded) == {"w"}
    got = g(folded, x.astype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.float32(got), np.float32(f(params, x.astype(jnp.bfloat16))), rtol=0.02, atol=0.02
    )


def test_texts_and_booleans_among_the_arguments_are_constants():
    params, x = {"w": drawn(5, 3, seed=1), "b": drawn(3, seed=2)}, drawn(4, 5, seed=3)

    def f(params, x, kind, options, slope):
        y = x @ params["w"] * (2 if options["doubled"] else 1) + params["b"]
        return slope * (jnp.tanh(y) if kind == "tanh" else y)

    for kind, doubled in (("tanh", True), ("none", False)):
        g, folded = ja.fold(f, params, x, kind, {"doubled": doubled}, 0.5)
        for slope in (0.5, 2):  # numbers are not
            args = (x[:2], kind, {"doubled": doubled}, slope)
            np.testing.assert_allclose(g(folded, *args), f(params, *args), rtol=1e-5, atol=1e-6)
        with pytest.raises(UserError, match=r"folded for the constants .* fold it again"):
            g(folded, x, kind, {"doubled": not doubled}, 0.5)
    with pytest.raises(UserError, match=r"decides by the value .* functools\.partial"):
        ja.fold(lambda p, x, n: x @ p["w"] if n > 2 else x, params, x, 3)
    with pytest.raises(UserError, match=r"decides by the value .* functools\.partial"):
        ja.fold(lambda p, x, n: sum(x @ p["w"] for _ in range(n)), params, x, 3)


def test_what_depends_on_parameters_alone_is_computed_once():
    def f(p, x):
        return x @ (jnp.linalg.inv(p["kernel"] @ p["kernel"].T + jnp.eye(4)) / jnp.linalg.norm(p["kernel"]))

    params, x = {"kernel": jax.random.normal(jax.random.key(0), (4, 4))}, jnp.ones((2, 4))
    g, folded = ja.fold(f, params, x)
    assert equations(g, folded, x).count("dot_general") == 1 and len(equations(g, folded, x)) <= 2
    np.testing.assert_allclose(g(folded, x), f(params, x), rtol=1e-5)


def test_constants_and_repetitions_stay_where_they_are():
    def f(p, x):
        carry = jnp.zeros((x.shape[0], 3)) * p["b"]
        return x @ p["w"] + carry + jnp.broadcast_to(p["b"] ** 2, (x.shape[0], 3))

    params = {"w": jnp.eye(3), "b": jnp.ones(3)}
    g, folded = ja.fold(f, params, jnp.ones((2, 3)))
    assert {path_text(p): x.size for p, x in jax.tree_util.tree_leaves_with_path(folded)} == {
        "w": 9,
        "b": 3,
        "b_2": 3,
    }
    np.testing.assert_allclose(g(folded, jnp.ones((5, 3))), f(params, jnp.ones((5, 3))))


def test_it_composes_with_other_transformations():
    f, variables, x = served(models.resnet20, (2, 16, 16, 3))
    g, folded = ja.fold(f, variables, x)
    want = f(variables, x)
    for h, p in ((ja.bfloat16(g), folded), (ja.int8(g), ja.quantize(folded))):
        assert float(jnp.abs(jax.jit(h)(p, x) - want).max()) < 0.1 * float(jnp.abs(want).max())
    h, again = ja.fold(g, folded, x)
    np.testing.assert_allclose(h(again, x), want, rtol=1e-3, atol=1e-3)


def test_modules_and_other_pytrees_are_parameters_too():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    g, folded = ja.fold(lambda model, x: model(x) * 2, model, jnp.ones((2, 4)))
    assert sorted(folded) == ["bias", "kernel"]
    np.testing.assert_allclose(g(folded, jnp.ones((2, 4))), 2 * model(jnp.ones((2, 4))), rtol=1e-6)


def test_mistakes_get_one_line():
    params = {"kernel": jnp.ones((4, 4))}
    with pytest.raises(ja.UserError, match="fold the float parameters first"):
        ja.fold(lambda p, x: x @ p["kernel"], ja.quantize(params), jnp.ones((1, 4)))

    def f(p, x):
        return x @ p["kernel"] if x.shape[0] == 1 else x @ (p["kernel"] @ p["kernel"])[:, :2]

    g, folded = ja.fold(f, params, jnp.ones((1, 4)))
    with pytest.raises(ja.UserError, match="fold it with examples"):
        g(folded, jnp.ones((2, 4)))


def test_a_table_that_is_looked_up_and_multiplied_by_is_kept_once():
    """Tied embeddings: the transposed table is made again, since it costs nothing beside a second table."""

    def f(params, tokens):
        x = params["embedding"][tokens] @ params["kernel"] * 2
        return x @ params["embedding"].T

    params = {"embedding": drawn(7, 4), "kernel": drawn(4, 4, seed=1)}
    tokens = jnp.asarray([[1, 6, 0]])
    g, folded = ja.fold(f, params, tokens)
    assert {name: x.shape for name, x in folded.items()} == {"embedding": (7, 4), "kernel": (4, 4)}
    np.testing.assert_allclose(folded["kernel"], 2 * params["kernel"], rtol=1e-6)
    np.testing.assert_allclose(g(folded, tokens), f(params, tokens), rtol=1e-5, atol=1e-5)
