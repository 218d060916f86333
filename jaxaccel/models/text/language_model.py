"""A Transformer that writes on: a pre-norm decoder alone (Radford et al. 2019), with rotary positions."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import optional_dropout, truncated_normal
from jaxaccel.models.layers.decoder import Cache, DecoderBlock, look_up


class LanguageModel(nnx.Module):
    """A decoder whose table gives embeddings and logits.

    Parameters stand at ``embed/embedding`` (vocabulary, width), ``blocks/<i>/{norm1,norm3}``,
    ``blocks/<i>/attention/{query,key,value,out}``, ``blocks/<i>/mlp/{up,down}`` and ``norm``. All of them start
    truncated normal with standard deviation 0.02. Queries and keys are rotated by their positions.

    Args:
      width: features of a token, a multiple of `heads`.
      depth: blocks.
      heads: attention heads, each of an even size.
      hidden: features between the layers of the MLP; four times `width` where it is left out.
      dropout: probability of dropout of the embeddings and of what each part of a block adds.
      vocabulary: number of token ids.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: arguments do not fit together.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        hidden: int | None = None,
        dropout: float = 0.1,
        vocabulary: int,
        rngs: nnx.Rngs,
    ) -> None:
        if heads < 1 or width % (2 * heads):
            raise ValueError(f"LanguageModel: width={width} must be a multiple of twice heads={heads}")
        if depth < 1:
            raise ValueError(f"LanguageModel: {depth=} must be at least 1")
        self.embed = nnx.Embed(vocabulary, width, embedding_init=truncated_normal, rngs=rngs)
        self.blocks = nnx.List(
            [
                DecoderBlock(
                    width, heads, hidden or 4 * width, dropout=dropout, cross=False, rotary=True, rngs=rngs
                )
                for _ in range(depth)
            ]
        )
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)

    def __call__(self, previous: jax.Array) -> jax.Array:
        """Logits (B, T, vocabulary) of each token, given `previous` (B, T) int: the tokens up to the one before it."""
        x = self.dropout(look_up(self.embed, previous))
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(self.norm(x)).astype(jnp.float32)

    def start(self, length: int, batch: int) -> Cache:
        """What `step` takes first, for `length` tokens at most of each of `batch` rows."""
        before = tuple(block.attention.start(batch, length) for block in self.blocks)
        return Cache(jnp.zeros(batch, jnp.int32), before)

    def step(self, token: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Logits (B, vocabulary) of what follows `token` (B,), and what the step after takes."""
        x = look_up(self.embed, token)
        before = []
        for block, own in zip(self.blocks, cache.before, strict=True):
            x, now = block.step(x, own, cache.position)
            before.append(now)
        logits = self.embed.attend(self.norm(x)).astype(jnp.float32)
        return logits, cache._replace(position=cache.position + 1, before=tuple(before))


def language_model_tiny(*, vocabulary: int, rngs: nnx.Rngs, **options: Any) -> LanguageModel:
    """4 blocks of width 128 with 4 heads: 128 * vocabulary + 793,344 parameters. Dropout is 0.1."""
    sizes = {"width": 128, "depth": 4, "heads": 4}
    return LanguageModel(vocabulary=vocabulary, rngs=rngs, **(sizes | options))


def language_model_s(*, vocabulary: int, rngs: nnx.Rngs, **options: Any) -> LanguageModel:
    """6 blocks of width 384 with 6 heads: 384 * vocabulary + 10,647,552 parameters. Dropout is 0.1."""
    sizes = {"width": 384, "depth": 6, "heads": 6}
    return LanguageModel(vocabulary=vocabulary, rngs=rngs, **(sizes | options))
