"""A small model of each family of sounds, filled from NumPy, and sounds of several lengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxaccel import models

CLASSES, CHANNELS = 5, 10

SMALL = {
    "lstm": functools.partial(models.RecurrentCtc, width=6, features=4, subsampling=2),
    "lstm_stream": functools.partial(
        models.RecurrentCtc, width=6, features=4, bidirectional=False, subsampling=4
    ),
    "gru": functools.partial(models.RecurrentCtc, cell="gru", width=6, features=4, depth=1, subsampling=1),
    "gru_stream": functools.partial(
        models.RecurrentCtc, cell="gru", width=6, features=4, bidirectional=False, subsampling=2
    ),
    "deep_speech_1": functools.partial(models.DeepSpeech, filters=3, features=4, depth=1, subsampling=1),
    "deep_speech_2": functools.partial(models.DeepSpeech, filters=3, features=4, depth=2, subsampling=2),
    "deep_speech_4": functools.partial(models.DeepSpeech, filters=3, features=4, depth=1, subsampling=4),
    "conformer_1": functools.partial(
        models.Conformer, width=12, depth=1, heads=3, window=5, filters=3, subsampling=1
    ),
    "conformer_2": functools.partial(
        models.Conformer, width=12, depth=1, heads=3, window=5, filters=3, subsampling=2
    ),
    "conformer_4": functools.partial(
        models.Conformer, width=12, depth=2, heads=3, window=5, filters=3, subsampling=4
    ),
    "conformer_scanned": functools.partial(
        models.Conformer, width=12, depth=2, heads=3, window=5, filters=3, subsampling=4, scan=True
    ),
    "bc_resnet": functools.partial(models.BcResNet, scale=0.5, stages=((8, 2, 1, 1), (12, 1, 2, 2))),
}
SPEECH = [name for name in SMALL if name != "bc_resnet"]
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def small(name, seed=0):
    """A model of `SMALL` in inference, with random arrays; variances are positive, scales around 1."""
    model = nnx.eval_shape(
        lambda: SMALL[name](channels=CHANNELS, classes=CLASSES, dropout=0.0, rngs=nnx.Rngs(0))
    )
    rng = np.random.default_rng(seed)
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Variable):
            noise = 0.4 * rng.standard_normal(variable.shape)
            values = np.abs(noise) + 0.5 if path[-1] == "var" else noise + (path[-1] == "scale")
            variable.set_value(jnp.asarray(values, variable.dtype))
    model.eval()
    return model


def split(model):
    """(parameters, function of parameters, and of inputs, that may be told a method)."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return nnx.to_pure_dict(params), functools.partial(_call, graph, params, rest)


def _call(graph, shapes, rest, values, *inputs, method="__call__"):
    state = jax.tree.map(lambda x: x, shapes)
    nnx.replace_by_pure_dict(state, values)
    return getattr(nnx.merge(graph, state, rest, copy=True), method)(*inputs)


def draw_sounds(lengths, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, CHANNELS)).astype(np.float32) for n in lengths]


def pad_sounds(sounds, length, seed=2):
    """(features, mask) of `length`; garbage stands where there is no frame, NaN and infinity among it."""
    rng = np.random.default_rng(seed)
    features = 1e6 * rng.standard_normal((len(sounds), length, CHANNELS)).astype(np.float32)
    features[:, 1::3], features[:, 2::3] = np.nan, np.inf
    mask = np.zeros((len(sounds), length), bool)
    for row, sound in enumerate(sounds):
        features[row, : len(sound)] = sound
        mask[row, : len(sound)] = True
    return jnp.asarray(features), jnp.asarray(mask)
