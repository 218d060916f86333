"""The rules by primitive, one by one, and loops and branches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_checks import assert_same, open_session, operators, run

import jaxaccel as ja
from jaxaccel.deployment.onnx import to_onnx

X = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
TABLE = np.random.default_rng(1).standard_normal((9, 5)).astype(np.float32)

UNARY = {
    "abs": jnp.abs, "cbrt": jnp.cbrt, "ceil": jnp.ceil, "cos": jnp.cos, "elu": jax.nn.elu, "erfc": jax.lax.erfc,
    "exp": jnp.exp, "exp2": jnp.exp2, "expm1": jnp.expm1, "finite": lambda x: jnp.isfinite(x / x.round()),
    "hard_swish": jax.nn.hard_swish, "log1p": lambda x: jnp.log1p(x**2), "power": lambda x: x**5,
    "reciprocal": lambda x: x**-1, "relu6": jax.nn.relu6, "round": jnp.round, "sign": jnp.sign,
    "silu": jax.nn.silu, "softplus": jax.nn.softplus, "sqrt": lambda x: jnp.sqrt(jnp.abs(x)), "tanh": jnp.tanh,
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_elementwise(name):
    assert_same(lambda w, x: UNARY[name](x), {}, [X], tolerance=3e-6)


SHAPES = {
    "broadcast": lambda x: jnp.broadcast_to(x[:, :, None], (x.shape[0], 6, 3, 5)),
    "concatenate": lambda x: jnp.concatenate([x, 2 * x, jnp.zeros((x.shape[0], 1, 5))], 1),
    "constant": lambda x: jnp.zeros((x.shape[0], 2)) + jnp.arange(2.0),
    "flatten": lambda x: x.reshape(-1, 5),
    "halves": lambda x: x.reshape(x.shape[0], 2, 3, 5).transpose(2, 0, 3, 1),
    "iota": lambda x: x[:, 0] + jnp.arange(x.shape[0])[:, None],
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1)), constant_values=7),
    "cut": lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (-1, 2, 0), (1, -2, 0))),
    "reverse": lambda x: x[:, ::-1, ::-1],
    "rows": lambda x: x[:, 1::2, 3],
    "split": lambda x: tuple(jnp.split(x, [2, 3], 1)),
    "stack": lambda x: jnp.stack([x, x + 1], 2),
    "tile": lambda x: jnp.tile(x, (1, 2, 3)),
    "transpose": lambda x: x.transpose(2, 0, 1) + x.transpose(2, 0, 1).mean(0, keepdims=True),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    assert_same(lambda w, x: SHAPES[name](x), {}, [X])


@pytest.mark.parametrize("length", [8, 9, 400])
def test_spectra(length):
    x = np.random.default_rng(0).standard_normal((4, 3, length)).astype(np.float32)

    def power(w, x):
        spectrum = jnp.fft.rfft(x)
        return jnp.square(spectrum.real) + jnp.square(spectrum.imag), spectrum.imag

    assert_same(power, {}, [x])


def test_what_onnx_has_no_complex_numbers_for_is_one_line():
    with pytest.raises(ja.UserError, match="the primitive abs of complex numbers cannot be exported to ONNX"):
        to_onnx(lambda w, x: jnp.abs(jnp.fft.rfft(x)), {}, [X])
    with pytest.raises(ja.UserError, match="this form of the primitive fft cannot be exported"):
        to_onnx(lambda w, x: jnp.fft.fft(x).real, {}, [X])


REDUCTIONS = {
    "all": lambda x: jnp.all(x > -2, axis=1),
    "any": lambda x: jnp.any(x > 1, axis=(1, 2)),
    "argmax": lambda x: jnp.argmax(x, 1),
    "argmin": lambda x: jnp.argmin(x, -1),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "logsumexp": lambda x: jax.nn.logsumexp(x, -1),
    "max": lambda x: x.max((1, 2)),
    "mean": lambda x: x.mean(1),
    "product": lambda x: x.prod(2),
    "sort": lambda x: jnp.sort(x, 1),
    "top": lambda x: jax.lax.top_k(x, 3),
    "variance": lambda x: x.var(-1, keepdims=True),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name):
    assert_same(lambda w, x: REDUCTIONS[name](x), {}, [X])


PRODUCTS = {
    "batched": lambda w, x: jnp.einsum("btf,bsf->bts", x, 2 * x),
    "heads": lambda w, x: jnp.einsum("btf,fnh->btnh", x, w["heads"]),
    "heads_back": lambda w, x: jnp.einsum(
        "btnh,nhf->btf", jnp.einsum("btf,fnh->btnh", x, w["heads"]), w["out"]
    ),
    "left": lambda w, x: jnp.einsum("st,btf->bsf", w["rows"], x),
    "outer": lambda w, x: jnp.einsum("bt,bf->btf", x[:, :, 0], x[:, 0]),
    "tokens": lambda w, x: jnp.einsum("btf,ts->bfs", x, w["rows"].T),
    "vector": lambda w, x: x @ w["heads"][:, 0, 0],
}
WEIGHTS = {
    "heads": TABLE[:5, :4].reshape(5, 2, 2),
    "out": TABLE[:4].reshape(2, 2, 5),
    "rows": np.random.default_rng(2).standard_normal((3, 6)).astype(np.float32),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    assert_same(PRODUCTS[name], jax.tree.map(jnp.asarray, WEIGHTS), [X])


@pytest.mark.parametrize("options", [
    {"window_strides": (1, 1), "padding": "SAME"},
    {"window_strides": (2, 1), "padding": ((1, 2), (0, 3))},
    {"window_strides": (1, 2), "padding": "VALID", "rhs_dilation": (2, 1)},
    {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 2},
])  # fmt: skip
def test_convolutions(options):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 8, 9, 4)).astype(np.float32)
    w = jnp.asarray(rng.standard_normal((3, 2, 4 // options.get("feature_group_count", 1), 6)), jnp.float32)
    numbers = ("NHWC", "HWIO", "NHWC")
    assert_same(lambda w, x: jax.lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options), w, [x])


INDEXING = {
    "along": lambda w, x, i: jnp.take_along_axis(x, (i % 6)[:, :, None] * jnp.ones((1, 1, 5), jnp.int32), 1),
    "embedding": lambda w, x, i: w[i % 9],
    "slice": lambda w, x, i: jax.lax.dynamic_slice_in_dim(x, i[0, 0] % 4, 3, 1),
    "update": lambda w, x, i: jax.lax.dynamic_update_slice_in_dim(x, x[:, :2] * 9, i[0, 0] % 5, 1),
}


@pytest.mark.parametrize("name", INDEXING)
def test_indexing(name):
    indices = np.random.default_rng(3).integers(0, 40, (4, 2)).astype(np.int32)
    assert_same(INDEXING[name], jnp.asarray(TABLE), [X, indices])


def recur(w, carry, x):
    carry = jnp.tanh(x @ w + carry)
    return carry, carry.sum(-1)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse):
    def f(w, x):
        return jax.lax.scan(
            lambda c, x: recur(w, c, x), jnp.zeros((x.shape[0], 5)), x.swapaxes(0, 1), reverse=reverse
        )

    assert operators(assert_same(f, jnp.asarray(TABLE[:5]), [X]))["Scan"] == 1


def test_layers_of_a_scan_are_written_out():
    weights = jnp.asarray(np.random.default_rng(4).standard_normal((3, 5, 5)), jnp.float32)

    def f(w, x):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), c.mean()), x[:, 0], w)

    assert operators(assert_same(f, weights, [X]))["Scan"] == 0


def test_while_and_branches():
    def f(w, x):
        def step(state):
            count, x = state
            return count + 1, jax.lax.switch(count % 3, [lambda x: x + w[0, 0], lambda x: 2 * x, jnp.sin], x)

        return jax.lax.while_loop(lambda state: (state[0] < 7) & (state[1].max() < 40), step, (0, x))

    found = operators(assert_same(f, jnp.asarray(TABLE), [X]))
    assert found["Loop"] == 1 and found["If"] == 2


def test_several_inputs_and_names():
    def f(w, pair, y):
        return {"sum": pair[0] + pair[1] * w, "last": y[:, -1]}

    model = to_onnx(f, jnp.float32(2), [(X, X), X], input_names=["a", "b", "c"], output_names=["y", "z"])
    assert [v.name for v in model.graph.input] == ["a", "b", "c"]
    session = open_session(model)
    got = session.run(["z"], {"a": X[:2], "b": X[:2], "c": X[:2]})[0]  # z: keys are sorted
    np.testing.assert_allclose(got, X[:2] + 2 * X[:2], rtol=1e-6)


def test_one_batch_size():
    def decides(w, x):
        return x * (2 if x.shape[0] > 3 else 3)

    model = to_onnx(decides, {}, [X], symbolic_batch=False)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    np.testing.assert_allclose(run(open_session(model), [X])[0], 2 * X)
    with pytest.raises(ja.UserError, match=r"decides by the size of its batch.*symbolic_batch=False"):
        to_onnx(decides, {}, [X])


def test_narrow_floats_are_computed_in_float32():
    def f(w, x):
        return (x.astype(jnp.bfloat16) @ w).astype(jnp.float32)

    model = to_onnx(f, jnp.asarray(TABLE[:5], jnp.bfloat16), [X])
    exact = X @ np.asarray(jnp.asarray(TABLE[:5], jnp.bfloat16), np.float32)
    np.testing.assert_allclose(run(open_session(model), [X])[0], exact, atol=1e-5)


def test_mistakes_are_one_line():
    with pytest.raises(
        ja.UserError, match="the primitive cumprod cannot be exported to ONNX: it has no rule"
    ):
        to_onnx(lambda w, x: jnp.cumprod(x), {}, [X])
    with pytest.raises(ja.UserError, match="input_names must be 1 different names, got a, b"):
        to_onnx(lambda w, x: x, {}, [X], input_names=["a", "b"])
    with pytest.raises(ja.UserError, match="opset must be at least 21"):
        to_onnx(lambda w, x: x, {}, [X], opset=17)
