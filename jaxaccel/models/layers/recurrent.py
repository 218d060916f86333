"""Recurrent layers over sequences of different lengths."""

import jax
import jax.numpy as jnp
from flax import nnx

Carry = tuple[jax.Array, jax.Array]
"""What an LSTM hands from one position to the next: its output and its cell, both (B, features)."""


class Lstm(nnx.Module):
    """One direction of a long short-term memory (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

    Positions that are masked leave the carry alone. So a sequence gives the same numbers whatever it is filled up with,
    and the reverse direction begins at its last token. The products with the inputs are one for all positions; the
    loop is left with the product of what it carries.

    Parameters stand at ``input`` (inputs, 4 * features), with a bias that is 1 for the forget gate (Jozefowicz et al.
    2015), and ``recurrent`` (features, 4 * features). The gates' order is input, forget, cell, output.

    Args:
      inputs: features of a position.
      features: outputs, and cells.
      reverse: from the last position to the first.
      rngs: stream ``params``.
    """

    def __init__(self, inputs: int, features: int, *, reverse: bool = False, rngs: nnx.Rngs) -> None:
        self.input = nnx.Linear(inputs, 4 * features, bias_init=_start_of_gates, rngs=rngs)
        self.recurrent = nnx.Linear(
            features, 4 * features, use_bias=False, kernel_init=nnx.initializers.orthogonal(), rngs=rngs
        )
        self.features = features
        self.reverse = reverse

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, carry: Carry | None = None
    ) -> tuple[jax.Array, Carry]:
        """Outputs of all positions, and the last carry, with which a later piece of the sequence goes on.

        Args:
          x: (B, T, inputs).
          mask: (B, T) bool; None where all positions count.
          carry: of the piece before; zeros where there is none.

        Returns:
          (B, T, features), 0 where masked; and the carry.
        """
        steps = self.input(x.swapaxes(0, 1))  # (T, B, 4 * features)
        if carry is None:
            zeros = jnp.zeros((x.shape[0], self.features), steps.dtype)
            carry = zeros, zeros
        # The kernel is read once, outside: Flax modules are not to be called in a loop of JAX's.
        kernel = self.recurrent.kernel[...]
        there = None if mask is None else mask.T[..., None]

        def step(carry: Carry, at: tuple[jax.Array, jax.Array | None]) -> tuple[Carry, jax.Array]:
            from_input, counts = at
            output, cell = advance(from_input + carry[0] @ kernel, carry[1])
            if counts is None:
                return (output, cell), output
            kept = jnp.where(counts, output, carry[0]), jnp.where(counts, cell, carry[1])
            return kept, jnp.where(counts, output, 0)

        carry, outputs = jax.lax.scan(step, carry, (steps, there), reverse=self.reverse)
        return outputs.swapaxes(0, 1), carry


def advance(gates: jax.Array, cell: jax.Array) -> Carry:
    """Computes output and cell (B, features) from the sums of the gates (B, 4 * features) and the cell before."""
    enter, forget, new, leave = jnp.split(gates, 4, axis=-1)
    cell = nnx.sigmoid(forget) * cell + nnx.sigmoid(enter) * jnp.tanh(new)
    return nnx.sigmoid(leave) * jnp.tanh(cell), cell


def _start_of_gates(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jnp.repeat(jnp.asarray([0, 1, 0, 0], dtype), shape[0] // 4)
