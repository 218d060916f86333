"""Samples of sounds on the device: what 16 bits are as floats, and which of them belong to a sound."""

import jax
import jax.numpy as jnp

FULL_SCALE = 32_768
"""What 1.0 is in 16 bits."""


def as_float(audio: jax.Array) -> jax.Array:
    """Samples as float32 from -1 to 1; floats as they are."""
    if jnp.issubdtype(audio.dtype, jnp.integer):
        return audio.astype(jnp.float32) / FULL_SCALE
    return audio.astype(jnp.float32)


def mask_samples(samples: jax.Array, length: int) -> jax.Array:
    """(B, length) bool: which samples belong to a sound of so many, (B,)."""
    return jnp.arange(length, dtype=jnp.int32) < samples[:, None]
