"""The voice activity detector of Silero, version 6 for 16 kHz (https://github.com/snakers4/silero-vad, MIT).

Each chunk of 512 samples (32 ms) becomes the magnitudes of four short spectra, convolutions make one vector of them,
and an LSTM over the chunks says how probable speech is. ``load_pretrained(model, "silero_vad")`` takes the weights of
the package's safetensors file, which are of another training than those of its ONNX files.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxaccel.models.layers.recurrent import Carry, Lstm

CHUNK = 512
"""Samples of a chunk."""
CONTEXT = 64
"""Samples before a chunk that are heard again with it."""
_WINDOW, _HOP = 256, 128
_BINS = _WINDOW // 2 + 1
_CONVOLUTIONS = ((_BINS, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))

VadCarry = tuple[jax.Array, Carry]
"""The last `CONTEXT` samples of a stream, and the carry of the LSTM."""


class SileroVad(nnx.Module):
    """Probabilities of speech, one for each chunk of 512 samples.

    Parameters stand at ``convs/<i>`` (3, in, out), ``lstm`` (`jaxaccel.models.layers.recurrent.Lstm`) and ``head``. The
    windowed Fourier transform ``spectrum/kernel`` (256, 1, 258) is no parameter and is not trained.

    Args:
      rngs: stream ``params``.
    """

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.spectrum = Spectrum()
        self.convs = nnx.List(
            [
                nnx.Conv(inputs, outputs, (3,), strides=stride, padding=((1, 1),), rngs=rngs)
                for inputs, outputs, stride in _CONVOLUTIONS
            ]
        )
        self.lstm = Lstm(128, 128, rngs=rngs)
        self.head = nnx.Linear(128, 1, rngs=rngs)

    def __call__(self, audio: jax.Array) -> jax.Array:
        """Probabilities (B, T / 512) of speech in `audio` (B, T), at 16 kHz in [-1, 1].

        They depend on no later chunk, so sounds of several lengths are filled up behind with anything.

        Raises:
          ValueError: T is no multiple of 512.
        """
        return self.step(audio, self.start(audio.shape[0]))[0]

    def start(self, batch: int) -> VadCarry:
        """What `step` takes with the first chunks of `batch` streams."""
        return jnp.zeros((batch, CONTEXT)), self.lstm.start(batch)

    def step(self, audio: jax.Array, carry: VadCarry) -> tuple[jax.Array, VadCarry]:
        """Probabilities (B, t / 512) of the next t samples (B, t), and what the step after takes.

        Raises:
          ValueError: t is no multiple of 512.
        """
        if audio.shape[1] % CHUNK:
            raise ValueError(f"SileroVad: {audio.shape[1]} samples are no multiple of {CHUNK}")
        context, memory = carry
        x, memory = self.lstm(self._encode(audio, context), carry=memory)
        probabilities = nnx.sigmoid(self.head(nnx.relu(x)))[..., 0]
        return probabilities, (jnp.concatenate([context, audio], axis=1)[:, -CONTEXT:], memory)

    def _encode(self, audio: jax.Array, context: jax.Array) -> jax.Array:
        """A vector for each chunk, (B, chunks, 128)."""
        chunks = audio.reshape(audio.shape[0], -1, CHUNK)
        before = jnp.concatenate([context[:, None], chunks[:, :-1, -CONTEXT:]], axis=1)
        heard = jnp.concatenate([before, chunks, chunks[..., -2 : -CONTEXT - 2 : -1]], axis=-1)
        x = self.spectrum(heard.reshape(-1, heard.shape[-1]))
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return x.reshape(*chunks.shape[:2], -1)


class Spectrum(nnx.Module):
    """Magnitudes of a short-time Fourier transform, 129 of each 256 samples."""

    def __init__(self) -> None:
        self.kernel = nnx.Variable(jnp.asarray(_fourier()[:, None], jnp.float32))

    def __call__(self, audio: jax.Array) -> jax.Array:
        """(B, T) -> (B, (T - 256) / 128 + 1, 129)."""
        found = jax.lax.conv_general_dilated(
            audio[..., None],
            self.kernel[...],
            (_HOP,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        # The gradient of a square root at 0 is not finite, and silence is 0.
        power = found[..., :_BINS] ** 2 + found[..., _BINS:] ** 2
        return jnp.where(power > 0, jnp.sqrt(jnp.where(power > 0, power, 1)), 0)


def _fourier() -> np.ndarray:
    """Cosines, then negative sines under Hann's window, (256, 258)."""
    at = np.arange(_WINDOW)[:, None]
    angles = 2 * np.pi / _WINDOW * at * np.arange(_BINS)
    window = 0.5 - 0.5 * np.cos(2 * np.pi / _WINDOW * at)
    return window * np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)


def silero_vad(*, rngs: nnx.Rngs) -> SileroVad:
    """Silero's detector of speech: 243,073 parameters. ``load_pretrained(model, "silero_vad")`` gives it weights."""
    return SileroVad(rngs=rngs)
