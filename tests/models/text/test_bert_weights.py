"""Weights of BERTs as PyTorch's programs save them, against a BERT in NumPy."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy_bert import draw_arrays, encode, normalize
from safetensors.numpy import load_file, save_file
from small_texts import draw_texts, fast_jit, pad_texts

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.core.packages import find_package_file
from jaxaccel.models.adapter import as_model
from jaxaccel.tasks.metrics import Headline
from jaxaccel.training.warm_start import load_start

INPUTS = (jax.ShapeDtypeStruct((2, 16), jnp.int32), jax.ShapeDtypeStruct((2, 16), jnp.bool_))
FACTS = {"vocabulary": 40, "classes": 3, "max_length": 16}
SMALL = functools.partial(models.Bert, width=12, depth=3, heads=3, longest=20)
TEXTS = draw_texts((5, 16, 1, 9))


def filled(make, start, seed=0):
    """The module in inference with the weights of a start, and random ones where it has none."""
    module, rng = nnx.eval_shape(make), np.random.default_rng(seed)
    state = nnx.state(module, nnx.Param)
    for path, leaf in nnx.to_flat_state(state):
        name = "/".join(map(str, ("params", *path)))
        value = start.weights[name] if name in start.weights else rng.standard_normal(leaf.shape)
        leaf.set_value(jnp.asarray(value, leaf.dtype))
    nnx.update(module, state)
    module.eval()
    return module


@fast_jit
def embed(graph_and_state, tokens, mask):
    return nnx.merge(*graph_and_state).features(tokens, mask)


def small_arrays(**options):
    return draw_arrays(3, 12, 48, 40, 20, **options)


@pytest.mark.parametrize(("before", "pooler"), [("", True), ("bert.", True), ("", False)])
def test_a_small_bert_equals_numpy(tmp_path, before, pooler):
    arrays = small_arrays(before=before, pooler=pooler)
    more = {"embeddings.position_ids": np.arange(20)[None]}
    if before:  # a head of another task
        transform = "cls.predictions.transform.dense"
        more |= {f"{transform}.weight": np.eye(12), f"{transform}.bias": np.ones(12)}
        more |= {"cls.predictions.bias": np.ones(40)}
    file = tmp_path / "model.safetensors"
    save_file(arrays | more, file)
    start = load_start(file, as_model(SMALL, FACTS, INPUTS), INPUTS, Headline("accuracy", "higher"))
    assert start.fresh == ("params/head/bias", "params/head/kernel")
    model = filled(lambda: SMALL(**FACTS, rngs=nnx.Rngs(0), dropout=0.0), start)
    inputs = pad_texts(TEXTS, 16)
    last = [encode(arrays, text, 3, before) for text in TEXTS]
    np.testing.assert_allclose(
        embed(nnx.split(model), *inputs), [normalize(x.mean(0)) for x in last], atol=1e-5
    )
    kernel, bias = (np.asarray(x[...], np.float64) for x in (model.head.kernel, model.head.bias))
    for pool in ("mean", "first"):
        model.pool = pool
        logits = fast_jit(lambda m, *x: nnx.merge(*m)(*x))(nnx.split(model), *inputs)
        expected = [(x.mean(0) if pool == "mean" else x[0]) @ kernel + bias for x in last]
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_file_of_another_bert(tmp_path):
    file, headline = tmp_path / "model.safetensors", Headline("accuracy", "higher")
    save_file(small_arrays(), file)
    for facts, said in (({"vocabulary": 41}, "embed with weight"), ({"depth": 4}, r"blocks\.3")):
        options = {**FACTS, **facts}
        model = as_model(functools.partial(SMALL, **options), {}, INPUTS)
        with pytest.raises(ja.UserError, match=said) as caught:
            load_start(file, model, INPUTS, headline)
        assert "\n" not in str(caught.value)
    shallow = as_model(functools.partial(SMALL, depth=2), FACTS, INPUTS)
    with pytest.raises(ja.UserError, match="is of another model"):
        load_start(file, shallow, INPUTS, headline)


@pytest.fixture(scope="module")
def minilm():
    """(arrays of the file, model in inference, the tokenizer's vocabulary), of the installed package."""
    try:
        file = find_package_file("minilm_l6")
    except ja.UserError as error:
        pytest.skip(str(error))
    facts = {"vocabulary": 30_522, "classes": 3, "max_length": 64}
    model = as_model(models.minilm_l6, facts, INPUTS)
    start = load_start(Path("minilm_l6"), model, INPUTS, Headline("accuracy", "higher"))
    assert start.fresh == ("params/head/bias", "params/head/kernel")
    module = filled(lambda: models.minilm_l6(**facts, rngs=nnx.Rngs(0), dropout=0.0), start)
    words = json.loads(find_package_file("minilm_l6", "tokenizer.json").read_text(encoding="utf-8"))
    return load_file(file), module, words["model"]["vocab"]


SENTENCES = """how many people live in chile|what is the capital of france|who wrote the war of the worlds
the film is a delight from start to finish|a dull and boring mess|please play some music|turn the lights off
i need a flight to boston tomorrow morning|what does the word mean|the dog ran through the park|a cat is on the table
where is the nearest bank|when did the second world war end|how far is the moon from the earth
he was born in 1950 and died in 2001|the price of oil fell again today|my card was stolen , what should i do
the weather is lovely today .|it ' s so sunny outside !|he drove to the stadium .""".replace("\n", "|").split(
    "|"
)


def test_published_sentence_embeddings(minilm):
    arrays, module, words = minilm
    texts = [[101, *(words[word] for word in sentence.split()), 102] for sentence in SENTENCES]
    assert len(texts) == 20
    found = np.asarray(embed(nnx.split(module), *pad_texts(texts, 24)))
    expected = np.stack([normalize(encode(arrays, text, 12).mean(0)) for text in texts])
    assert np.abs(found - expected).max() < 1e-4
    # The last three: two of the weather are alike, and the stadium is neither.
    likeness = found[-3:] @ found[-3:].T
    np.testing.assert_allclose(likeness[[0, 0, 1], [1, 2, 2]], [0.6660, 0.1046, 0.1411], atol=1e-4)
