"""Blocks of Transformers, of images and of tokens."""

import jax
from flax import nnx
from jax.nn.initializers import Initializer

from jaxaccel.models.layers.attention import Attention
from jaxaccel.models.layers.blocks import Activation, optional_dropout, truncated_normal
from jaxaccel.models.layers.mlp import Mlp


class Block(nnx.Module):
    """A pre-norm block: attention, then the MLP, each added to its input.

    Args:
      width: features of a token, a multiple of `heads`.
      heads: attention heads.
      hidden: features between the layers of the MLP.
      dropout: probability of dropout behind the attention and both layers of the MLP.
      exact_gelu: not the tanh approximation.
      rotary: queries and keys are rotated by their positions.
      causal: a position sees only itself and those before it.
      inner_dropout: probability of dropout between the layers of the MLP; `dropout` where it is left out.
      activation: between the layers of the MLP; GELU where it is left out.
      init: what kernels start from.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        dropout: float,
        exact_gelu: bool = False,
        rotary: bool = False,
        causal: bool = False,
        inner_dropout: float | None = None,
        activation: Activation | None = None,
        init: Initializer = truncated_normal,
        rngs: nnx.Rngs,
    ) -> None:
        inner = dropout if inner_dropout is None else inner_dropout
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.attention = Attention(width, heads, rotary=rotary, causal=causal, init=init, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.mlp = Mlp(
            width, hidden, dropout=inner, exact_gelu=exact_gelu, activation=activation, init=init, rngs=rngs
        )
        self.dropout = optional_dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """(B, T, width) -> (B, T, width); positions that `mask` (B, T) leaves out are seen by none."""
        x = x + self.dropout(self.attention(self.norm1(x), mask))
        return x + self.dropout(self.mlp(self.norm2(x)))


class PostNormBlock(nnx.Module):
    """A post-norm block, as in Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762) and BERT.

    Each sum of a layer's input and output is normalized. The GELU is exact.

    Args:
      width: features of a token, a multiple of `heads`.
      heads: attention heads.
      hidden: features between the layers of the MLP.
      dropout: probability of dropout behind the attention and behind the MLP.
      epsilon: is added to the variance of each LayerNorm.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, *, dropout: float, epsilon: float, rngs: nnx.Rngs
    ) -> None:
        self.attention = Attention(width, heads, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.mlp = Mlp(width, hidden, exact_gelu=True, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=epsilon, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """(B, T, width) -> (B, T, width); positions that `mask` (B, T) leaves out are seen by none."""
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        return self.norm2(x + self.dropout(self.mlp(x)))
