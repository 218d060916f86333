"""A small model of each family that writes token by token, filled from NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel import models
from jaxaccel.models.adapter import abstract_variables, as_model

VOCABULARY = 20
SMALL_WRITERS = {
    "translator": functools.partial(models.Translator, width=12, depth=2, heads=3, hidden=20),
    "attention_gru": functools.partial(models.AttentionGru, width=6, features=4, depth=2),
    "language_model": functools.partial(models.LanguageModel, width=12, depth=2, heads=3),
}

# Features of the table, and the parameters but for those of a token.
WRITERS = {
    "translator_tiny": (128, 4 * (4 * 128**2 + 2 * 128 * 256) + 4 * (8 * 128**2 + 2 * 128 * 256)),
    "translator_base": (512, 6 * (4 * 512**2 + 2 * 512 * 2048) + 6 * (8 * 512**2 + 2 * 512 * 2048)),
    "attention_gru": (257, 2 * 6 * 256**2 + 6 * 256**2 + (2 + 2 + 3) * 256**2),
    "language_model_tiny": (128, 4 * 12 * 128**2),
    "language_model_s": (384, 6 * 12 * 384**2),
}
"""Of kernels alone: biases and norms are a percent more."""


def shapes_of(kind, rows=2, source=6, target=5):
    """The inputs of a call."""
    previous = jax.ShapeDtypeStruct((rows, target), jnp.int32)
    if kind.startswith("language"):
        return (previous,)
    shape = (rows, source)
    return jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.bool_), previous


def small_writer(kind, dropout=0.0, seed=0):
    """(Model, variables) with random arrays."""
    facts = {"vocabulary": VOCABULARY, "pad": 0, "begin": 1, "end": 2, "max_length": 16}
    model = as_model(functools.partial(SMALL_WRITERS[kind], dropout=dropout), facts, shapes_of(kind))
    params, state = abstract_variables(model)
    rng = np.random.default_rng(seed)

    def fill(path, x):
        scale = jax.tree_util.keystr(path).endswith("'scale']")
        return jnp.asarray(0.4 * rng.standard_normal(x.shape) + scale, x.dtype)

    return model, {"params": jax.tree_util.tree_map_with_path(fill, params), "model_state": state}


def draw(lengths, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, n) for n in lengths]


def fill_up(texts, length, seed=2):
    """(tokens, mask) of `length`; ids that no table has stand where there is no token."""
    tokens = np.random.default_rng(seed).integers(-(2**31), 2**31 - 1, (len(texts), length), np.int64)
    mask = np.arange(length) < np.asarray([len(text) for text in texts])[:, None]
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    return jnp.asarray(tokens.astype(np.int32)), jnp.asarray(mask)


def start(call, variables, sources, length, rows):
    """The cache that decoding begins with; `sources` are (tokens, mask), or nothing for a language model."""
    if not sources:
        return call(variables, length, rows, method="start")
    memory = call(variables, *sources, method="encode")
    return call(variables, memory, sources[1], length, method="start")
