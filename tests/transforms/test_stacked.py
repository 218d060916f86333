"""Layers that a loop runs over are quantized as if each stood alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxaccel as ja
from jaxaccel.models.layers.scan import Scan
from jaxaccel.transforms.params.stacked import find_stacked

LAYERS = 3
SIZES = jnp.asarray([1.0, 0.01, 30.0])[:, None, None]  # what one scale for all would crush
STACK = SIZES * jax.random.normal(jax.random.key(0), (LAYERS, 8, 8))
X = jax.random.normal(jax.random.key(1), (4, 8))


def loop(p, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["stacked"]["kernel"])[0]


def unrolled(p, x):
    for i in range(LAYERS):
        x = jnp.tanh(x @ p[str(i)]["kernel"])
    return x


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 4},
        {"bits": 4, "block": 4},
        {"symmetric": False},
        {"range": "mse"},
        {"channels": ()},
        {"channels": 0},
    ],
)
@pytest.mark.parametrize("activations", ["dynamic", "none"])
def test_a_scanned_model_is_quantized_like_the_unrolled_one(options, activations):
    q = ja.quantize({"stacked": {"kernel": STACK}}, **options)
    each = ja.quantize({str(i): {"kernel": STACK[i]} for i in range(LAYERS)}, **options)
    array = q["stacked"]["kernel"]
    for i in range(LAYERS):
        alone = each[str(i)]["kernel"]
        np.testing.assert_array_equal(array.scale[i], alone.scale)
        np.testing.assert_array_equal(array.integers()[i], alone.integers())
    np.testing.assert_allclose(
        ja.int8(loop, activations=activations)(q, X),
        ja.int8(unrolled, activations=activations)(each, X),
        atol=1e-5,
    )


def test_training_for_quantization_rounds_each_layer_alone():
    stacked = ja.fake_int8(loop)({"stacked": {"kernel": STACK}}, X)
    each = ja.fake_int8(unrolled)({str(i): {"kernel": STACK[i]} for i in range(LAYERS)}, X)
    np.testing.assert_allclose(stacked, each, atol=1e-5)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.out = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return x + self.out(self.attention(self.norm(x)))


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return linen.Dense(8, use_bias=False)(x), None


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        many = linen.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        return many()(x, None)[0]


def scales(params, path):
    (found,) = [
        x.scale.shape
        for p, x in jax.tree_util.tree_leaves_with_path(
            params, is_leaf=lambda x: isinstance(x, ja.arrays.QuantArray)
        )
        if jax.tree_util.keystr(p, simple=True, separator="/").removesuffix("/value").endswith(path)
    ]
    return found


def test_stacks_of_flax_are_found():
    keys = nnx.Rngs(0)
    ours = nnx.state(Scan([Block(keys) for _ in range(LAYERS)]), nnx.Param)
    assert scales(ja.quantize(ours), "stacked/out/kernel") == (LAYERS, 1, 8)
    assert scales(ja.quantize(LinenModel().init(jax.random.key(0), X)), "Dense_0/kernel") == (LAYERS, 1, 8)


def test_stacks_are_found_by_their_biases_and_others_are_not():
    def made(key):
        return nnx.to_pure_dict(nnx.state(Block(nnx.Rngs(key)), nnx.Param))

    stack = jax.vmap(made)(jax.random.split(jax.random.key(0), LAYERS))
    q = ja.quantize({"layers": stack, "head": {"kernel": jnp.ones((8, 2)), "bias": jnp.ones(2)}})
    assert q["layers"]["out"]["kernel"].scale.shape == (LAYERS, 1, 8)
    assert q["layers"]["attention"]["query"]["kernel"].scale.shape == (LAYERS, 1, 1, 4)
    assert q["head"]["kernel"].scale.shape == (1, 2) and isinstance(q["layers"]["norm"]["scale"], jax.Array)
    one = ja.quantize(made(0))  # kernels (in, heads, width) and biases (heads, width)
    assert one["attention"]["query"]["kernel"].scale.shape == (1, 1, 4)
    assert not find_stacked({"kernel": (3, 3, 4, 8), "bias": (8,)}) and not find_stacked(
        {"kernel": (3, 8, 8)}
    )


def test_others_are_said():
    params = {"w": STACK}
    assert ja.quantize(params, "w")["w"].scale.shape == (1, 1, 8)
    assert ja.quantize(params, "w", stacked="w")["w"].scale.shape == (LAYERS, 1, 8)
    assert ja.quantize({"stacked": params}, "**/w", stacked=())["stacked"]["w"].scale.shape == (1, 1, 8)
    # A stack of vectors is no matrix.
    with pytest.raises(ja.UserError, match="matches none"):
        ja.quantize({"stacked": {"kernel": jnp.ones((3, 8))}})


@pytest.mark.parametrize("size", [1e-6, 1e-13, 1e-20, 1e-35])
@pytest.mark.parametrize("options", [{}, {"bits": 4}, {"range": "mse"}, {"symmetric": False}])
def test_tiny_weights_keep_their_digits(size, options):
    w = np.float32(size) * jax.random.normal(jax.random.key(0), (16, 8))
    q = ja.quantize({"kernel": w}, **options)["kernel"]
    want = ja.quantize({"kernel": w / np.float32(size)}, **options)["kernel"]
    if size > 1e-35 and "range" not in options:  # smaller scales end where normal numbers do
        np.testing.assert_allclose(q.integers(), want.integers(), atol=1)
    found, exact = np.float64(q.materialize()) / size, np.float64(w) / size
    assert np.abs(found - exact).max() < 0.51 * float(want.scale.max()) + (0.4 if "range" in options else 0)


def test_channels_of_zeros_stay_zeros():
    w = jax.random.normal(jax.random.key(0), (16, 8)).at[:, 3].set(0)
    for options in ({}, {"bits": 4}, {"range": "mse"}, {"symmetric": False}):
        q = ja.quantize({"kernel": w}, **options)
        np.testing.assert_array_equal(q["kernel"].materialize()[:, 3], 0)
        y = ja.int8(lambda p, x: x @ p["kernel"])(q, jax.random.normal(jax.random.key(1), (4, 16)))
        assert np.isfinite(y).all() and not np.asarray(y)[:, 3].any()


def test_tiny_activations_are_no_zeros_and_a_range_of_zero_has_a_finite_gradient():
    w, x = jax.random.normal(jax.random.key(0), (8, 4)), 1e-14 * jax.random.normal(jax.random.key(1), (3, 8))
    f = lambda p, x: x @ p["kernel"]  # noqa: E731
    y = ja.int8(f)(ja.quantize({"kernel": w}), x)
    np.testing.assert_allclose(y, x @ w, atol=0.05e-14)

    def loss(largest):
        return ja.fake_int8(f, calibration=ja.transforms.Calibration({"kernel": largest}))(
            {"kernel": w}, x
        ).sum()

    assert np.isfinite(jax.grad(loss)(jnp.float32(0.0)))
