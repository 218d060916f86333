"""The dense layers of a block of a Transformer or a Mixer."""

import jax
from flax import nnx
from jax.nn.initializers import Initializer

from jaxaccel.models.layers.blocks import Activation, truncated_normal


class Mlp(nnx.Module):
    """Two dense layers with an activation and dropout between.

    The activation is GELU: the tanh approximation, as in the papers' own code of ViT and Mixer, or, for weights that
    were trained with PyTorch's, the exact one; or `activation`. Kernels start from `init`.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        exact_gelu: bool = False,
        activation: Activation | None = None,
        init: Initializer = truncated_normal,
        rngs: nnx.Rngs,
    ) -> None:
        self.up = nnx.Linear(width, hidden, kernel_init=init, rngs=rngs)
        self.down = nnx.Linear(hidden, width, kernel_init=init, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)
        self.exact_gelu = exact_gelu
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., width) -> (..., width)."""
        return self.down(self.dropout(self._activate(self.up(x))))

    def _activate(self, x: jax.Array) -> jax.Array:
        return nnx.gelu(x, approximate=not self.exact_gelu) if self.activation is None else self.activation(x)
