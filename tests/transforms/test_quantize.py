"""quantize: which leaves, at which scales, within half a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxaccel as ja
from jaxaccel.core import numerics
from jaxaccel.core.arrays import QuantArray, expand

PARAMS = {
    "conv": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 8, 16)), "bias": jnp.ones(16)},
    "emb": {"embedding": jax.random.normal(jax.random.key(1), (10, 32))},
    "steps": jnp.arange(6).reshape(2, 3),
}


def is_quantized(tree):
    return {
        ja_path: isinstance(x, QuantArray)
        for ja_path, x in (
            (jax.tree_util.keystr(path, simple=True, separator="/"), x)
            for path, x in jax.tree_util.tree_leaves_with_path(
                tree, is_leaf=lambda x: isinstance(x, QuantArray)
            )
        )
    }


def test_kernels_and_embeddings_are_taken_by_default():
    assert is_quantized(ja.quantize(PARAMS)) == {
        "conv/kernel": True, "conv/bias": False, "emb/embedding": True, "steps": False,
    }  # fmt: skip


def test_leaves_by_pattern_and_by_predicate():
    assert is_quantized(ja.quantize(PARAMS, "emb/*"))["conv/kernel"] is False
    assert is_quantized(ja.quantize(PARAMS, lambda path: path.startswith("conv")))["emb/embedding"] is False
    assert is_quantized(ja.quantize(PARAMS, "**")) == is_quantized(ja.quantize(PARAMS))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("options", [{}, {"channels": ()}, {"block": 4}, {"symmetric": False}])
def test_the_error_is_half_a_step(bits, options):
    q = ja.quantize(PARAMS, bits=bits, **options)
    pairs = [
        (PARAMS["conv"]["kernel"], q["conv"]["kernel"]),
        (PARAMS["emb"]["embedding"], q["emb"]["embedding"]),
    ]
    for dense, array in pairs:
        step = expand(array.scale, array.shape)
        assert bool(jnp.all(jnp.abs(array.materialize() - dense) <= 0.5 * step * 1.001))
        assert array.integers().dtype == jnp.int8
        low = -numerics.qmax(bits) - (array.zero_point is not None)
        assert low <= int(array.integers().min()) and int(array.integers().max()) <= numerics.qmax(bits)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("low", "high"), [(10, 11), (-11, -10), (-1, 3), (0, 2)])
def test_zero_points_are_those_of_float64(low, high, bits):
    w = np.random.default_rng(0).uniform(low, high, (64, 3)).astype(np.float32)
    q = ja.quantize({"kernel": jnp.asarray(w)}, bits=bits, symmetric=False)["kernel"].unpacked()
    least, most = np.minimum(w.astype(np.float64).min(0), 0), np.maximum(w.astype(np.float64).max(0), 0)
    scale = (most - least) / (2**bits - 1)
    zero = np.round(-least / scale) - 2 ** (bits - 1)
    np.testing.assert_allclose(q.scale[0], scale, rtol=1e-6)
    np.testing.assert_array_equal(q.zero_point[0], zero)
    np.testing.assert_array_equal(
        q.qvalue, np.clip(np.round(w / scale) + zero, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    assert (np.abs(q.materialize() - w) <= 0.501 * scale).all()


def test_channels_have_their_scales():
    q = ja.quantize(PARAMS)
    assert q["conv"]["kernel"].scale.shape == (1, 1, 1, 16)
    assert q["emb"]["embedding"].scale.shape == (10, 1)
    largest = jnp.max(jnp.abs(PARAMS["conv"]["kernel"]), (0, 1, 2), keepdims=True)
    np.testing.assert_allclose(q["conv"]["kernel"].scale, largest / 127, rtol=1e-6)
    by_shape = ja.quantize(PARAMS, channels=lambda path, shape: range(len(shape) - 2, len(shape)))
    assert by_shape["conv"]["kernel"].scale.shape == (1, 1, 8, 16)


@pytest.mark.parametrize("symmetric", [True, False])
def test_least_squares_clips_outliers(symmetric):
    w = jax.random.normal(jax.random.key(2), (1024, 4)).at[0].set(12.0)
    w = w if symmetric else jnp.abs(w)

    def error(by):
        found = ja.quantize({"kernel": w}, bits=4, range=by, symmetric=symmetric)["kernel"]
        return float(jnp.sum((found.materialize() - w) ** 2))

    assert error("mse") < 0.8 * error("absmax")


def test_rounding_is_that_of_numpy():
    x = np.concatenate([np.arange(-600, 601) / 4, [np.inf, -np.inf, 1e30, -1e-30]]).astype(np.float32)
    want = np.clip(np.round(x), -127, 127).astype(np.int8)
    for f in (numerics.to_integers, jax.jit(numerics.to_integers)):
        np.testing.assert_array_equal(f(jnp.asarray(x), jnp.float32(1)), want)


def test_stochastic_rounding_is_unbiased():
    x = jnp.full((20_000,), 0.3)
    rounded = numerics.round_stochastic(jax.random.key(0), x)
    assert set(np.unique(rounded)) == {0.0, 1.0} and abs(float(rounded.mean()) - 0.3) < 0.02


def test_an_array_of_zeros_stays_zero():
    q = ja.quantize({"kernel": jnp.zeros((4, 4))})["kernel"]
    assert bool(jnp.all(q.materialize() == 0)) and bool(jnp.all(jnp.isfinite(q.scale)))


def test_twice_is_once():
    once = ja.quantize(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, ja.quantize(once), once)


def test_bfloat16_parameters_come_back_as_bfloat16():
    q = ja.quantize({"kernel": jnp.ones((4, 4), jnp.bfloat16)})["kernel"]
    assert q.dtype == jnp.bfloat16 and q.materialize().dtype == jnp.bfloat16


def test_an_nnx_module_is_a_pytree_like_any_other():
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    q = ja.quantize(model, "kernel")
    x = jnp.ones((2, 8))
    got = ja.int8(lambda model, x: model(x))(q, x)
    np.testing.assert_allclose(got, model(x), atol=0.05)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"where": "**/kernl"}, "nearest: .*conv/kernel"),
        ({"bits": 3}, "8 or 4"),
        ({"block": 5}, "does not divide"),
        ({"range": "max"}, "absmax or mse"),
        ({"where": "steps"}, "matches none"),
    ],
)
def test_mistakes_get_one_line(options, says):
    with pytest.raises(ja.UserError, match=says) as error:
        ja.quantize(PARAMS, **options)
    assert "\n" not in str(error.value)
