import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_texts import CLASSES, SMALL, VOCABULARY, draw_texts, fast_jit, pad_texts, small, split
from small_writers import WRITERS

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core.paths import flatten_by_path
from jaxaccel.distributed.sharding import rule_of
from jaxaccel.models.adapter import abstract_variables, as_model, output_shape
from jaxaccel.models.layers.counts import count_parameters
from jaxaccel.models.layers.scan import unstack
from jaxaccel.models.layers.tokens import embed_tokens, masked_max, masked_mean
from jaxaccel.models.text.fast_text import hash_ngrams

# Features of an embedding, and the parameters but for those of the table and of the head.
PRESETS = {
    "bilstm": (128, 256, 263_168),
    "fast_text": (64, 64, 2**15 * 64),
    "minilm_l6": (384, 384, 22_713_216 - 30_522 * 384 - 384 * 385),  # as published, without its pooler
    "text_cnn": (128, 300, 128 * 100 * (3 + 4 + 5) + 300),
    "text_encoder_s": (384, 384, 6 * (12 * 384**2 + 13 * 384) + 2 * 384),
    "text_encoder_ti": (128, 128, 4 * (12 * 128**2 + 13 * 128) + 2 * 128),
}
FACTS = {"vocabulary": 100, "classes": 3, "max_length": 24, "pad": 0}
INPUTS = (jax.ShapeDtypeStruct((2, 24), jnp.int32), jax.ShapeDtypeStruct((2, 24), jnp.bool_))
MIX = (*INPUTS, jax.ShapeDtypeStruct((2,), jnp.float32))


def test_every_preset_is_counted():
    of_text = {name for name in models.__all__ if ".models.text." in getattr(models, name).__module__}
    assert {name for name in of_text if name[0].islower()} == PRESETS.keys() | WRITERS.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_size(name):
    width, inputs, rest = PRESETS[name]
    factory = getattr(models, name)
    model = nnx.eval_shape(lambda: factory(vocabulary=1000, classes=7, rngs=nnx.Rngs(0)))
    assert count_parameters(model) == 1000 * width + 7 * (inputs + 1) + rest
    assert f"{rest:,}" in factory.__doc__ or name == "minilm_l6"


@pytest.mark.parametrize("name", PRESETS)
def test_the_trainer_can_make_and_call_it(name):
    model = as_model(getattr(models, name), FACTS, INPUTS)
    for inputs in (INPUTS, (*INPUTS, MIX)):
        out = output_shape(model, inputs)
        assert (out.shape, out.dtype) == ((2, 3), jnp.float32)


@pytest.mark.parametrize("name", ["text_encoder_ti", "minilm_l6"])
def test_tensor_parallelism_knows_the_paths(name):
    shapes = flatten_by_path(abstract_variables(as_model(getattr(models, name), FACTS, INPUTS))[0])
    counted = {path: rule.counts for path in shapes if (rule := rule_of(path))}
    for part, of in (
        ("attention/query", "heads"),
        ("attention/out", "heads"),
        ("mlp/up", "outputs"),
        ("mlp/down", "inputs"),
    ):
        assert counted[f"blocks/0/{part}/kernel"] == of
    assert shapes["blocks/0/attention/query/kernel"].shape[-2] in (4, 12)
    assert not any(path.startswith(("embed", "norm", "head")) for path in counted)


@pytest.mark.parametrize("name", ["fast_text", "text_cnn", "bilstm_max", "encoder_rotary", "bert"])
def test_transformations(name):
    params, apply = split(small(name))
    inputs = pad_texts(draw_texts((5, 16, 9, 12)), 16)
    plain = np.asarray(fast_jit(apply)(params, *inputs))
    size = np.abs(plain - plain.mean(0)).max()
    same = fast_jit(ja.retarget(apply))(params, *inputs)
    np.testing.assert_allclose(same, plain, rtol=1e-4, atol=1e-4)
    narrow = np.asarray(fast_jit(ja.bfloat16(apply))(params, *inputs))
    assert np.abs(narrow - plain).max() < 0.05 * size
    quantized = ja.quantize(params)
    whole = np.asarray(fast_jit(ja.int8(apply))(quantized, *inputs))
    assert 0 < np.abs(whole - plain).max() < 0.15 * size


def test_a_scanned_encoder_equals_the_unrolled_one():
    params, apply = split(small("encoder_scanned"))
    loose = unstack(params)
    other = nnx.eval_shape(
        lambda: models.TextEncoder(
            width=12, depth=2, heads=3, vocabulary=VOCABULARY, classes=CLASSES, dropout=0.0, rngs=nnx.Rngs(0)
        )
    )
    inputs = pad_texts(draw_texts((5, 9)), 12)
    found = fast_jit(split(other)[1])(loose, *inputs)
    np.testing.assert_allclose(found, fast_jit(apply)(params, *inputs), rtol=1e-5, atol=1e-5)


def test_ngrams():
    tokens = jnp.asarray([[3, 4, 5, 3, 4], [4, 3, 7, 9, 9]])
    mask = jnp.asarray([[True] * 5, [True] * 3 + [False] * 2])
    rows, there = hash_ngrams(tokens, mask, 2, 1 << 30)
    np.testing.assert_array_equal(there, [[True] * 4, [True, True, False, False]])
    assert rows[0, 0] == rows[0, 3] and len(set(rows.ravel().tolist())) == 7, "equal pairs alone are equal"
    assert hash_ngrams(tokens[:, :2], mask[:, :2], 3, 8)[0].shape == (2, 0)
    rows, _ = hash_ngrams(jnp.arange(20_000).reshape(2, -1), jnp.ones((2, 10_000), bool), 2, 64)
    counts = np.bincount(rows.ravel(), minlength=64)
    assert len(counts) == 64 and counts.min() > 200 and counts.max() < 450  # 312 each, give or take


def test_embeddings_are_zero_and_without_gradient_where_there_is_no_token():
    embed = nnx.Embed(5, 3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(embed)
    tokens, mask = jnp.asarray([[1, 2, 99, -7]]), jnp.asarray([[True, True, False, False]])

    def total(state):
        x, _ = embed_tokens(nnx.merge(graph, state), tokens, mask)
        return x.sum(), x

    gradient, x = jax.grad(total, has_aux=True)(state)
    np.testing.assert_array_equal(x[0, 2:], np.zeros((2, 3)))
    np.testing.assert_array_equal(gradient["embedding"][...], np.outer([0, 1, 1, 0, 0], np.ones(3)))


def test_pooling_counts_what_is_there():
    x = jnp.asarray([[[1.0, -5], [3, -5], [100, np.nan]], [[np.inf, 7], [1, 2], [3, 4]]])
    mask = jnp.asarray([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(masked_mean(x, mask), [[2, -5], [0, 0]])
    np.testing.assert_array_equal(masked_max(x, mask), [[3, -5], [0, 0]])
    gradient = jax.grad(lambda x: masked_max(x, mask).sum())(x)
    np.testing.assert_array_equal(gradient, [[[0, 1], [1, 0], [0, 0]], np.zeros((3, 2))])


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (models.FastText, {"buckets": 0}, "buckets=0 must be at least 1"),
        (models.TextCnn, {"windows": ()}, r"windows=\(\) must be at least 1"),
        (models.TextCnn, {"dropout": 1.0}, "dropout=1.0 must be in"),
        (models.BiLstm, {"depth": 0}, "depth=0 must be at least 1"),
        (models.BiLstm, {"pool": "last"}, "pool='last' must be 'max' or 'mean'"),
        (models.TextEncoder, {"width": 10, "depth": 1, "heads": 3}, "width=10 is no multiple of heads=3"),
        (models.TextEncoder, {"width": 9, "depth": 1, "heads": 3}, "odd size, which cannot rotate"),
        (models.text_encoder_ti, {"positions": "sine"}, "positions='sine' must be 'rotary' or 'learned'"),
        (models.Bert, {"width": 10, "depth": 1, "heads": 3}, "width=10 is no multiple of heads=3"),
        (models.minilm_l6, {"pool": "last"}, "pool='last' must be 'mean' or 'first'"),
        (models.minilm_l6, {"max_length": 513}, "positions for 512 tokens, and texts have up to 513"),
    ],
)  # fmt: skip
def test_bad_arguments(factory, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        nnx.eval_shape(lambda: factory(**options, vocabulary=9, classes=2, rngs=nnx.Rngs(0)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["encoder_learned", "bert"])
def test_a_text_longer_than_the_positions(name):
    with pytest.raises(ValueError, match="has positions for 64 tokens, got texts of 65"):
        small(name)(*pad_texts(draw_texts((3,)), 65))


@pytest.mark.parametrize("name", ["fast_text", "text_cnn", "bilstm_mean", "encoder_rotary", "bert"])
def test_dropout_follows_the_key_in_training(name):
    model = as_model(functools.partial(SMALL[name], dropout=0.5), FACTS, INPUTS)
    params, state = abstract_variables(model)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), params)
    inputs = pad_texts(draw_texts((5, 9)), 12)
    run = fast_jit(functools.partial(model.apply, train=True))
    one, other, again = (run(params, state, *inputs, key=jax.random.key(i))[0] for i in (0, 1, 0))
    assert (one != other).any()
    np.testing.assert_array_equal(one, again)
