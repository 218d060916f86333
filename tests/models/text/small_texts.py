"""A small model of each family of text, filled from NumPy, and texts of several lengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxaccel import models

VOCABULARY, CLASSES, LONGEST = 40, 5, 64

SMALL = {
    "fast_text": functools.partial(models.FastText, width=6, longest=3, buckets=32),
    "text_cnn": functools.partial(models.TextCnn, width=6, filters=4),
    "bilstm_max": functools.partial(models.BiLstm, width=6, features=4, depth=2),
    "bilstm_mean": functools.partial(models.BiLstm, width=6, features=4, pool="mean"),
    "encoder_rotary": functools.partial(models.TextEncoder, width=12, depth=1, heads=3, max_length=LONGEST),
    "encoder_learned": functools.partial(
        models.TextEncoder, width=12, depth=1, heads=3, positions="learned", max_length=LONGEST
    ),
    "encoder_scanned": functools.partial(
        models.TextEncoder, width=12, depth=2, heads=3, scan=True, max_length=LONGEST
    ),
    "bert": functools.partial(models.Bert, width=12, depth=1, heads=3, longest=LONGEST),
    "bert_first": functools.partial(models.Bert, width=12, depth=1, heads=3, longest=LONGEST, pool="first"),
}
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def small(name, seed=0):
    """A model of `SMALL` in inference, with random arrays; dropout and the like draw nothing."""
    model = nnx.eval_shape(
        lambda: SMALL[name](vocabulary=VOCABULARY, classes=CLASSES, dropout=0.0, rngs=nnx.Rngs(0))
    )
    rng = np.random.default_rng(seed)
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Param):
            noise = 0.4 * rng.standard_normal(variable.shape) + (path[-1] == "scale")
            variable.set_value(jnp.asarray(noise, variable.dtype))
    model.eval()
    return model


def split(model):
    """(parameters, function of parameters and inputs)."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return nnx.to_pure_dict(params), functools.partial(_call, graph, params, rest)


def _call(graph, shapes, rest, values, *inputs):
    state = jax.tree.map(lambda x: x, shapes)
    nnx.replace_by_pure_dict(state, values)
    return nnx.merge(graph, state, rest, copy=True)(*inputs)


def draw_texts(lengths, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCABULARY, n) for n in lengths]


def pad_texts(texts, length, seed=2):
    """(tokens, mask) of `length`; garbage stands where there is no token, ids that no table has among it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(-(2**31), 2**31 - 1, (len(texts), length), np.int64).astype(np.int32)
    tokens[:, 1::2] = rng.integers(0, VOCABULARY, tokens[:, 1::2].shape)
    mask = np.zeros(tokens.shape, bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
        mask[row, : len(text)] = True
    return jnp.asarray(tokens), jnp.asarray(mask)
