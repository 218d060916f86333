"""Recurrent layers over sequences of different lengths."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

Carry = tuple[jax.Array, jax.Array]
"""What an LSTM hands from one position to the next: its output and its cell, both (B, features)."""
_At = tuple[jax.Array, jax.Array | None]
"""A position in a loop: the products with its input, and which sequences have it."""


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
            carry = self.start(x.shape[0], steps.dtype)
        # The kernel is read once, outside: Flax modules are not to be called in a loop of JAX's.
        kernel = self.recurrent.kernel[...]

        def step(carry: Carry, at: _At) -> tuple[Carry, jax.Array]:
            from_input, counts = at
            output, cell = advance(from_input + carry[0] @ kernel, carry[1])
            if counts is None:
                return (output, cell), output
            kept = jnp.where(counts, output, carry[0]), jnp.where(counts, cell, carry[1])
            return kept, jnp.where(counts, output, 0)

        carry, outputs = jax.lax.scan(step, carry, (steps, _by_position(mask)), reverse=self.reverse)
        return outputs.swapaxes(0, 1), carry

    def start(self, batch: int, dtype: DTypeLike = jnp.float32) -> Carry:
        """The carry before the first position: zeros."""
        zeros = jnp.zeros((batch, self.features), dtype)
        return zeros, zeros


class Gru(nnx.Module):
    """One direction of gated recurrent units (Cho et al. 2014, https://arxiv.org/abs/1406.1078).

    The reset gate is applied behind the product with the output before, as in PyTorch and cuDNN, so that there is one
    such product. Masked positions leave the carry alone, as in `Lstm`.

    Parameters stand at ``input`` and ``recurrent``, (inputs, 3 * features) and (features, 3 * features), each with a
    bias. The gates' order is reset, update, new.

    Args:
      inputs: features of a position.
      features: outputs.
      reverse: from the last position to the first.
      rngs: stream ``params``.
    """

    def __init__(self, inputs: int, features: int, *, reverse: bool = False, rngs: nnx.Rngs) -> None:
        self.input = nnx.Linear(inputs, 3 * features, rngs=rngs)
        self.recurrent = nnx.Linear(
            features, 3 * features, kernel_init=nnx.initializers.orthogonal(), rngs=rngs
        )
        self.features = features
        self.reverse = reverse

    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, carry: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Outputs of all positions, and the last carry, with which a later piece of the sequence goes on.

        Args:
          x: (B, T, inputs).
          mask: (B, T) bool; None where all positions count.
          carry: of the piece before; zeros where there is none.

        Returns:
          (B, T, features), 0 where masked; and the carry (B, features).
        """
        steps = self.input(x.swapaxes(0, 1))  # (T, B, 3 * features)
        if carry is None:
            carry = self.start(x.shape[0], steps.dtype)
        assert self.recurrent.bias is not None
        kernel, bias = self.recurrent.kernel[...], self.recurrent.bias[...]

        def step(carry: jax.Array, at: _At) -> tuple[jax.Array, jax.Array]:
            from_input, counts = at
            output = renew(from_input, carry @ kernel + bias, carry)
            if counts is None:
                return output, output
            return jnp.where(counts, output, carry), jnp.where(counts, output, 0)

        carry, outputs = jax.lax.scan(step, carry, (steps, _by_position(mask)), reverse=self.reverse)
        return outputs.swapaxes(0, 1), carry

    def step(self, x: jax.Array, carry: jax.Array) -> jax.Array:
        """The output, which is the carry too, (B, features), of one position (B, inputs)."""
        return renew(self.input(x), self.recurrent(carry), carry)

    def start(self, batch: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """The carry before the first position: zeros."""
        return jnp.zeros((batch, self.features), dtype)


def renew(from_input: jax.Array, from_output: jax.Array, output: jax.Array) -> jax.Array:
    """Computes a GRU's next output (B, features).

    Args:
      from_input: products with the input, (B, 3 * features).
      from_output: products with the output before, (B, 3 * features).
      output: that one, (B, features).
    """
    reset, update, new = jnp.split(from_input, 3, axis=-1)
    reset_before, update_before, new_before = jnp.split(from_output, 3, axis=-1)
    new = jnp.tanh(new + nnx.sigmoid(reset + reset_before) * new_before)
    kept = nnx.sigmoid(update + update_before)
    return (1 - kept) * new + kept * output


def _by_position(mask: jax.Array | None) -> jax.Array | None:
    return None if mask is None else mask.T[..., None]


def advance(gates: jax.Array, cell: jax.Array) -> Carry:
    """Computes output and cell (B, features) from the sums of the gates (B, 4 * features) and the cell before."""
    enter, forget, new, leave = jnp.split(gates, 4, axis=-1)
    cell = nnx.sigmoid(forget) * cell + nnx.sigmoid(enter) * jnp.tanh(new)
    return nnx.sigmoid(leave) * jnp.tanh(cell), cell


def _start_of_gates(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jnp.repeat(jnp.asarray([0, 1, 0, 0], dtype), shape[0] // 4)
