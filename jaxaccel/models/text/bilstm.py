"""LSTMs in both directions over a text (Graves and Schmidhuber 2005), and the maximum or mean over its tokens."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import head, optional_dropout
from jaxaccel.models.layers.recurrent import Lstm
from jaxaccel.models.layers.tokens import Mix, embed_tokens, masked_max, masked_mean


class BiLstm(nnx.Module):
    """Layers of LSTMs in both directions.

    Parameters stand at ``embed/embedding`` (vocabulary, width), ``forward/<i>`` and ``backward/<i>``
    (`jaxaccel.models.layers.recurrent.Lstm`) and ``head``.

    Args:
      width: features of an embedding.
      features: outputs of one direction of a layer.
      depth: layers.
      pool: what of the last layer's outputs is classified: the ``max`` over the text, or the ``mean``.
      dropout: probability of dropout of the embeddings, between layers and before the head.
      vocabulary: number of token ids.
      classes: outputs.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: a size is below 1, or `pool` is another word.
    """

    def __init__(
        self,
        *,
        width: int = 128,
        features: int = 128,
        depth: int = 1,
        pool: Literal["max", "mean"] = "max",
        dropout: float = 0.5,
        vocabulary: int,
        classes: int,
        rngs: nnx.Rngs,
    ) -> None:
        if min(width, features, depth) < 1:
            raise ValueError(f"BiLstm: {width=}, {features=} and {depth=} must be at least 1")
        if pool not in ("max", "mean"):
            raise ValueError(f"BiLstm: {pool=} must be 'max' or 'mean'")
        self.pool = pool
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        inputs = [width, *[2 * features] * (depth - 1)]
        self.forward = nnx.List([Lstm(n, features, rngs=rngs) for n in inputs])
        self.backward = nnx.List([Lstm(n, features, reverse=True, rngs=rngs) for n in inputs])
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(2 * features, classes, rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array, mix: Mix | None = None) -> jax.Array:
        """Logits (B, classes) of `tokens` (B, L) int where `mask` (B, L) is True."""
        x, mask = embed_tokens(self.embed, tokens, mask, mix)
        for forward, backward in zip(self.forward, self.backward, strict=True):
            x = self.dropout(x)
            x = jnp.concatenate([forward(x, mask)[0], backward(x, mask)[0]], axis=-1)
        pooled = masked_max(x, mask) if self.pool == "max" else masked_mean(x, mask)
        return self.head(self.dropout(pooled))


def bilstm(
    *,
    width: int = 128,
    features: int = 128,
    depth: int = 1,
    pool: Literal["max", "mean"] = "max",
    dropout: float = 0.5,
    vocabulary: int,
    classes: int,
    rngs: nnx.Rngs,
) -> BiLstm:
    """One layer of 128 in each direction: 128 * vocabulary + 257 * classes + 263,168 parameters."""
    return BiLstm(
        width=width,
        features=features,
        depth=depth,
        pool=pool,
        dropout=dropout,
        vocabulary=vocabulary,
        classes=classes,
        rngs=rngs,
    )
