import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_sounds import CHANNELS, CLASSES, SMALL, draw_sounds, fast_jit, pad_sounds, small, split

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core.paths import flatten_by_path
from jaxaccel.distributed.sharding import rule_of
from jaxaccel.models.adapter import abstract_variables, as_model, inference, output_shape
from jaxaccel.models.bound import Bound
from jaxaccel.models.layers.counts import count_parameters
from jaxaccel.models.layers.frames import TimeConv, stack_frames, subsample_mask
from jaxaccel.models.layers.scan import unstack

# Bands, inputs of the head, and the parameters but for those of the head.
PRESETS = {
    "bc_resnet_1": (40, 32, 9_232 - 12 * 33),  # with 12 classes 9.2 k, 54.2 k and 321 k are published
    "bc_resnet_3": (40, 96, 54_168 - 12 * 97),
    "bc_resnet_8": (40, 256, 321_068 - 12 * 257),
    "conformer_ctc": (80, 144, 4 * (23 * 144**2 + 61 * 144) + 320 + 9_248 + 641 * 144),
    "deep_speech": (80, 128, 121 * 16 + 55 * 256 + 60 * 32 + 2 * 384 * (448 + 2 * 256 + 6) + 6 * 128),
    "gru_ctc": (0, 256, 128 + 6 * (128 + 256 + 2 * 128) * 128 + 24 * 128),
    "lstm_ctc": (0, 256, 128 + 8 * (128 + 256 + 2 * 128) * 128 + 16 * 128),
}
FACTS = {"classes": 12, "channels": 40, "subsampling": 4}
INPUTS = (jax.ShapeDtypeStruct((2, 50, 40), jnp.float32), jax.ShapeDtypeStruct((2, 50), jnp.bool_))
NO_MASK = INPUTS[:1]


def test_every_preset_is_counted():
    of_sounds = {name for name in models.__all__ if ".models.audio." in getattr(models, name).__module__}
    assert {name for name in of_sounds if name[0].islower()} == {*PRESETS, "silero_vad"}


@pytest.mark.parametrize("name", PRESETS)
def test_size(name):
    channels, inputs, rest = PRESETS[name]
    factory = getattr(models, name)
    model = nnx.eval_shape(lambda: factory(channels=channels or 80, classes=7, rngs=nnx.Rngs(0)))
    first = 0 if channels else 128 * 2 * 80
    assert count_parameters(model) == first + 7 * (inputs + 1) + rest
    assert f"{rest:,}" in factory.__doc__ and f"{inputs + 1} * classes" in factory.__doc__


@pytest.mark.parametrize(("name", "rest"), [("lstm_ctc", 263_296), ("gru_ctc", 198_272)])
def test_size_in_one_direction(name, rest):
    factory = functools.partial(getattr(models, name), bidirectional=False)
    model = nnx.eval_shape(lambda: factory(channels=80, classes=7, subsampling=4, rngs=nnx.Rngs(0)))
    assert count_parameters(model) == 128 * 4 * 80 + 7 * 129 + rest
    assert f"{rest:,}" in getattr(models, name).__doc__


@pytest.mark.parametrize("name", PRESETS)
def test_the_trainer_can_make_and_call_it(name):
    out = output_shape(as_model(getattr(models, name), FACTS, INPUTS), INPUTS)
    assert (out.shape, out.dtype) == ((2, 12) if name.startswith("bc") else (2, 13, 12), jnp.float32)


def test_parameters_stand_at_the_paths_that_are_documented():
    def paths(name):
        return set(flatten_by_path(abstract_variables(as_model(getattr(models, name), FACTS, INPUTS))[0]))

    recurrent = {f"{way}/{i}/{part}/kernel" for way in ("forward", "backward") for i in (0, 1)
                 for part in ("input", "recurrent")}  # fmt: skip
    assert {"project/kernel", "head/bias", *recurrent} <= paths("lstm_ctc") & paths("gru_ctc")
    assert "forward/1/recurrent/bias" in paths("gru_ctc") - paths("lstm_ctc")
    deep = {"convs/1/conv/kernel", "norms/1/scale", "forward/2/recurrent/kernel", "backward/0/input/bias"}
    assert deep | {"between/1/scale", "norm/bias", "head/kernel"} <= paths("deep_speech")
    found = paths("conformer_ctc")
    assert {"convs/0/conv/bias", "project/kernel", "blocks/3/norm2/scale", "head/kernel"} <= found
    assert {
        f"blocks/0/{p}/{q}" for p in ("before", "after") for q in ("norm/scale", "mlp/up/kernel")
    } <= found
    convolution = ("norm/scale", "expand/kernel", "depthwise/kernel", "inner_norm/bias", "project/bias")
    assert {f"blocks/0/convolution/{part}" for part in convolution} <= found
    words = {
        "stem/conv/kernel",
        "stem_norm/norm/scale",
        "blocks/0/expand/conv/kernel",
        "widen_norm/norm/bias",
    }
    words |= {f"blocks/1/{part}/conv/kernel" for part in ("over_bands", "over_time", "project")}
    words |= {f"blocks/11/{part}/norm/scale" for part in ("bands_norm", "time_norm")}
    assert words | {"last/conv/kernel", "widen/conv/kernel", "head/kernel"} <= paths("bc_resnet_1")
    assert "blocks/1/expand/conv/kernel" not in paths("bc_resnet_1")


def test_tensor_parallelism_knows_the_paths():
    shapes = flatten_by_path(abstract_variables(as_model(models.conformer_ctc, FACTS, INPUTS))[0])
    counted = {path: rule.counts for path in shapes if (rule := rule_of(path))}
    assert counted["blocks/0/attention/query/kernel"] == "heads"
    assert counted["blocks/0/before/mlp/up/kernel"] == "outputs"
    assert counted["blocks/3/after/mlp/down/kernel"] == "inputs"


@pytest.mark.parametrize("name", ["lstm_stream", "gru_stream"])
def test_a_stream_equals_the_whole(name):
    """Chunks of several lengths, through the methods as a task calls them."""
    factory = functools.partial(SMALL[name], dropout=0.0)
    by = factory.keywords["subsampling"]
    facts = {"classes": CLASSES, "channels": CHANNELS}
    model = as_model(factory, facts, NO_MASK)
    params, _ = split(small(name))
    apply = Bound(inference(model), {"params": params, "model_state": {}})
    features = jnp.asarray(np.stack(draw_sounds((24, 24))))
    whole = apply(features, jnp.ones((2, 24), bool))
    assert whole.shape == (2, 24 // by, CLASSES)
    carry, found, at = apply.start(2), [], 0
    for length in (by, 2 * by, 24 - 3 * by):
        logits, carry = apply.step(features[:, at : at + length], carry)
        assert logits.shape == (2, length // by, CLASSES)
        found.append(logits)
        at += length
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ValueError, match=f"RecurrentCtc: {by + 1} frames are no multiple of subsampling={by}"
    ):
        apply.step(features[:, : by + 1], carry)


def test_a_bidirectional_model_does_not_stream():
    model = small("lstm")
    for call in (lambda: model.start(1), lambda: model.step(jnp.zeros((1, 2, CHANNELS)), ())):
        with pytest.raises(ValueError, match="bidirectional=False streams"):
            call()


def test_stacked_frames():
    x = jnp.arange(1.0, 11).reshape(1, 5, 2)
    np.testing.assert_array_equal(stack_frames(x, 2)[0], [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]])
    np.testing.assert_array_equal(stack_frames(x, 1), x)
    lengths = np.arange(1, 10)
    mask = np.arange(9) < lengths[:, None]
    for by in (1, 2, 4):
        np.testing.assert_array_equal(subsample_mask(mask, by).sum(1), -(-lengths // by))


def test_a_convolution_over_time_equals_numpy():
    conv = TimeConv(1, 1, 3, strides=(2, 1), dilation=2, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((1, 7, 4, 1)).astype(np.float32)
    mask = np.arange(7)[None] < 5
    found, fewer = conv(jnp.asarray(x), jnp.asarray(mask))
    kernel = np.asarray(conv.conv.kernel[..., 0, 0])
    padded = np.pad(np.where(mask[0, :, None], x[0, ..., 0], 0), ((2, 2), (1, 1)))
    expected = [[(padded[t : t + 5 : 2, f : f + 3] * kernel).sum() for f in range(4)] for t in range(0, 7, 2)]
    np.testing.assert_allclose(found[0, ..., 0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(fewer, [[True, True, True, False]])


@pytest.mark.parametrize("name", ["lstm", "gru_stream", "conformer_4", "deep_speech_2", "bc_resnet"])
def test_transformations(name):
    params, apply = split(small(name))
    inputs = pad_sounds(draw_sounds((15, 24, 9)), 24)
    by = SMALL[name].keywords.get("subsampling")
    counts = np.arange(24 // by) < -(-np.array([[15], [24], [9]]) // by) if by else np.ones(3, bool)

    def run(f, params):
        return np.asarray(fast_jit(f)(params, *inputs))[counts]

    plain = run(apply, params)
    size = np.abs(plain - plain.mean(0)).max()
    np.testing.assert_allclose(run(ja.retarget(apply), params), plain, rtol=1e-4, atol=1e-4)
    assert np.abs(run(ja.bfloat16(apply), params) - plain).max() < 0.1 * size
    assert 0 < np.abs(run(ja.int8(apply), ja.quantize(params)) - plain).max() < 0.25 * size


@pytest.mark.parametrize(
    ("name", "site"),
    [("lstm", "forward/1/recurrent/kernel"), ("conformer_4", "blocks/0/before/mlp/up/kernel")],
)
def test_compression(name, site):
    params, apply = split(small(name))
    inputs = pad_sounds(draw_sounds((15, 24)), 24)
    plain = fast_jit(apply)(params, *inputs)[1]
    rows = ja.explain(ja.int8(apply), ja.quantize(params), *inputs).rows
    assert [row["after"] for row in rows if row["path"] == site] == ["int8"]
    thin = ja.low_rank(params, rank=2, where=site)
    flat = flatten_by_path(params)
    factors = functools.reduce(
        lambda tree, key: tree[int(key) if key.isdigit() else key], site.split("/"), thin
    )
    product = jnp.asarray(np.asarray(factors.left) @ np.asarray(factors.right))
    whole = jax.tree.map(lambda x: product if x is flat[site] else x, params)
    expected = fast_jit(apply)(whole, *inputs)[1]
    found = fast_jit(ja.transforms.compressed(apply))(thin, *inputs)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found - plain).max() > 1e-3
    masks = ja.prune(params, 0.5, where=site)
    pruned = ja.params.masked(params, masks)
    assert np.mean(np.asarray(flatten_by_path(pruned)[site]) == 0) == 0.5
    found = fast_jit(apply)(pruned, *inputs)[1]
    assert np.isfinite(found).all() and np.abs(found - plain).max() > 1e-3


def test_a_scanned_conformer_equals_the_unrolled_one():
    params, apply = split(small("conformer_scanned"))
    inputs = pad_sounds(draw_sounds((5, 9)), 12)
    found = fast_jit(split(small("conformer_4"))[1])(unstack(params), *inputs)
    expected = fast_jit(apply)(params, *inputs)
    for row, outputs in ((0, 2), (1, 3)):
        np.testing.assert_allclose(found[row, :outputs], expected[row, :outputs], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (models.RecurrentCtc, {"depth": 0}, "depth=0 must be at least 1"),
        (models.RecurrentCtc, {"cell": "rnn"}, "cell='rnn' must be 'lstm' or 'gru'"),
        (models.lstm_ctc, {"subsampling": 3}, "RecurrentCtc: subsampling=3 must be 1, 2 or 4"),
        (models.gru_ctc, {"dropout": 1.0}, "dropout=1.0 must be in"),
        (models.deep_speech, {"filters": 0}, "filters=0, features=128 and depth=3 must be at least 1"),
        (models.deep_speech, {"windows": ((4, 3), (3, 3))}, "must be two pairs of odd numbers"),
        (models.deep_speech, {"subsampling": 8}, "DeepSpeech: subsampling=8 must be 1, 2 or 4"),
        (models.conformer_ctc, {"width": 12, "heads": 4}, "width=12 and heads=4 give no heads of an even size"),
        (models.conformer_ctc, {"window": 4}, "window=4 must be odd"),
        (models.BcResNet, {"scale": 0}, "scale=0 must be above 0"),
        (models.BcResNet, {"channels": 5}, "channels=5 must be at least 8 bands"),
    ],
)  # fmt: skip
def test_bad_arguments(factory, options, message):
    options = {"channels": 40, "classes": 2, **options}
    with pytest.raises(ValueError, match=message) as caught:
        nnx.eval_shape(lambda: factory(**options, rngs=nnx.Rngs(0)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [8, 23, 40, 64, 80])
def test_bands_of_a_bc_resnet(channels):
    """Any number of bands works; 40 have the paper's five groups."""
    model = nnx.eval_shape(lambda: models.bc_resnet_1(classes=3, channels=channels, rngs=nnx.Rngs(0)))
    groups = {40: 5, 80: 5, 64: 4, 23: 4, 8: 4}[channels]
    assert model.blocks[0].bands_norm.groups == groups
    inputs = (jax.ShapeDtypeStruct((2, 50, channels), jnp.float32), INPUTS[1])
    out = output_shape(as_model(models.bc_resnet_1, {"classes": 3, "channels": channels}, inputs), inputs)
    assert out.shape == (2, 3)


@pytest.mark.parametrize("name", ["lstm", "deep_speech_2", "conformer_4", "bc_resnet"])
def test_dropout_follows_the_key_in_training(name):
    facts = {"classes": CLASSES, "channels": CHANNELS}
    model = as_model(functools.partial(SMALL[name], dropout=0.5), facts, INPUTS)
    params, state = abstract_variables(model)
    rng = np.random.default_rng(0)
    params, state = jax.tree.map(
        lambda x: jnp.asarray(np.abs(rng.standard_normal(x.shape)), x.dtype), (params, state)
    )
    inputs = pad_sounds(draw_sounds((5, 9)), 12)
    run = fast_jit(functools.partial(model.apply, train=True))
    one, other, again = (run(params, state, *inputs, key=jax.random.key(i))[0] for i in (0, 1, 0))
    assert (one != other).any()
    np.testing.assert_array_equal(one, again)
