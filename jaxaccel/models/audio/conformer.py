"""The Conformer (Gulati et al. 2020, https://arxiv.org/abs/2005.08100): attention and convolutions over frames."""

import jax
from flax import nnx

from jaxaccel.models.layers.attention import Attention
from jaxaccel.models.layers.blocks import grouped, head, optional_dropout
from jaxaccel.models.layers.frames import TimeConv, check_subsampling, zero_padding
from jaxaccel.models.layers.scan import sequence


class HalfStep(nnx.Module):
    """Half of what two dense layers with Swish make of a normalized frame; `mlp` as in Transformers."""

    def __init__(self, width: int, hidden: int, *, dropout: float, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.mlp = nnx.Dict(
            up=nnx.Linear(width, hidden, rngs=rngs), down=nnx.Linear(hidden, width, rngs=rngs)
        )
        self.dropout = optional_dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) -> (B, T, width)."""
        hidden = self.dropout(nnx.swish(self.mlp["up"](self.norm(x))))
        return 0.5 * self.dropout(self.mlp["down"](hidden))


class Convolution(nnx.Module):
    """A gated dense layer, a depthwise convolution over time, LayerNorm, Swish and a dense layer.

    Args:
      width: features of a frame.
      window: frames that the convolution sees, odd.
      dropout: probability of dropout behind it.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.
    """

    def __init__(self, width: int, window: int, *, dropout: float, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.expand = nnx.Linear(width, 2 * width, rngs=rngs)
        self.depthwise = nnx.Conv(
            width,
            width,
            (window,),
            padding=((window // 2, window // 2),),
            feature_group_count=width,
            conv_general_dilated=grouped,
            rngs=rngs,
        )
        self.inner_norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.project = nnx.Linear(width, width, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """(B, T, width) -> (B, T, width); frames that `mask` (B, T) leaves out are zeros to all others."""
        x = zero_padding(nnx.glu(self.expand(self.norm(x))), mask)
        return self.dropout(self.project(nnx.swish(self.inner_norm(self.depthwise(x)))))


class ConformerBlock(nnx.Module):
    """Attention and a convolution between two half-steps, each added to its input; a LayerNorm behind all.

    Args:
      width: features of a frame, a multiple of `heads`.
      heads: attention heads, of an even number of features.
      window: frames that the convolution sees, odd.
      hidden: features between the layers of a half-step.
      dropout: probability of dropout in and behind each part.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.
    """

    def __init__(
        self, width: int, heads: int, window: int, hidden: int, *, dropout: float, rngs: nnx.Rngs
    ) -> None:
        self.before = HalfStep(width, hidden, dropout=dropout, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.attention = Attention(width, heads, rotary=True, rngs=rngs)
        self.convolution = Convolution(width, window, dropout=dropout, rngs=rngs)
        self.after = HalfStep(width, hidden, dropout=dropout, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """(B, T, width) -> (B, T, width); frames that `mask` (B, T) leaves out are seen by none."""
        x = x + self.before(x)
        x = x + self.dropout(self.attention(self.norm1(x), mask))
        x = x + self.convolution(x, mask)
        return self.norm2(x + self.after(x))


class Conformer(nnx.Module):
    """A Conformer with a head for connectionist temporal classification.

    It differs from the paper in two points. LayerNorm stands in the convolution module where the paper has BatchNorm,
    so that no statistic sees padding. Positions are rotations of queries and keys (https://arxiv.org/abs/2104.09864)
    where the paper has relative encodings.

    Parameters stand at ``convs/<i>/conv`` (3, 3, in, filters), ``project``, ``blocks/<i>/{before,after}/{norm,mlp}``,
    ``blocks/<i>/attention/{query,key,value,out}``, ``blocks/<i>/{norm1,norm2}``,
    ``blocks/<i>/convolution/{norm,expand,depthwise,inner_norm,project}`` and ``head``.

    Args:
      width: features of a frame, a multiple of `heads`.
      depth: blocks.
      heads: attention heads.
      window: outputs that a block's convolution sees, odd.
      filters: of the two convolutions that make fewer frames; both halve the frequencies.
      mlp_ratio: hidden features of a half-step per `width`.
      dropout: probability of dropout before the blocks, and in and behind each of their parts.
      scan: the blocks are one loop (`jaxaccel.models.layers.scan`).
      classes: outputs, the blank among them.
      channels: frequency bands of a frame.
      subsampling: frames of an output: 1, 2 or 4.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: arguments do not fit together.
    """

    def __init__(
        self,
        *,
        width: int = 144,
        depth: int = 4,
        heads: int = 4,
        window: int = 31,
        filters: int = 32,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        scan: bool = False,
        classes: int,
        channels: int,
        subsampling: int = 4,
        rngs: nnx.Rngs,
    ) -> None:
        if heads < 1 or width % heads or width // heads % 2:
            raise ValueError(f"Conformer: {width=} and {heads=} give no heads of an even size")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"Conformer: {window=} must be odd")
        check_subsampling(subsampling, "Conformer")
        strides = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[subsampling]
        self.convs = nnx.List(
            [
                TimeConv(n, filters, 3, strides=(stride, 2), use_bias=True, rngs=rngs)
                for n, stride in zip((1, filters), strides, strict=True)
            ]
        )
        self.project = nnx.Linear(-(-channels // 4) * filters, width, rngs=rngs)
        self.dropout = optional_dropout(dropout, rngs=rngs)
        blocks = [
            ConformerBlock(width, heads, window, mlp_ratio * width, dropout=dropout, rngs=rngs)
            for _ in range(depth)
        ]
        self.blocks = sequence(blocks, scan)
        self.head = head(width, classes, rngs=rngs)

    def __call__(self, features: jax.Array, mask: jax.Array) -> jax.Array:
        """Logits (B, ceil(T / subsampling), classes) of `features` (B, T, channels) where `mask` (B, T) is True."""
        x = zero_padding(features, mask)[..., None]
        for conv in self.convs:
            x, mask = conv(x, mask)
            x = nnx.relu(x)
        x = self.dropout(self.project(x.reshape(*x.shape[:2], -1)))
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


def conformer_ctc(
    *,
    width: int = 144,
    depth: int = 4,
    heads: int = 4,
    window: int = 31,
    dropout: float = 0.1,
    scan: bool = False,
    classes: int,
    channels: int,
    subsampling: int = 4,
    rngs: nnx.Rngs,
) -> Conformer:
    """Four of the sixteen blocks of Conformer S, of width 144.

    With 80 channels 145 * classes + 2,044,720 parameters. Dropout is 0.1.
    """
    return Conformer(
        width=width,
        depth=depth,
        heads=heads,
        window=window,
        dropout=dropout,
        scan=scan,
        classes=classes,
        channels=channels,
        subsampling=subsampling,
        rngs=rngs,
    )
