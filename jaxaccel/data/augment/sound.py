"""Augmentations of sounds, on samples: ``batch["audio"]`` (B, N) int16 or float and ``batch["samples"]`` (B,) int32.

They give float32 from -1 to 1, and what lies behind a sound is 0. What happens to a sound depends on the key and its
index, as for images; how far it is filled up and what else is in the batch change the rounding alone. Each operation
changes a sound with `probability`.
"""

import functools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval

from jaxaccel.core.options import NonNegative, Share, checked
from jaxaccel.data.audio import MAX_RATE, MIN_RATE
from jaxaccel.data.augment.batch import Batch, check_range
from jaxaccel.data.augment.keys import example_keys, uniforms
from jaxaccel.data.samples import as_float, mask_samples
from jaxaccel.errors import UserError

Rate = Annotated[int, Interval(ge=MIN_RATE, le=MAX_RATE)]
PINK_TAPS = 4096
"""Below the rate over so many, pink noise is white."""
_STEPS = 1 << 15  # of a sample: places between samples are fixed-point numbers
_BLOCK = 1024  # samples; products of a place in it and a step stay in 32 bits
_SILENCE = 1e-20  # a power that is none


@checked
def change_gain(
    key: jax.Array, batch: Batch, *, decibels: tuple[float, float] = (-6.0, 6.0), probability: Share = 1.0
) -> Batch:
    """Makes sounds louder or softer; what leaves [-1, 1] is clipped.

    Args:
      key: random key.
      batch: of sounds.
      decibels: the least and the greatest gain.
      probability: share of the sounds that change.

    Raises:
      UserError: an option is out of its range, or the batch holds no sounds.
    """
    audio, samples = _sounds(batch, "change_gain")
    check_range(decibels, "decibels", -100, 100, "change_gain")
    draws = uniforms(key, batch, 2)
    changed = audio * _to_factor(_between(draws[:, 1], decibels))[:, None]
    return _replace(batch, audio, samples, changed, draws[:, 0] < probability)


@checked
def shift_sound(
    key: jax.Array, batch: Batch, *, seconds: NonNegative = 0.1, rate: Rate = 16_000, probability: Share = 1.0
) -> Batch:
    """Moves sounds in time; silence comes in at one end, and what leaves at the other is lost.

    A sound keeps its length, and moves by half of it at most.

    Args:
      key: random key.
      batch: of sounds.
      seconds: how far at most, earlier or later.
      rate: samples a second, those of the task.
      probability: share of the sounds that move.

    Raises:
      UserError: an option is out of its range, or the batch holds no sounds.
    """
    audio, samples = _sounds(batch, "shift_sound")
    if seconds > 60:
        raise UserError(f"shift_sound: seconds must be at most 60, got {seconds:g}")
    most = round(seconds * rate)
    draws = uniforms(key, batch, 2)
    offset = jnp.floor(draws[:, 1] * (2 * most + 1)).astype(jnp.int32) - most
    offset = jnp.clip(offset, -(samples // 2), samples // 2)
    length = audio.shape[1]
    source = jnp.arange(length, dtype=jnp.int32) - offset[:, None]
    moved = jnp.take_along_axis(audio, jnp.clip(source, 0, length - 1), axis=1)
    moved = jnp.where((source >= 0) & (source < samples[:, None]), moved, 0)
    return _replace(batch, audio, samples, moved, draws[:, 0] < probability)


@checked
def change_speed(
    key: jax.Array, batch: Batch, *, speed: tuple[float, float] = (0.9, 1.1), probability: Share = 1.0
) -> Batch:
    """Plays sounds faster or slower, tempo and pitch together (as in Ko et al. 2015, Interspeech).

    The length changes with it. A sound that would outgrow its array is slowed only as far as it fits, so that no word
    is lost. Samples between samples are cubic (Catmull-Rom).

    Args:
      key: random key.
      batch: of sounds.
      speed: the least and the greatest, in [0.5, 2].
      probability: share of the sounds that change.

    Raises:
      UserError: an option is out of its range, or the batch holds no sounds.
    """
    audio, samples = _sounds(batch, "change_speed")
    check_range(speed, "speed", 0.5, 2, "change_speed")
    length = audio.shape[1]
    draws = uniforms(key, batch, 2)
    excess = jnp.round((_between(draws[:, 1], speed) - 1) * _STEPS)
    fitting = jnp.ceil((samples - length).astype(jnp.float32) / length * _STEPS)
    excess = jnp.where(draws[:, 0] < probability, jnp.maximum(excess, fitting), 0).astype(jnp.int32)
    whole, part = _places(excess, length)
    there = whole < samples[:, None]
    # One sample of silence before the sound, and three behind it.
    padded = jnp.pad(audio, ((0, 0), (1, 3)))
    first = jnp.minimum(whole, length)
    before, here, after, behind = (jnp.take_along_axis(padded, first + i, axis=1) for i in range(4))
    slope, next_slope = (after - before) / 2, (behind - here) / 2
    gap = after - here
    cubic = slope + next_slope - 2 * gap
    square = 3 * gap - 2 * slope - next_slope
    played = here + part * (slope + part * (square + part * cubic))
    played = jnp.where(there, jnp.clip(played, -1, 1), 0)
    return {**batch, "audio": played, "samples": there.sum(1).astype(samples.dtype)}


@checked
def add_noise(
    key: jax.Array,
    batch: Batch,
    *,
    snr: tuple[float, float] = (10.0, 30.0),
    color: Literal["white", "pink"] = "white",
    probability: Share = 1.0,
) -> Batch:
    """Adds noise, so much weaker than the sound as is drawn; what leaves [-1, 1] is clipped.

    Powers are means over the samples of a sound, without what it is filled up with. Silence stays silent.

    Args:
      key: random key.
      batch: of sounds.
      snr: the least and the greatest power of the sound over that of the noise, in decibels.
      color: ``white``, of the same power at all frequencies, or ``pink``, of the same power in all octaves.
      probability: share of the sounds that change.

    Raises:
      UserError: an option is out of its range, or the batch holds no sounds.
    """
    audio, samples = _sounds(batch, "add_noise")
    check_range(snr, "snr", -60, 120, "add_noise")
    draws = uniforms(key, batch, 2)
    before = PINK_TAPS - 1 if color == "pink" else 0
    noise = _draw_normal(key, batch, before + audio.shape[1])
    if color == "pink":
        noise = _convolve(noise, jnp.asarray(_pink_response())[None])[:, before:]
    ratio = _mean_power(audio, samples) / jnp.maximum(_mean_power(noise, samples), _SILENCE)
    scale = jnp.sqrt(ratio) * _to_factor(-_between(draws[:, 1], snr))
    return _replace(batch, audio, samples, audio + noise * scale[:, None], draws[:, 0] < probability)


@checked
def reverberate(
    key: jax.Array,
    batch: Batch,
    *,
    seconds: tuple[float, float] = (0.1, 0.5),
    direct: tuple[float, float] = (0.0, 10.0),
    rate: Rate = 16_000,
    probability: Share = 1.0,
) -> Batch:
    """Puts sounds into rooms, whose echo is noise that decays exponentially.

    The response of a room has energy 1 and begins with the sound itself. A sound keeps its length: the echo behind it
    is cut. What leaves [-1, 1] is clipped.

    Args:
      key: random key.
      batch: of sounds.
      seconds: the least and the greatest time in which the echo falls by 60 decibels, in [0.01, 10].
      direct: the least and the greatest energy of the sound itself over that of its echo, in decibels.
      rate: samples a second, those of the task.
      probability: share of the sounds that change.

    Raises:
      UserError: an option is out of its range, or the batch holds no sounds.
    """
    audio, samples = _sounds(batch, "reverberate")
    check_range(seconds, "seconds", 0.01, 10, "reverberate")
    check_range(direct, "direct", -60, 60, "reverberate")
    draws = uniforms(key, batch, 3)
    taps = int(np.ceil(seconds[1] * rate))
    decay = jnp.arange(1, taps + 1, dtype=jnp.float32) / (_between(draws[:, 1], seconds)[:, None] * rate)
    echo = _draw_normal(key, batch, taps) * _to_factor(-60 * decay)
    share = 1 / (1 + _to_factor(2 * _between(draws[:, 2], direct)))  # of the energy, that the echo has
    echo *= jnp.sqrt(share / jnp.square(echo).sum(1))[:, None]
    response = jnp.concatenate([jnp.sqrt(1 - share)[:, None], echo], axis=1)
    return _replace(batch, audio, samples, _convolve(audio, response), draws[:, 0] < probability)


def _sounds(batch: Batch, operation: str) -> tuple[jax.Array, jax.Array]:
    """The sounds, float32 and 0 behind their ends, and how long they are."""
    if "audio" not in batch or "samples" not in batch:
        raise UserError(
            f"{operation} needs sounds, and the batch has {', '.join(sorted(batch)) or 'nothing'}"
        )
    audio, samples = jnp.asarray(batch["audio"]), jnp.asarray(batch["samples"])
    if audio.ndim != 2 or not (audio.dtype == jnp.int16 or jnp.issubdtype(audio.dtype, jnp.floating)):
        raise UserError(
            f"{operation} needs int16 or floating-point sounds of shape (B, samples), not {audio.dtype} {audio.shape}"
        )
    return jnp.where(mask_samples(samples, audio.shape[1]), as_float(audio), 0), samples


def _replace(
    batch: Batch, audio: jax.Array, samples: jax.Array, changed: jax.Array, chosen: jax.Array
) -> Batch:
    """The batch with `changed`, clipped, in the place of the sounds that are `chosen`."""
    there = mask_samples(samples, audio.shape[1]) & chosen[:, None]
    return {**batch, "audio": jnp.clip(jnp.where(there, changed, audio), -1, 1)}


def _between(draws: jax.Array, bounds: tuple[float, float]) -> jax.Array:
    low, high = bounds
    return low + draws * (high - low)


def _to_factor(decibels: jax.Array) -> jax.Array:
    """What amplitudes are multiplied by."""
    return jnp.exp(decibels * float(np.log(10) / 20))


def _places(excess: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Where in a sound the samples of the played one lie: whole samples (B, length) int32, and the rest in [0, 1).

    They are the multiples of ``1 + excess / _STEPS``. Float32 would place the samples of half a minute to a 32nd.
    """
    time = jnp.arange(length, dtype=jnp.int32)
    blocks = excess[:, None] * (time // _BLOCK)  # in units of _BLOCK / _STEPS samples
    per_sample = _STEPS // _BLOCK
    rest = (blocks % per_sample) * _BLOCK + excess[:, None] * (time % _BLOCK)
    whole = time + blocks // per_sample + rest // _STEPS
    return whole, (rest % _STEPS).astype(jnp.float32) / _STEPS


def _draw_normal(key: jax.Array, batch: Batch, count: int) -> jax.Array:
    """(B, count) float32 of deviation 1, of which the first ones are the same whatever the count."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(example_keys(key, batch))
    return jax.vmap(lambda key: jax.random.normal(key, (count,), jnp.float32))(keys)


def _mean_power(audio: jax.Array, samples: jax.Array) -> jax.Array:
    """The mean square over the samples of each sound, (B,)."""
    there = mask_samples(samples, audio.shape[1])
    return jnp.where(there, jnp.square(audio), 0).sum(1) / jnp.maximum(samples, 1)


def _convolve(audio: jax.Array, response: jax.Array) -> jax.Array:
    """The first N samples of (B, N) convolved with (B or 1, M)."""
    from scipy.fft import next_fast_len

    length = audio.shape[1]
    size = next_fast_len(length + response.shape[1] - 1, real=True)
    product = jnp.fft.rfft(audio, size) * jnp.fft.rfft(response, size)
    return jnp.fft.irfft(product, size)[:, :length]


@functools.cache
def _pink_response() -> np.ndarray:
    """Coefficients of (1 - z)^(-1/2), which turns white noise into 1/f (Kasdin 1995, Proc. IEEE 83(5)); float32."""
    k = np.arange(1, PINK_TAPS)
    return np.cumprod(np.concatenate([[1.0], (k - 0.5) / k])).astype(np.float32)
