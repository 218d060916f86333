"""Networks whose inference is measured, with weights as training leaves them: nowhere all zeros or ones."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.trainer import MLP
from jaxaccel import models
from jaxaccel.core.paths import path_text
from jaxaccel.models.adapter import as_model
from jaxaccel.models.layers.transformer import Block


class LSTM(nnx.Module):
    """A long short-term memory over a sequence; its last output is classified."""

    def __init__(self, *, features: int, classes: int, rngs: nnx.Rngs) -> None:
        self.rnn = nnx.RNN(nnx.LSTMCell(features, features, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(features, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, features) -> (B, classes)."""
        outputs: Any = self.rnn(x)
        return self.head(outputs[:, -1])


class Encoder(nnx.Module):
    """A pre-norm Transformer encoder over a sequence of embeddings; the mean of its outputs is classified."""

    def __init__(self, *, width: int, depth: int, heads: int, classes: int, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([Block(width, heads, 4 * width, dropout=0.0, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, width) -> (B, classes)."""
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


@dataclasses.dataclass(frozen=True)
class Network:
    """How to make a network, and what it is fed."""

    name: str
    make: Callable[..., nnx.Module]
    """Takes `rngs`."""
    shape: tuple[int, ...]
    """Of one example."""

    def examples(self, batch_size: int, seed: int = 1) -> jax.Array:
        """Draws inputs of variance 1."""
        return jax.random.normal(jax.random.key(seed), (batch_size, *self.shape))


NETWORKS: Mapping[str, Network] = {
    network.name: network
    for network in (
        Network("resnet20", partial(models.resnet20, classes=10), (32, 32, 3)),
        Network("resnet50", models.resnet50, (224, 224, 3)),
        Network("mobilenet_v2", models.mobilenet_v2, (224, 224, 3)),
        Network("vit_s16", models.vit_s16, (224, 224, 3)),
        Network("mlp", partial(MLP, hidden=1024, image_size=28, channels=1, classes=10), (28, 28, 1)),
        Network("lstm", partial(LSTM, features=256, classes=10), (64, 256)),
        Network("encoder", partial(Encoder, width=512, depth=6, heads=8, classes=10), (128, 512)),
    )
}


def make_function(network: Network) -> tuple[Callable[[Any, jax.Array], jax.Array], dict[str, Any]]:
    """Makes (f, variables): ``f(variables, x)`` are the network's outputs in inference."""
    shape = jax.ShapeDtypeStruct((1, *network.shape), jnp.float32)
    model = as_model(network.make, {}, (shape,))

    def f(variables: Any, x: jax.Array) -> jax.Array:
        return model.apply(variables["params"], variables["state"], x, key=jax.random.key(0), train=False)[0]

    params, state = jax.jit(model.init)(jax.random.key(0))
    return f, fill_constants({"params": params, "state": state})


def make_module(network: Network, variables: Mapping[str, Any]) -> nnx.Module:
    """Makes the same network as a Flax module, in inference."""
    made = network.make(rngs=nnx.Rngs(0))
    _, params, _, state = nnx.split(made, nnx.Param, nnx.RngState, ...)
    for part, values in ((params, variables["params"]), (state, variables["state"])):
        nnx.replace_by_pure_dict(part, values)
        nnx.update(made, part)
    made.eval()
    return made


def fill_constants(variables: dict[str, Any]) -> dict[str, Any]:
    """Draws every constant leaf of `variables` at random.

    Heads and the last BatchNorm of a residual block start at 0: quantized or not, an untrained network answers 0.
    """

    def one(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        values, text = np.asarray(x), path_text(path)
        if x.size > 1 and (values != values.flat[0]).any():
            return x
        rng = np.random.default_rng(zlib.crc32(text.encode()))
        positive = {"scale", "var"} & set(text.split("/"))
        drawn = rng.uniform(0.5, 1.5, x.shape) if positive else rng.normal(0, 0.1, x.shape)
        return jnp.asarray(drawn, x.dtype)

    return jax.tree_util.tree_map_with_path(one, variables)
