"""Frames of features (B, T, ...) of which each sound has its own number: fewer of them, and nothing of the padding.

A mask (B, T) is True for the frames of a sound, which come first. A layer that sees several frames at once gets zeros
where there are none, so that a sound's end is the same in any batch.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import grouped, he_normal, pair

SUBSAMPLINGS = (1, 2, 4)
"""How many frames one output may be of."""


def check_subsampling(subsampling: int, model: str) -> None:
    """Checks that `subsampling` is among `SUBSAMPLINGS`.

    Raises:
      ValueError: it is not; `model` is whose argument it is.
    """
    if subsampling not in SUBSAMPLINGS:
        raise ValueError(f"{model}: {subsampling=} must be 1, 2 or 4")


def zero_padding(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`x` (B, T, ...), 0 where `mask` (B, T) is False, whatever stood there."""
    return jnp.where(mask.reshape(*mask.shape, *(1 for _ in x.shape[2:])), x, 0)


def subsample_mask(mask: jax.Array, by: int) -> jax.Array:
    """The mask (B, ceil(T / by)) of outputs that are of `by` frames each: all that have any frame."""
    return mask[:, ::by]


def stack_frames(x: jax.Array, by: int) -> jax.Array:
    """Puts `by` neighboring frames into one: (B, T, C) -> (B, ceil(T / by), by * C); zeros fill up the last one."""
    batch, length, channels = x.shape
    if rest := -length % by:
        x = jnp.pad(x, ((0, 0), (0, rest), (0, 0)))
    return x.reshape(batch, -1, by * channels)


class TimeConv(nnx.Module):
    """A convolution over time and frequency that sees zeros around a sound, also where its batch goes on.

    The convolution stands at ``conv``. Its paddings are symmetric: with SAME, what stride 2 pads would depend on the
    batch's length.

    Args:
      features_in: channels.
      features_out: channels of the outputs.
      window: (frames, bands), both odd.
      strides: (frames, bands).
      dilation: distance of the frames in a window.
      groups: of channels; `features_in` for a depthwise convolution.
      pad_bands: zeros stand beyond the lowest and the highest band too.
      use_bias: adds a bias.
      rngs: stream ``params``.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        window: int | tuple[int, int],
        *,
        strides: tuple[int, int] = (1, 1),
        dilation: int = 1,
        groups: int = 1,
        pad_bands: bool = True,
        use_bias: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        frames, bands = pair(window)
        before, beside = frames // 2 * dilation, bands // 2 * pad_bands
        self.conv = nnx.Conv(
            features_in,
            features_out,
            (frames, bands),
            strides=strides,
            padding=((before, before), (beside, beside)),
            kernel_dilation=(dilation, 1),
            feature_group_count=groups,
            conv_general_dilated=grouped if groups > 1 else jax.lax.conv_general_dilated,
            use_bias=use_bias,
            kernel_init=he_normal,
            rngs=rngs,
        )
        self.stride = strides[0]

    def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B, T, F, features_in) -> (B, ceil(T / stride), ceil(F / stride), features_out), and the mask of that.

        Outputs are any numbers where masked.
        """
        return self.conv(zero_padding(x, mask)), subsample_mask(mask, self.stride)
