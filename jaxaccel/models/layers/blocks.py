"""Layers that several families share.

Images are (B, H, W, C). Convolutions and BatchNorm start as in Goyal et al. 2017 (https://arxiv.org/abs/1706.02677,
5.1): kernels He normal (fan out), heads normal with standard deviation 0.01. Paddings are symmetric, also with
stride 2, where SAME would pad only the far side.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Activation = Callable[[jax.Array], jax.Array]

he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
truncated_normal = nnx.initializers.truncated_normal(0.02)
_head_normal = nnx.initializers.normal(0.01)
# One object for each value: modules keep their initializers, and equal blocks are to compare as equal.
_constant = functools.cache(nnx.initializers.constant)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of one number for both or of a pair."""
    return (size, size) if isinstance(size, int) else size


def divisible(channels: float, by: int = 8) -> int:
    """The multiple of `by` that is nearest to `channels`, at least `by` and at most 10% less than it."""
    nearest = max(by, int(channels + by / 2) // by * by)
    return nearest if nearest >= 0.9 * channels else nearest + by


def grouped(
    x: jax.Array, kernel: jax.Array, *args: Any, feature_group_count: int, **kwargs: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` with as many groups as `x` (..., C) and `kernel` (..., C / groups, out) make.

    For `nnx.Conv`, as its ``conv_general_dilated``: the number of groups that the module keeps is wrong once channels
    were removed.
    """
    groups = x.shape[-1] // kernel.shape[-2]
    return jax.lax.conv_general_dilated(x, kernel, *args, feature_group_count=groups, **kwargs)


def conv(
    features_in: int,
    features_out: int,
    size: int | tuple[int, int],
    *,
    stride: int = 1,
    groups: int = 1,
    padded: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution without bias, padded by half its size; `groups` = `features_in` makes it depthwise."""
    return nnx.Conv(
        features_in,
        features_out,
        pair(size),
        strides=stride,
        padding=tuple((n // 2, n // 2) for n in pair(size)) if padded else "VALID",
        feature_group_count=groups,
        conv_general_dilated=grouped if groups > 1 else jax.lax.conv_general_dilated,
        use_bias=False,
        kernel_init=he_normal,
        rngs=rngs,
    )


def batch_norm(features: int, *, scale: float = 1.0, epsilon: float = 1e-5, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm whose statistics move by a tenth in each step; `scale` is where its scale starts."""
    return nnx.BatchNorm(features, momentum=0.9, epsilon=epsilon, scale_init=_constant(scale), rngs=rngs)


def head(features: int, classes: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """The linear layer that classifies."""
    return nnx.Linear(features, classes, kernel_init=_head_normal, rngs=rngs)


def optional_dropout(rate: float, *, rngs: nnx.Rngs) -> nnx.Dropout:
    """Dropout that keeps no random stream where it drops nothing.

    Raises:
      ValueError: `rate` is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout={rate} must be in [0, 1)")
    return nnx.Dropout(rate, rngs=rngs if rate else None)


class ConvNorm(nnx.Module):
    """A convolution, BatchNorm and perhaps an activation."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        size: int | tuple[int, int],
        *,
        stride: int = 1,
        groups: int = 1,
        padded: bool = True,
        activation: Activation | None = None,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = conv(
            features_in, features_out, size, stride=stride, groups=groups, padded=padded, rngs=rngs
        )
        self.norm = batch_norm(features_out, epsilon=epsilon, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/stride), ceil(W/stride), features_out), less where not padded."""
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


class SqueezeExcite(nnx.Module):
    """Scales channels by what two dense layers make of their averages.

    Of Hu et al. 2018 (https://arxiv.org/abs/1709.01507).

    Args:
      features: channels.
      squeezed: width between the layers.
      activation: between the layers.
      gate: what makes the second layer's outputs factors.
      rngs: stream ``params``.
    """

    def __init__(
        self,
        features: int,
        squeezed: int,
        *,
        activation: Activation = nnx.relu,
        gate: Activation = nnx.sigmoid,
        rngs: nnx.Rngs,
    ) -> None:
        self.squeeze = nnx.Linear(features, squeezed, kernel_init=he_normal, rngs=rngs)
        self.excite = nnx.Linear(squeezed, features, kernel_init=he_normal, rngs=rngs)
        self.activation = activation
        self.gate = gate

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features) -> (B, H, W, features)."""
        factors = self.gate(self.excite(self.activation(self.squeeze(x.mean(axis=(1, 2))))))
        return x * factors[:, None, None]


class StochasticDepth(nnx.Module):
    """Drops a residual branch, in training, for some examples (Huang et al. 2016, https://arxiv.org/abs/1603.09382).

    One draw for each example; what is kept is scaled by 1 / (1 - rate). Unlike `nnx.Dropout`'s, the rate may be
    traced: `scan.Scan` runs blocks of different rates.

    Args:
      rate: probability of dropping.
      rngs: stream ``dropout``; None drops nothing.
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs | None) -> None:
        self.rate = rate
        self.deterministic = False
        self.rngs = nnx.data(None) if rngs is None else rngs.dropout.fork()

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, ...) -> (B, ...)."""
        if self.deterministic or self.rngs is None:
            return x
        keep = jnp.asarray(1 - self.rate, jnp.float32)  # where float64 is enabled, a float would draw others
        kept = jax.random.bernoulli(self.rngs(), keep, (x.shape[0], *(1 for _ in x.shape[1:])))
        return jnp.where(kept, x / jnp.asarray(1 - self.rate, x.dtype), 0)


def drop_paths(rate: float, count: int, *, rngs: nnx.Rngs) -> list[StochasticDepth]:
    """Stochastic depth for `count` blocks, from 0 in the first linearly to `rate` in the last.

    Raises:
      ValueError: `rate` is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path={rate} must be in [0, 1)")
    rates = [rate * i / max(1, count - 1) for i in range(count)]
    return [StochasticDepth(r, rngs=rngs if rate else None) for r in rates]


class InvertedResidual(nnx.Module):
    """1x1 to `wide` channels, depthwise, 1x1 to fewer, which are added to the input where shapes are equal.

    Of Sandler et al. 2018 (https://arxiv.org/abs/1801.04381); the squeeze-and-excite stands behind the depthwise
    convolution. `expand` is None where nothing is widened, `squeeze_excite` where `squeezed` is 0.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        wide: int,
        size: int = 3,
        stride: int = 1,
        activation: Activation = nnx.relu6,
        squeezed: int = 0,
        squeeze_activation: Activation = nnx.relu,
        gate: Activation = nnx.sigmoid,
        drop_path: StochasticDepth | None = None,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ) -> None:
        layer = functools.partial(ConvNorm, epsilon=epsilon, rngs=rngs)
        widens = wide != features_in
        self.expand = layer(features_in, wide, 1, activation=activation) if widens else None
        self.depthwise = layer(wide, wide, size, stride=stride, groups=wide, activation=activation)
        self.squeeze_excite = (
            SqueezeExcite(wide, squeezed, activation=squeeze_activation, gate=gate, rngs=rngs)
            if squeezed
            else None
        )
        self.project = layer(wide, features_out, 1)
        self.residual = stride == 1 and features_in == features_out
        self.drop_path = drop_path if self.residual else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, features_in) -> (B, ceil(H/stride), ceil(W/stride), features_out)."""
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        y = y if self.squeeze_excite is None else self.squeeze_excite(y)
        y = self.project(y)
        if not self.residual:
            return y
        return x + (y if self.drop_path is None else self.drop_path(y))
