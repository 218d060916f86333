"""int8: what each mode computes, and what it leaves alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from grids import thinned

import jaxaccel as ja
from jaxaccel.core import numerics, sites

KEYS = jax.random.split(jax.random.key(0), 6)
PARAMS = {
    "conv": {"kernel": jax.random.normal(KEYS[0], (3, 3, 32, 48)) * 0.1},
    "dense": {"kernel": jax.random.normal(KEYS[1], (48, 64)) * 0.1, "bias": jnp.linspace(-1, 1, 64)},
    "emb": {"embedding": jax.random.normal(KEYS[2], (10, 64))},
}
X = jax.random.normal(KEYS[3], (4, 8, 8, 32))
I = jnp.array([1, 2, 3, 0])  # noqa: E741
NHWC = ("NHWC", "HWIO", "NHWC")


def f(params, x, i):
    y = jax.lax.conv_general_dilated(x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=NHWC)
    y = jax.nn.relu(y).mean((1, 2)) @ params["dense"]["kernel"] + params["dense"]["bias"]
    y = y + params["emb"]["embedding"][i]
    return y @ params["emb"]["embedding"].T


def records(g, *args):
    with sites.record_runs() as runs:
        jax.eval_shape(g, *args)
    return {record.name: record for record in runs[-1].records}


def error(y, want):
    return float(jnp.abs(y - want).max() / jnp.abs(want).max())


BOUNDS = [
    ({}, 0.01),
    ({"symmetric": False}, 0.01),
    ({"channels": ()}, 0.02),
    ({"bits": 4}, 0.15),
    ({"bits": 4, "block": 16}, 0.1),
]
"""How near each kind of weights is to float32."""


@pytest.mark.parametrize(
    ("options", "bound", "mode"), thinned(3, BOUNDS, ["dynamic", "static", "none"]), ids=str
)
def test_every_mode_is_near_float32(options, bound, mode):
    q = ja.quantize(PARAMS, **options)
    calibration = ja.calibrate(f, PARAMS, [(X, I)]) if mode == "static" else None
    g = jax.jit(ja.int8(f, activations=mode, calibration=calibration))
    want = f(PARAMS, X, I)
    assert 0 < error(g(q, X, I), want) < bound
    assert g(q, X, I).dtype == want.dtype


def test_dynamic_is_the_arithmetic_it_says():
    """Against NumPy: rows at a scale of their own, columns at theirs, integers between."""
    w = np.asarray(PARAMS["dense"]["kernel"])
    x = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
    rows, columns = np.abs(x).max(1, keepdims=True) / 127, np.abs(w).max(0, keepdims=True) / 127
    qx, qw = np.round(x * (1 / rows)).astype(int), np.round(w * (1 / columns)).astype(int)
    q = ja.quantize({"kernel": jnp.asarray(w)})
    got = ja.int8(lambda p, x: x @ p["kernel"])(q, x)
    np.testing.assert_allclose(got, (qx @ qw) * rows * columns, rtol=1e-5, atol=1e-6)


def test_the_products_are_integers_in_the_program():
    q = ja.quantize(PARAMS)
    text = jax.jit(ja.int8(f)).lower(q, X, I).as_text()
    assert text.count("xi8>, tensor<") >= 3 and "xi32>" in text
    found = records(ja.int8(f), q, X, I)
    assert [found[name].after for name in ("conv/kernel", "dense/kernel", "emb/embedding#2")] == ["int8"] * 3
    assert found["emb/embedding"].primitive == "gather"


def test_static_activations_stay_int8_between_layers():
    """conv, bias, relu, conv: one fusion makes the int8 input of the second from the int32 sums of the first."""
    w = {f"{k}": {"kernel": jax.random.normal(KEYS[k], (3, 3, 32, 32)) * 0.1} for k in range(2)}

    def net(w, x):
        for layer in w.values():
            y = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=NHWC)
            x = jax.nn.relu(y + 0.1)
        return x.mean((1, 2))

    x = jax.random.normal(KEYS[4], (2, 24, 24, 32))
    g = ja.int8(net, calibration=ja.calibrate(net, w, [x]))
    text = jax.jit(g).lower(ja.quantize(w), x).compile().as_text()
    made = dict(re.findall(r"%([\w.-]+) = (\w+)\[2,24,24,32\]", text[text.index("ENTRY") :]))
    _, second = [name for name, dtype in made.items() if dtype == "s8"]
    (operands,) = re.findall(rf"%{re.escape(second)} = \S+ fusion\(([^)]*)\)", text)
    assert [made[name] for name in re.findall(r"%([\w.-]+)", operands) if name in made] == ["s32"]


def test_parameters_that_are_not_quantized_are_left_alone():
    q = ja.quantize(PARAMS, "conv/*")
    found = records(ja.int8(f), q, X, I)
    assert found["dense/kernel"].reason == "not quantized" and found["dense/kernel"].after == "float32"
    np.testing.assert_array_equal(ja.int8(f)(PARAMS, X, I), f(PARAMS, X, I))


def test_weights_in_a_scan_and_in_cells():
    stacked = {"kernel": jax.random.normal(KEYS[0], (3, 32, 32)) * 0.2}

    def layers(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["kernel"])[0]

    x = jax.random.normal(KEYS[1], (4, 32))
    q = ja.quantize(stacked)
    found = records(ja.int8(layers, strict=True), q, x)
    assert found["kernel"].after == "int8" and found["kernel"].trips == 3
    assert error(ja.int8(layers)(q, x), layers(stacked, x)) < 0.03
    static = ja.int8(layers, calibration=ja.calibrate(layers, stacked, [x]))
    assert error(static(q, x), layers(stacked, x)) < 0.03

    rnn = nnx.RNN(nnx.LSTMCell(16, 32, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(rnn)

    def run(params, x):
        return nnx.merge(graph, params)(x)

    x = jax.random.normal(KEYS[2], (2, 5, 16))
    q = ja.quantize(params, "**/kernel")
    assert error(ja.int8(run)(q, x), run(params, x)) < 0.03
    assert sum(r.after == "int8" for r in records(ja.int8(run, strict=True), q, x).values()) >= 2


def test_products_of_activations_on_request():
    def attend(params, x):
        k = x @ params["kernel"]
        return jax.nn.softmax(x @ k.T) @ k

    params, x = {"kernel": jax.random.normal(KEYS[0], (32, 32)) * 0.1}, jax.random.normal(KEYS[1], (6, 32))
    q = ja.quantize(params)
    narrow = [r.after for r in records(ja.int8(attend, attention=True), q, x).values()]
    assert narrow == ["int8"] * 3
    assert [r.after for r in records(ja.int8(attend), q, x).values()] == ["int8", "float32", "float32"]
    assert error(ja.int8(attend, attention=True)(q, x), attend(params, x)) < 0.05


def test_convolutions_stay_in_float32_where_that_is_faster():
    def stem(params, x):
        return jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=NHWC)

    q = ja.quantize({"kernel": jax.random.normal(KEYS[0], (3, 3, 3, 16))})
    x = jnp.ones((1, 8, 8, 3))
    (left,) = records(ja.int8(stem, backend="cpu"), q, x).values()
    assert left.after == "float32" and "too few" in left.reason
    for forced in ({"backend": "cpu", "lowering": "int8"}, {"backend": "tpu"}):
        (taken,) = records(ja.int8(stem, **forced), q, x).values()
        assert taken.after == "int8"


def test_training_in_int8_is_unbiased():
    """The mean over keys tends to the gradient with unrounded cotangents."""
    params, x = {"kernel": jax.random.normal(KEYS[0], (32, 16))}, jax.random.normal(KEYS[1], (8, 32))

    def loss(params, x):
        return jnp.sum((x @ params["kernel"]) ** 2)

    y = ja.int8(lambda p, x: x @ p["kernel"])(ja.quantize(params), x)
    want = numerics.fake_quantize(x, numerics.scale_of(numerics.absmax(x, [0]))).T @ (2 * y)
    one = jax.jit(lambda key: jax.grad(ja.int8(loss, train=True, key=key))(params, x)["kernel"])
    grads = jax.vmap(one)(jax.random.split(jax.random.key(1), 64))
    assert error(grads.mean(0), want) < 0.3 * error(grads[0], want) < 0.05
    np.testing.assert_array_equal(one(jax.random.key(3)), one(jax.random.key(3)))
    text = jax.jit(one).lower(jax.random.key(0)).as_text()
    assert text.count("i8>, tensor<") >= 2  # the forward product and that of the backward pass


def test_training_in_int8_learns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 16)).astype(np.float32)
    y = x @ rng.normal(size=(16, 4)).astype(np.float32)

    def loss(params):
        return jnp.mean((x @ params["kernel"] - y) ** 2)

    @jax.jit
    def step(params, key):
        grads = jax.grad(ja.int8(loss, train=True, key=key))(params)
        return jax.tree.map(lambda p, g: p - 0.2 * g, params, grads)

    params = {"kernel": jnp.zeros((16, 4))}
    before = loss(params)
    for k in range(60):
        params = step(params, jax.random.fold_in(jax.random.key(0), k))
    assert loss(params) < 0.01 * before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"activations": "static"}, "go together"),
        ({"activations": "dynamic", "calibration": ja.transforms.Calibration({})}, "go together"),
        ({"train": True}, "key="),
    ],
)
def test_options_that_contradict_each_other(options, says):
    with pytest.raises(ja.UserError, match=says):
        ja.int8(f, **options)


def test_a_missing_range_is_named():
    with pytest.raises(ja.UserError, match="no range for conv/kernel"):
        ja.int8(f, calibration=ja.transforms.Calibration({"conv/kernl": 1.0}))(ja.quantize(PARAMS), X, I)


def test_scales_along_the_sum_move_to_the_other_operand():
    """A tied embedding with a scale for each feature: in the logits the features are what is summed over."""
    w = {"embedding": jax.random.normal(KEYS[0], (12, 32)) * jnp.linspace(0.1, 3, 32)}
    q = ja.quantize(w, channels=-1)
    x = jax.random.normal(KEYS[1], (4, 32))

    def logits(w, x):
        return x @ w["embedding"].T

    (record,) = records(ja.int8(logits, strict=True), q, x).values()
    assert record.after == "int8"
    assert error(ja.int8(logits)(q, x), logits(w, x)) < 0.02


def test_a_derivative_of_rounded_activations_is_refused():
    x = jnp.ones((4, 8))
    q = ja.quantize({"kernel": jnp.ones((8, 3))})

    def f(params, x):
        return jnp.sum(x @ params["kernel"])

    for g in (
        ja.int8(f),
        jax.jit(ja.int8(f)),
        ja.int8(f, calibration=ja.transforms.Calibration({"kernel": 1.0})),
    ):
        with pytest.raises(ja.UserError, match="fake_int8"):
            jax.grad(g, argnums=1)(q, x)
    # Weights alone leave the activations as they are; what is not differentiated may be rounded.
    jax.grad(ja.int8(f, activations="none"), argnums=1)(q, x)
    assert jax.grad(lambda scale: scale * ja.int8(f)(q, x))(2.0) == pytest.approx(96, rel=0.01)


def test_static_activations_that_several_products_read_are_quantized_once():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {name: jax.random.normal(key, (8, 8)) for name, key in zip("abc", keys, strict=False)}
    x = jax.random.normal(keys[3], (4, 8))

    def f(params, x):
        return sum(x @ w for w in params.values()) + x

    calibration, q = ja.calibrate(f, params, [x]), ja.quantize(params, where="*")
    static = jax.jit(ja.int8(f, calibration=calibration))
    rounded = re.findall(r"bitcast_convert.*4x8xf32", static.lower(q, x).as_text())
    assert len(rounded) == 1
    # Other ranges, other integers: each product by its own.
    different = ja.transforms.Calibration({**calibration.ranges, "b": 2 * calibration.ranges["b"]})
    text = jax.jit(ja.int8(f, calibration=different)).lower(q, x).as_text()
    assert len(re.findall(r"bitcast_convert.*4x8xf32", text)) == 3
    np.testing.assert_allclose(static(q, x), f(params, x), atol=0.2)
