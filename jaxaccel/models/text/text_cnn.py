"""The convolutional network for sentences of Kim 2014 (https://arxiv.org/abs/1408.5882)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import he_normal, head, optional_dropout
from jaxaccel.models.layers.tokens import Mix, embed_tokens, masked_max


class TextCnn(nnx.Module):
    """Convolutions of several widths over the embeddings; of each filter the maximum over the text.

    Windows reach beyond both ends of a text, where embeddings are 0 (SAME padding). Parameters stand at
    ``embed/embedding`` (vocabulary, width), ``convs/<i>`` (window, width, filters) and ``head``.

    Args:
      width: features of an embedding.
      windows: tokens of a window, one number for each convolution.
      filters: outputs of each convolution.
      dropout: probability of dropout of the maxima.
      vocabulary: number of token ids.
      classes: outputs.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: there are no windows, or a size is below 1.
    """

    def __init__(
        self,
        *,
        width: int = 128,
        windows: Sequence[int] = (3, 4, 5),
        filters: int = 100,
        dropout: float = 0.5,
        vocabulary: int,
        classes: int,
        rngs: nnx.Rngs,
    ) -> None:
        if min((width, filters, *windows)) < 1 or not windows:
            raise ValueError(f"TextCnn: {width=}, {filters=} and all of {windows=} must be at least 1")
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.convs = nnx.List(
            [nnx.Conv(width, filters, (size,), kernel_init=he_normal, rngs=rngs) for size in windows]
        )
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(filters * len(windows), classes, rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array, mix: Mix | None = None) -> jax.Array:
        """Logits (B, classes) of `tokens` (B, L) int where `mask` (B, L) is True."""
        x, mask = embed_tokens(self.embed, tokens, mask, mix)
        # The largest of what ReLU gives is what ReLU gives of the largest, which is less to compute.
        found = jnp.concatenate([masked_max(conv(x), mask) for conv in self.convs], axis=-1)
        return self.head(self.dropout(nnx.relu(found)))


def text_cnn(
    *,
    width: int = 128,
    windows: Sequence[int] = (3, 4, 5),
    filters: int = 100,
    dropout: float = 0.5,
    vocabulary: int,
    classes: int,
    rngs: nnx.Rngs,
) -> TextCnn:
    """Kim's network with embeddings of 128: 128 * vocabulary + 301 * classes + 153,900 parameters."""
    return TextCnn(
        width=width,
        windows=windows,
        filters=filters,
        dropout=dropout,
        vocabulary=vocabulary,
        classes=classes,
        rngs=rngs,
    )
