"""The Vision Transformer of Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929).

The image is cut into patches, each becomes a token; a class token is put before them, learned positions are
added, and a pre-norm transformer encoder follows; the class token's output is classified. Ti and S are the
sizes of Touvron et al. 2021 (https://arxiv.org/abs/2012.12877).
"""

import jax
import jax.numpy as jnp
from flax import nnx

_kernel_init = nnx.initializers.truncated_normal(0.02)


def patches(x: jax.Array, size: int) -> jax.Array:
    """Cuts images into square patches, row by row.

    Args:
      x: (B, H, W, C); H and W are multiples of `size`.
      size: side of a patch in pixels.

    Returns:
      (B, H/size * W/size, size * size * C), dtype of `x`.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, size * size * channels)


class Attention(nnx.Module):
    """Multi-head self-attention.

    ``query``, ``key`` and ``value`` have kernels (width, heads, head_dim), ``out`` has (heads, head_dim,
    width): tensor parallelism splits the axis of heads, and only the sum in ``out`` crosses devices.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        split = (heads, width // heads)
        self.query = nnx.LinearGeneral(width, split, kernel_init=_kernel_init, rngs=rngs)
        self.key = nnx.LinearGeneral(width, split, kernel_init=_kernel_init, rngs=rngs)
        self.value = nnx.LinearGeneral(width, split, kernel_init=_kernel_init, rngs=rngs)
        self.out = nnx.LinearGeneral(split, width, axis=(-2, -1), kernel_init=_kernel_init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) -> (B, T, width)."""
        return self.out(jax.nn.dot_product_attention(self.query(x), self.key(x), self.value(x)))


class Mlp(nnx.Module):
    """Two dense layers with GELU (tanh approximation, as in the paper's code) and dropout between."""

    def __init__(self, width: int, hidden: int, *, dropout: float, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(width, hidden, kernel_init=_kernel_init, rngs=rngs)
        self.down = nnx.Linear(hidden, width, kernel_init=_kernel_init, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) -> (B, T, width)."""
        return self.down(self.dropout(nnx.gelu(self.up(x))))


class Block(nnx.Module):
    """A pre-norm encoder block: attention, then the MLP, each added to its input."""

    def __init__(self, width: int, heads: int, hidden: int, *, dropout: float, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.mlp = Mlp(width, hidden, dropout=dropout, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, width) -> (B, T, width)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class VisionTransformer(nnx.Module):
    """A Vision Transformer with class token and learned positions.

    Parameters stand at ``embed``, ``class_token`` (1, 1, width), ``positions`` (1, patches + 1, width),
    ``blocks/<i>/{norm1,norm2}``, ``blocks/<i>/attention/{query,key,value,out}``,
    ``blocks/<i>/mlp/{up,down}``, ``norm`` and ``head``. ``embed/kernel`` is (patch * patch * channels, width):
    the strided convolution of the paper as the matrix product it is. Kernels and positions start truncated
    normal with standard deviation 0.02; biases, the class token and the whole head start at 0, so that the
    first loss is log(classes).

    Args:
      width: features of a token, a multiple of `heads`.
      depth: encoder blocks.
      heads: attention heads.
      mlp_ratio: hidden features of the MLP per `width`.
      patch_size: side of a patch in pixels.
      dropout: probability of dropout after the positions, the attention and both layers of the MLP.
      classes: outputs.
      channels: channels of the images.
      image_size: height and width in pixels, or one number for both: multiples of `patch_size`.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: arguments do not fit together, or, at the call, the images are not of the size given here.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int = 4,
        patch_size: int = 16,
        dropout: float = 0.0,
        classes: int = 1000,
        channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        rngs: nnx.Rngs,
    ) -> None:
        image_height, image_width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if image_height % patch_size or image_width % patch_size:
            raise ValueError(
                f"VisionTransformer: image size {image_height}x{image_width} is no multiple of "
                f"patch_size={patch_size}"
            )
        if width % heads:
            raise ValueError(f"VisionTransformer: width={width} is no multiple of heads={heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"VisionTransformer: dropout={dropout} must be in [0, 1)")
        self.input_shape = (image_height, image_width, channels)
        self.patch_size = patch_size
        tokens = (image_height // patch_size) * (image_width // patch_size) + 1
        self.embed = nnx.Linear(patch_size**2 * channels, width, kernel_init=_kernel_init, rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.positions = nnx.Param(_kernel_init(rngs.params(), (1, tokens, width)))
        self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)
        self.blocks = nnx.List(
            [Block(width, heads, mlp_ratio * width, dropout=dropout, rngs=rngs) for _ in range(depth)]
        )
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.head = nnx.Linear(width, classes, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (B, classes) of images `x` (B, H, W, C) float."""
        if x.shape[1:] != self.input_shape:
            raise ValueError(
                f"VisionTransformer: built for images {self.input_shape}, got a batch of shape {x.shape}"
            )
        x = self.embed(patches(x, self.patch_size))
        class_token = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[2])).astype(x.dtype)
        x = self.dropout(jnp.concatenate([class_token, x], axis=1) + self.positions[...])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def vit_ti16(
    *,
    patch_size: int = 16,
    dropout: float = 0.0,
    classes: int = 1000,
    channels: int = 3,
    image_size: int | tuple[int, int] = 224,
    rngs: nnx.Rngs,
) -> VisionTransformer:
    """ViT-Ti: 12 blocks of width 192 with 3 heads; 5,717,416 parameters at the defaults."""
    return VisionTransformer(
        width=192,
        depth=12,
        heads=3,
        patch_size=patch_size,
        dropout=dropout,
        classes=classes,
        channels=channels,
        image_size=image_size,
        rngs=rngs,
    )


def vit_s16(
    *,
    patch_size: int = 16,
    dropout: float = 0.0,
    classes: int = 1000,
    channels: int = 3,
    image_size: int | tuple[int, int] = 224,
    rngs: nnx.Rngs,
) -> VisionTransformer:
    """ViT-S: 12 blocks of width 384 with 6 heads; 22,050,664 parameters at the defaults."""
    return VisionTransformer(
        width=384,
        depth=12,
        heads=6,
        patch_size=patch_size,
        dropout=dropout,
        classes=classes,
        channels=channels,
        image_size=image_size,
        rngs=rngs,
    )


def vit_b16(
    *,
    patch_size: int = 16,
    dropout: float = 0.0,
    classes: int = 1000,
    channels: int = 3,
    image_size: int | tuple[int, int] = 224,
    rngs: nnx.Rngs,
) -> VisionTransformer:
    """ViT-B: 12 blocks of width 768 with 12 heads; 86,567,656 parameters at the defaults."""
    return VisionTransformer(
        width=768,
        depth=12,
        heads=12,
        patch_size=patch_size,
        dropout=dropout,
        classes=classes,
        channels=channels,
        image_size=image_size,
        rngs=rngs,
    )
