"""A small convolutional network for small images: 8x8 digits, 28x28 MNIST, 32x32 CIFAR.

Every stage is a 3x3 convolution, BatchNorm and relu, then perhaps more of the same as residuals, then 2x2
max pooling. The shape follows what XLA's CPU backend does well: few channels while the image is large
(time there goes to memory traffic), the residual convolutions late, pooling without `reduce_window`, whose
gradient is about 20 times slower.
"""

from collections.abc import Sequence
from functools import partial

import jax
from flax import nnx

from jaxaccel.models.layers.blocks import ConvNorm, batch_norm, head, optional_dropout, pair
from jaxaccel.models.layers.pooling import max_pool_2x2


class Stage(nnx.Module):
    """A `ConvNorm` that changes the width, `residuals` more that are added to their input, a pooling."""

    def __init__(self, features_in: int, features_out: int, residuals: int, *, rngs: nnx.Rngs) -> None:
        layer = partial(ConvNorm, size=3, activation=nnx.relu, rngs=rngs)
        self.first = layer(features_in, features_out)
        self.residuals = nnx.List([layer(features_out, features_out) for _ in range(residuals)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/2), ceil(W/2), features_out)."""
        x = self.first(x)
        for residual in self.residuals:
            x = x + residual(x)
        return max_pool_2x2(x)


class ConvNet(nnx.Module):
    """Stages of convolution and pooling, one hidden dense layer with BatchNorm and dropout, a linear head.

    Parameters stand at ``stages/<i>/first/{conv,norm}``, ``stages/<i>/residuals/<j>/{conv,norm}``,
    ``hidden``, ``hidden_norm`` and ``head``. Kernels start He normal (fan out; the dense layer's
    fan in), the head's normal with standard deviation 0.01.

    Args:
      widths: channels of each stage; each stage halves the image (rounding up).
      residuals: residual convolutions of each stage, one number a stage; by default one in the last stage.
      hidden: width of the dense layer over the flattened image; 0 averages over the image instead.
      dropout: probability with which an input of the head is dropped in training.
      classes: outputs.
      channels: channels of the images.
      image_size: height and width, or one number for both. With ``hidden=0`` any other size works too.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: an argument is out of range, or, at the call, the images are not of the size given here.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64),
        *,
        residuals: Sequence[int] | None = None,
        hidden: int = 256,
        dropout: float = 0.3,
        classes: int = 10,
        channels: int = 1,
        image_size: int | tuple[int, int] = 28,
        rngs: nnx.Rngs,
    ) -> None:
        if not widths or min(widths) < 1:
            raise ValueError(f"ConvNet: widths must be one positive number a stage, not {widths!r}")
        if residuals is None:
            residuals = (*(0 for _ in widths[1:]), 1)
        if len(residuals) != len(widths) or min(residuals) < 0:
            raise ValueError(f"ConvNet: residuals must be {len(widths)} numbers >= 0, not {residuals!r}")
        if hidden < 0:
            raise ValueError(f"ConvNet: hidden={hidden} must be >= 0")
        height, width = pair(image_size)
        self.input_shape = (height, width, channels)
        self.flatten = hidden > 0
        inputs = (channels, *widths[:-1])
        self.stages = nnx.List(
            [Stage(i, o, n, rngs=rngs) for i, o, n in zip(inputs, widths, residuals, strict=True)]
        )
        features = widths[-1]
        if hidden:
            for _ in widths:
                height, width = -(-height // 2), -(-width // 2)
            he_normal = nnx.initializers.he_normal()
            self.hidden = nnx.Linear(
                height * width * features, hidden, use_bias=False, kernel_init=he_normal, rngs=rngs
            )
            self.hidden_norm = batch_norm(hidden, rngs=rngs)
            features = hidden
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(features, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        expected = self.input_shape if self.flatten else (*x.shape[1:3], self.input_shape[2])
        if x.ndim != 4 or x.shape[1:] != expected:
            raise ValueError(f"ConvNet: built for images {self.input_shape}, got a batch of shape {x.shape}")
        for stage in self.stages:
            x = stage(x)
        if not self.flatten:
            return self.head(self.dropout(x.mean(axis=(1, 2))))
        x = nnx.relu(self.hidden_norm(self.hidden(x.reshape(x.shape[0], -1))))
        return self.head(self.dropout(x))
