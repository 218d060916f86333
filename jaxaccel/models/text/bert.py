"""BERT, the post-norm Transformer encoder of Devlin et al. 2018 (https://arxiv.org/abs/1810.04805).

It is made for published weights: GELU, LayerNorms and positions are theirs, and texts are one segment.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import optional_dropout, truncated_normal
from jaxaccel.models.layers.tokens import Mix, embed_tokens, masked_mean
from jaxaccel.models.layers.transformer import PostNormBlock
from jaxaccel.models.text.text_encoder import take_positions

Pool = Literal["mean", "first"]


class Bert(nnx.Module):
    """A BERT encoder and a head.

    Parameters stand at ``embed/embedding`` (vocabulary, width), ``positions/embedding`` (longest, width),
    ``types/embedding`` (2, width), ``norm``, ``blocks/<i>/attention/{query,key,value,out}``,
    ``blocks/<i>/mlp/{up,down}``, ``blocks/<i>/{norm1,norm2}`` (behind the attention, behind the MLP) and ``head``.

    Args:
      width: features of a token, a multiple of `heads`.
      depth: blocks.
      heads: attention heads.
      mlp_ratio: hidden features of the MLP per `width`.
      longest: rows of the table of positions.
      epsilon: is added to the variance of each LayerNorm.
      pool: what is classified: the ``mean`` of the last layer over the text, as models of sentences pool, or the
        ``first`` token's output.
      dropout: probability of dropout of the embeddings, behind the attention and the MLP, and before the head.
      vocabulary: number of token ids.
      classes: outputs.
      max_length: tokens of the longest text that is to come, at most `longest`.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: arguments do not fit together, or, at the call, a text is longer than `longest`.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int = 4,
        longest: int = 512,
        epsilon: float = 1e-12,
        pool: Pool = "mean",
        dropout: float = 0.1,
        vocabulary: int,
        classes: int,
        max_length: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if heads < 1 or width % heads:
            raise ValueError(f"Bert: width={width} is no multiple of heads={heads}")
        if pool not in ("mean", "first"):
            raise ValueError(f"Bert: {pool=} must be 'mean' or 'first'")
        if max_length is not None and max_length > longest:
            raise ValueError(f"Bert: has positions for {longest} tokens, and texts have up to {max_length}")
        self.pool = pool
        self.embed = nnx.Embed(vocabulary, width, embedding_init=truncated_normal, rngs=rngs)
        self.positions = nnx.Embed(longest, width, embedding_init=truncated_normal, rngs=rngs)
        self.types = nnx.Embed(2, width, embedding_init=truncated_normal, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.blocks = nnx.List(
            [
                PostNormBlock(width, heads, mlp_ratio * width, dropout=dropout, epsilon=epsilon, rngs=rngs)
                for _ in range(depth)
            ]
        )
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(width, classes, kernel_init=truncated_normal, rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array, mix: Mix | None = None) -> jax.Array:
        """Logits (B, classes) of `tokens` (B, L) int where `mask` (B, L) is True."""
        return self.head(self.dropout(self._encode(tokens, mask, mix)))

    def features(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Sentence embeddings (B, width) of length 1: what is classified, normalized."""
        x = self._encode(tokens, mask, None)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def _encode(self, tokens: jax.Array, mask: jax.Array, mix: Mix | None) -> jax.Array:
        """What is classified (B, width)."""
        x, mask = embed_tokens(self.embed, tokens, mask, mix)
        x = x + self.types.embedding[...][0] + take_positions(self.positions, x.shape[1], "Bert")
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x, mask)
        return masked_mean(x, mask) if self.pool == "mean" else x[:, 0]


def minilm_l6(
    *,
    pool: Pool = "mean",
    dropout: float = 0.1,
    vocabulary: int = 30_522,
    classes: int = 2,
    max_length: int | None = None,
    rngs: nnx.Rngs,
) -> Bert:
    """MiniLM-L6 (Wang et al. 2020, https://arxiv.org/abs/2002.10957): 6 blocks of width 384 with 12 heads.

    22,565,376 parameters, and 385 for each class. ``--init-from minilm_l6`` starts from published weights.
    """
    return Bert(
        width=384,
        depth=6,
        heads=12,
        pool=pool,
        dropout=dropout,
        vocabulary=vocabulary,
        classes=classes,
        max_length=max_length,
        rngs=rngs,
    )
