"""Log-mel spectrograms against librosa's numbers and a float64 reference."""

from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.signal

from jaxaccel.tasks.log_mel import FLOOR, LogMel, make_mel_bands, normalize

PLACES = np.arange(1234)
SOUND = 0.5 * np.sin(2 * np.pi * 440 * PLACES / 8000) + 0.25 * np.sin(2 * np.pi * PLACES**2 / 9000)
MEL = LogMel(8000, 200, 80, 40)
COMPUTE = jax.jit(LogMel.compute, static_argnums=0)


def reference(sound, mel):
    """By SciPy's transform of each frame, in float64."""
    margin = mel.size // 2
    padded = np.pad(sound, margin)
    window = np.zeros(mel.size)
    before = (mel.size - mel.window) // 2
    window[before : before + mel.window] = scipy.signal.get_window("hann", mel.window)
    frames = [
        padded[t * mel.hop : t * mel.hop + mel.size] * window for t in range(mel.count_frames(len(sound)))
    ]
    energy = np.abs(np.fft.rfft(frames)) ** 2 @ make_mel_bands(mel.rate, mel.size, mel.bands).astype(float)
    return np.log(np.maximum(energy, FLOOR))


@pytest.mark.parametrize(
    ("mel", "frame", "values", "mean"),
    [
        (MEL, 7, [-13.4846, -9.58483, -8.85373, -25.7815], -10.319446),
        (LogMel(16000, 400, 160, 80), 3, [-15.944, -14.5747, -2.0305, -21.1595], -8.553678),
    ],
)
def test_it_is_librosas(mel, frame, values, mean):
    # librosa 0.11.0: melspectrogram(y, sr=, n_fft=, hop_length=, win_length=, n_mels=), its other options as they are.
    found, count = COMPUTE(mel, SOUND[None].astype(np.float32), np.array([1234]))
    assert found.shape == (1, mel.count_frames(1234), mel.bands) and count.tolist() == [found.shape[1]]
    places = [0, 3, 10, 39] if mel is MEL else [0, 5, 20, 60]
    np.testing.assert_allclose(found[0, frame, places], np.maximum(values, np.log(FLOOR)), atol=2e-3)
    np.testing.assert_allclose(found.mean(), mean, atol=1e-4)
    np.testing.assert_allclose(found[0], reference(SOUND, mel), atol=2e-3)


def test_a_sound_is_the_same_whatever_it_is_filled_up_with():
    rows = np.full((3, 1500), 0.9, np.float32)
    lengths = np.array([1234, 300, 1])
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = SOUND[:length]
    found, counts = COMPUTE(MEL, rows, lengths)
    assert counts.tolist() == [16, 4, 1]
    for row, count, length in zip(found, counts, lengths, strict=True):
        np.testing.assert_allclose(row[:count], reference(SOUND[:length], MEL), atol=2e-3)
        assert (np.asarray(row[count:]) == 0).all()


@pytest.mark.parametrize("frames", [1, 5, 16])
def test_as_many_samples_as_frames_hold(frames):
    samples = MEL.count_samples(frames)
    assert MEL.count_frames(samples) == frames and MEL.count_frames(samples + 1) == frames + 1


def test_over_several_devices_it_is_a_product_of_each_one_with_its_own_sounds(told):
    found = told(Path(__file__).parent / "log_mel_program.py")
    assert found["error"] < 2e-3 and found["collectives"] == []


@pytest.mark.parametrize("over", ["utterance", "band"])
def test_normalization_sees_no_padding(over):
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (2, 9, 5)).astype(np.float32)
    found = np.asarray(jax.jit(normalize, static_argnums=2)(features, np.array([9, 4]), over))
    for row, count, raw in zip(found, (9, 4), features, strict=True):
        axis = None if over == "utterance" else 0
        want = (raw[:count] - raw[:count].mean(axis)) / raw[:count].std(axis)
        np.testing.assert_allclose(row[:count], want, atol=1e-4)
        assert (row[count:] == 0).all()


def test_silence_stays_silence():
    found, count = COMPUTE(MEL, np.zeros((1, 800), np.float32), np.array([800]))
    np.testing.assert_allclose(found, np.log(FLOOR), rtol=1e-6)
    assert (np.abs(normalize(found, count, "utterance")) < 1e-2).all()
