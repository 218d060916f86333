"""A pre-norm Transformer encoder over a text (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), to train anew.

The mean of the last layer over the text is classified.
"""

from typing import Literal

import jax
from flax import nnx

from jaxaccel.models.layers.blocks import optional_dropout, truncated_normal
from jaxaccel.models.layers.scan import sequence
from jaxaccel.models.layers.tokens import Mix, embed_tokens, masked_mean
from jaxaccel.models.layers.transformer import Block

Positions = Literal["rotary", "learned"]


class TextEncoder(nnx.Module):
    """A Transformer encoder.

    Parameters stand at ``embed/embedding`` (vocabulary, width), with learned positions ``positions/embedding``
    (max_length, width), ``blocks/<i>/{norm1,norm2}``, ``blocks/<i>/attention/{query,key,value,out}``,
    ``blocks/<i>/mlp/{up,down}``, ``norm`` and ``head``. Tables and kernels start truncated normal with standard
    deviation 0.02, and the head at 0, so that the first loss is log(classes).

    Args:
      width: features of a token, a multiple of `heads`.
      depth: blocks.
      heads: attention heads.
      mlp_ratio: hidden features of the MLP per `width`.
      positions: ``rotary`` turns queries and keys by their positions (https://arxiv.org/abs/2104.09864); ``learned``
        adds an embedding to each position.
      dropout: probability of dropout of the embeddings and behind the attention and both layers of the MLP.
      scan: the blocks are one loop (`jaxaccel.models.layers.scan`).
      vocabulary: number of token ids.
      classes: outputs.
      max_length: tokens of the longest text, which learned positions are made for.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: arguments do not fit together, or, at the call, a text is longer than the learned positions.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int = 4,
        positions: Positions = "rotary",
        dropout: float = 0.1,
        scan: bool = False,
        vocabulary: int,
        classes: int,
        max_length: int = 512,
        rngs: nnx.Rngs,
    ) -> None:
        if heads < 1 or width % heads:
            raise ValueError(f"TextEncoder: width={width} is no multiple of heads={heads}")
        if positions not in ("rotary", "learned"):
            raise ValueError(f"TextEncoder: {positions=} must be 'rotary' or 'learned'")
        if positions == "rotary" and width // heads % 2:
            raise ValueError(
                f"TextEncoder: {width=} and {heads=} give heads of an odd size, which cannot rotate"
            )
        rotary = positions == "rotary"
        self.embed = nnx.Embed(vocabulary, width, embedding_init=truncated_normal, rngs=rngs)
        self.positions = (
            None if rotary else nnx.Embed(max_length, width, embedding_init=truncated_normal, rngs=rngs)
        )
        self.dropout = optional_dropout(dropout, rngs=rngs)
        blocks = [
            Block(width, heads, mlp_ratio * width, dropout=dropout, rotary=rotary, rngs=rngs)
            for _ in range(depth)
        ]
        self.blocks = sequence(blocks, scan)
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.head = nnx.Linear(width, classes, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array, mix: Mix | None = None) -> jax.Array:
        """Logits (B, classes) of `tokens` (B, L) int where `mask` (B, L) is True."""
        x, mask = embed_tokens(self.embed, tokens, mask, mix)
        if self.positions is not None:
            x = x + take_positions(self.positions, x.shape[1], "TextEncoder")
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(masked_mean(self.norm(x), mask))


def take_positions(table: nnx.Embed, length: int, model: str) -> jax.Array:
    """The first `length` rows (length, width) of learned positions.

    Raises:
      ValueError: there are not as many; `model` is whose fault it is.
    """
    if length > table.num_embeddings:
        raise ValueError(f"{model}: has positions for {table.num_embeddings} tokens, got texts of {length}")
    return table.embedding[...][:length]


def text_encoder_ti(
    *,
    positions: Positions = "rotary",
    dropout: float = 0.1,
    scan: bool = False,
    vocabulary: int,
    classes: int,
    max_length: int = 512,
    rngs: nnx.Rngs,
) -> TextEncoder:
    """4 blocks of width 128 with 4 heads: 128 * vocabulary + 129 * classes + 793,344 parameters."""
    return TextEncoder(
        width=128,
        depth=4,
        heads=4,
        positions=positions,
        dropout=dropout,
        scan=scan,
        vocabulary=vocabulary,
        classes=classes,
        max_length=max_length,
        rngs=rngs,
    )


def text_encoder_s(
    *,
    positions: Positions = "rotary",
    dropout: float = 0.1,
    scan: bool = False,
    vocabulary: int,
    classes: int,
    max_length: int = 512,
    rngs: nnx.Rngs,
) -> TextEncoder:
    """6 blocks of width 384 with 6 heads: 384 * vocabulary + 385 * classes + 10,647,552 parameters."""
    return TextEncoder(
        width=384,
        depth=6,
        heads=6,
        positions=positions,
        dropout=dropout,
        scan=scan,
        vocabulary=vocabulary,
        classes=classes,
        max_length=max_length,
        rngs=rngs,
    )
