"""The dense layers of a block of a Transformer or a Mixer."""

import jax
from flax import nnx

from jaxaccel.models.layers.blocks import truncated_normal


class Mlp(nnx.Module):
    """Two dense layers with GELU and dropout between.

    GELU is the tanh approximation, as in the papers' own code of ViT and Mixer, or, for weights that were trained with
    PyTorch's, the exact one.
    """

    def __init__(
        self, width: int, hidden: int, *, dropout: float = 0.0, exact_gelu: bool = False, rngs: nnx.Rngs
    ) -> None:
        self.up = nnx.Linear(width, hidden, kernel_init=truncated_normal, rngs=rngs)
        self.down = nnx.Linear(hidden, width, kernel_init=truncated_normal, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)
        self.exact_gelu = exact_gelu

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., width) -> (..., width)."""
        return self.down(self.dropout(nnx.gelu(self.up(x), approximate=not self.exact_gelu)))
