"""Random draws of examples: a function of the operation's key and the example's index, and of nothing else."""

import jax
import jax.numpy as jnp

from jaxaccel.data.augment.batch import Batch
from jaxaccel.data.augment.deferred import image_like
from jaxaccel.errors import UserError


def example_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """One random key per example: ``fold_in(key, index)``.

    ``index`` is ``batch["index"]``, integers of shape (B,): the example's position in its data set. A batch
    without it is numbered 0..B-1.

    Returns:
      Keys of shape (B,), or (B, 2) where ``key`` is a raw uint32 key.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_index(batch))


def example_index(batch: Batch) -> jax.Array:
    """``batch["index"]`` (B,), or 0..B-1 where it is missing."""
    if "index" in batch:
        return batch["index"]
    if "image" in batch:
        return jnp.arange(image_like(batch, "augmentation").shape[0], dtype=jnp.int32)
    if not batch:
        raise UserError("the batch is empty: it has neither an 'index' nor anything to count")
    return jnp.arange(next(iter(batch.values())).shape[0], dtype=jnp.int32)


def uniforms(key: jax.Array, batch: Batch, count: int) -> jax.Array:
    """``count`` draws for each example, (B, count) float32 in [0, 1)."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,), jnp.float32))(example_keys(key, batch))
