"""Log-mel spectrograms of sounds, computed on the device: bands as Slaney defined them, as librosa computes them."""

import dataclasses
import functools
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxaccel.core.platform import count_devices

T = TypeVar("T", bound=Any)
FLOOR = 1e-8
"""The least energy of a band, below what 16 bits resolve: silence has a logarithm."""
MIN_DEVIATION = 1e-2
"""The least deviation that features are divided by: silence stays silence."""
_MEL = 200 / 3  # Hz a mel up to 1,000 Hz
_LOGARITHMIC = 1000.0  # Hz from where on mels are logarithmic
_STEP = np.log(6.4) / 27


@dataclasses.dataclass(frozen=True)
class LogMel:
    """How a spectrogram is computed. Times are in samples."""

    rate: int
    """Samples a second."""
    window: int
    """Samples that a frame looks at, weighed by a periodic Hann window."""
    hop: int
    """Samples from one frame to the next. The middle of frame t is sample ``t * hop``."""
    bands: int
    """Number of mel bands, from 0 Hz to half the rate."""

    @property
    def size(self) -> int:
        """Samples of the Fourier transform: the power of two that the window fits in."""
        return 1 << (self.window - 1).bit_length()

    @property
    def margin(self) -> int:
        """Samples of a frame's Fourier transform before its middle."""
        return self.size // 2

    def count_frames(self, samples: T) -> T:
        """How many frames that many samples give."""
        return 1 + samples // self.hop

    def count_samples(self, frames: int) -> int:
        """The most samples that give so many frames."""
        return frames * self.hop - 1

    def compute(self, audio: jax.Array, samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes the logarithm of the energy in each band.

        A sound gives the same frames whatever it is filled up to, because both ends are continued by silence.

        Args:
          audio: (B, N) float32; what lies behind the sound is ignored.
          samples: (B,) int, how long each sound is.

        Returns:
          (B, count_frames(N), bands) float32, 0 behind the last frame; and the number of frames of each sound, (B,).
        """
        there = jnp.arange(audio.shape[1]) < samples[:, None]
        padded = jnp.pad(jnp.where(there, audio, 0), ((0, 0), (self.margin, self.margin)))
        found = self.compute_frames(padded, self.count_frames(audio.shape[1]))
        counts = self.count_frames(samples)
        return jnp.where(mask_frames(counts, found.shape[1])[..., None], found, 0), counts

    def compute_frames(self, audio: jax.Array, frames: int) -> jax.Array:
        """Computes frames (B, frames, bands) of samples (B, `count_span` of them); frame t begins at ``t * hop``."""
        starts = self.hop * jnp.arange(frames)
        windows = audio[:, starts[:, None] + np.arange(self.size)] * _hann(self.window, self.size)
        energy = compute_power(windows) @ make_mel_bands(self.rate, self.size, self.bands)
        return jnp.log(jnp.maximum(energy, FLOOR))

    def count_span(self, frames: int) -> int:
        """How many samples the Fourier transforms of so many frames take."""
        return (frames - 1) * self.hop + self.size


def compute_power(frames: jax.Array) -> jax.Array:
    """Computes the squared magnitudes of the Fourier transform of frames: (..., size) -> (..., size // 2 + 1) float32.

    XLA gathers a batch that is split over devices for its fast transform. There it is a product with cosines and sines.
    """
    if count_devices() == 1:
        spectrum = jnp.fft.rfft(frames)
        return jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    cosines, sines = (jnp.matmul(frames, wave, precision="highest") for wave in make_waves(frames.shape[-1]))
    return jnp.square(cosines) + jnp.square(sines)


def normalize(features: jax.Array, frames: jax.Array, over: Literal["utterance", "band"]) -> jax.Array:
    """Features with mean 0 and deviation 1 over the frames of each sound; 0 behind the last frame.

    Args:
      features: (B, T, bands) float32.
      frames: (B,) int, how many count.
      over: all bands together, ``utterance``, or each ``band`` by itself.
    """
    axes = (1, 2) if over == "utterance" else (1,)
    there = mask_frames(frames, features.shape[1])[..., None]
    count = frames[:, None, None] * (features.shape[2] if over == "utterance" else 1)
    mean = jnp.where(there, features, 0).sum(axes, keepdims=True) / count
    centered = jnp.where(there, features - mean, 0)
    variance = jnp.square(centered).sum(axes, keepdims=True) / count
    return centered / jnp.maximum(jnp.sqrt(variance), MIN_DEVIATION)


def mask_frames(frames: jax.Array, length: int) -> jax.Array:
    """(B, length) bool: which frames belong to a sound of so many, (B,)."""
    return jnp.arange(length) < frames[:, None]


@functools.cache
def make_mel_bands(rate: int, size: int, bands: int) -> np.ndarray:
    """Triangles of equal area over the frequencies of a Fourier transform, (size // 2 + 1, bands) float32.

    The scale is Slaney's (Auditory Toolbox, 1998): linear up to 1,000 Hz, logarithmic above.
    """
    edges = _to_hertz(np.linspace(0.0, _to_mel(rate / 2), bands + 2))
    frequencies = np.linspace(0.0, rate / 2, size // 2 + 1)[:, None]
    rising = (frequencies - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies) / np.diff(edges)[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * 2.0 / (edges[2:] - edges[:-2])).astype(np.float32)


@functools.cache
def make_waves(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The cosines and the sines of a Fourier transform of so many samples, (size, size // 2 + 1) float32 each."""
    angles = 2 * np.pi / size * (np.arange(size)[:, None] * np.arange(size // 2 + 1) % size)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@functools.cache
def _hann(window: int, size: int) -> np.ndarray:
    """A periodic Hann window in the middle of `size` samples, float32."""
    values = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    before = (size - window) // 2
    return np.pad(values, (before, size - window - before)).astype(np.float32)


def _to_mel(hertz: float) -> float:
    if hertz < _LOGARITHMIC:
        return hertz / _MEL
    return float(_LOGARITHMIC / _MEL + np.log(hertz / _LOGARITHMIC) / _STEP)


def _to_hertz(mels: np.ndarray) -> np.ndarray:
    bend = _LOGARITHMIC / _MEL
    return np.where(mels < bend, mels * _MEL, _LOGARITHMIC * np.exp(_STEP * np.maximum(mels - bend, 0)))
