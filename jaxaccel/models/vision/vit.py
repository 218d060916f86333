"""The Vision Transformer of Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929).

The image is cut into patches, each becomes a token; a class token is put before them, learned positions are
added, and a pre-norm transformer encoder follows; the class token's output is classified. Ti and S are the
sizes of Touvron et al. 2021 (https://arxiv.org/abs/2012.12877).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import optional_dropout, pair, truncated_normal
from jaxaccel.models.layers.patches import patch_count, patches
from jaxaccel.models.layers.scan import sequence
from jaxaccel.models.layers.transformer import Block


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
      exact_gelu: not the tanh approximation: for weights of timm and torchvision.
      scan: runs of equal blocks are one loop (`jaxaccel.models.layers.scan`).
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
        exact_gelu: bool = False,
        scan: bool = False,
        classes: int = 1000,
        channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        rngs: nnx.Rngs,
    ) -> None:
        tokens = 1 + patch_count("VisionTransformer", image_size, patch_size)
        if heads < 1 or width % heads:
            raise ValueError(f"VisionTransformer: width={width} is no multiple of heads={heads}")
        self.input_shape = (*pair(image_size), channels)
        self.patch_size = patch_size
        self.embed = nnx.Linear(patch_size**2 * channels, width, kernel_init=truncated_normal, rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.positions = nnx.Param(truncated_normal(rngs.params(), (1, tokens, width)))
        self.dropout = optional_dropout(dropout, rngs=rngs)
        blocks = [
            Block(width, heads, mlp_ratio * width, dropout=dropout, exact_gelu=exact_gelu, rngs=rngs)
            for _ in range(depth)
        ]
        self.blocks = sequence(blocks, scan)
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
    exact_gelu: bool = False,
    scan: bool = False,
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
        exact_gelu=exact_gelu,
        scan=scan,
        classes=classes,
        channels=channels,
        image_size=image_size,
        rngs=rngs,
    )


def vit_s16(
    *,
    patch_size: int = 16,
    dropout: float = 0.0,
    exact_gelu: bool = False,
    scan: bool = False,
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
        exact_gelu=exact_gelu,
        scan=scan,
        classes=classes,
        channels=channels,
        image_size=image_size,
        rngs=rngs,
    )


def vit_b16(
    *,
    patch_size: int = 16,
    dropout: float = 0.0,
    exact_gelu: bool = False,
    scan: bool = False,
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
        exact_gelu=exact_gelu,
        scan=scan,
        classes=classes,
        channels=channels,
        image_size=image_size,
        rngs=rngs,
    )
