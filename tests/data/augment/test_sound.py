"""Augmentations of sounds and of their features, beside NumPy and SciPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import compiled
from scipy import signal
from scipy.interpolate import CubicHermiteSpline

from jaxaccel import augment
from jaxaccel.errors import UserError

KEY = jax.random.key(11)
RATE = 1_000
SAMPLES = np.array([700, 1, 512, 333, 900, 0, 64, 899], np.int32)
FRAMES = np.array([100, 1, 57, 30, 90, 1, 10, 99], np.int32)


def batch(filled=1_000, rows=slice(None), dtype: type = np.int16):
    """Sounds behind which stands what must not be heard; the sixth is an empty row of mask 0."""
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 0.1, (len(SAMPLES), 900)).clip(-1, 0.999)
    audio = np.pad(audio, ((0, 0), (0, filled - 900)), constant_values=0.7)
    audio = np.round(audio * 32_768).astype(np.int16)
    found = {
        "audio": audio if dtype is np.int16 else (audio / 32_768).astype(dtype),
        "samples": SAMPLES,
        "index": np.arange(40, 40 + len(SAMPLES), dtype=np.int32),
        "mask": (SAMPLES > 0).astype(np.float32),
        "epoch": np.full(len(SAMPLES), 3, np.int32),
    }
    return {name: x[rows] for name, x in found.items()}


def features(filled=100, rows=slice(None)):
    there = np.arange(filled) < FRAMES[:, None]
    feature = np.where(there[..., None], np.ones((len(FRAMES), filled, 40)), 0).astype(np.float32)
    found = {"feature": feature, "frames": FRAMES, "index": np.arange(40, 40 + len(FRAMES), dtype=np.int32)}
    return {name: x[rows] for name, x in found.items()}


def sounds(b):
    """Each sound in float64, as it is heard."""
    audio = np.asarray(b["audio"], np.float64)
    audio /= 32_768 if b["audio"].dtype == np.int16 else 1
    return [row[:n] for row, n in zip(audio, np.asarray(b["samples"]), strict=True)]


@functools.cache
def jitted(name, **options):
    return compiled(functools.partial(getattr(augment, name), **options))


def run(name, b, key=KEY, **options):
    return jax.device_get(jitted(name, **options)(key, b))


def to_decibels(ratio):
    return 10 * np.log10(ratio)


OPTIONS = {
    "change_gain": {},
    "shift_sound": {"rate": RATE},
    "change_speed": {},
    "add_noise": {"color": "pink"},
    "reverberate": {"rate": RATE, "seconds": (0.05, 0.2)},
}
NOTHING = {
    "change_gain": {"decibels": (0, 0)},
    "shift_sound": {"seconds": 0},
    "change_speed": {"speed": (1, 1)},
    "add_noise": {"probability": 0},
    "reverberate": {"probability": 0},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_sound_changes_alike_alone_elsewhere_and_filled_up_further(name):
    b, options = batch(), OPTIONS[name]
    whole = run(name, b, **options)
    heard = sounds(whole)
    assert whole["audio"].dtype == np.float32 and whole["audio"].shape == b["audio"].shape
    assert np.abs(whole["audio"]).max() <= 1 and whole["samples"].dtype == np.int32
    assert not whole["audio"][np.arange(1_000) >= whole["samples"][:, None]].any()
    assert whole.keys() == b.keys() and (whole["epoch"] == 3).all()
    assert all(
        len(after) != len(before) or np.abs(after - before).max() > 1e-3
        for after, before in zip(heard, sounds(b), strict=True)
        if len(before) > 1
    )
    for again, rows in (
        (run(name, batch(1_310, rows=slice(2, 4)), **options), slice(2, 4)),
        (run(name, batch(dtype=np.float32, rows=slice(None, None, -1)), **options), slice(None, None, -1)),
    ):
        for after, before in zip(sounds(again), heard[rows], strict=True):
            np.testing.assert_allclose(after, before, atol=2e-6)
    other = run(name, b, jax.random.key(12), **options)
    assert not np.array_equal(other["audio"], whole["audio"])


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_changes_where_nothing_is_asked(name):
    after = run(name, batch(), **NOTHING[name])
    for one, want in zip(sounds(after), sounds(batch()), strict=True):
        np.testing.assert_array_equal(one, want)
    np.testing.assert_array_equal(after["samples"], SAMPLES)


def test_a_share_of_the_sounds_changes():
    many = {"audio": np.full((2_000, 4), 0.25, np.float32), "samples": np.full(2_000, 3, np.int32)}
    after = run("change_gain", many, decibels=(-20, -10), probability=0.3)["audio"]
    assert (after[:, 0] != 0.25).mean() == pytest.approx(0.3, abs=0.04)
    gain = 2 * to_decibels(after[:, 0] / 0.25)[after[:, 0] != 0.25]
    assert (
        -20 <= gain.min() < -19.5
        and -10.5 < gain.max() <= -10 + 1e-5
        and np.mean(gain) == pytest.approx(-15, abs=0.5)
    )
    assert not after[:, 3].any()


def test_gain_is_in_decibels_and_clips():
    after = run("change_gain", batch(), decibels=(-7.5, -7.5))
    np.testing.assert_allclose(sounds(after)[0], sounds(batch())[0] * 10 ** (-7.5 / 20), rtol=1e-5)
    loud = run("change_gain", batch(), decibels=(40, 40))
    assert sounds(loud)[0].max() == 1 and sounds(loud)[0].min() == -1


def test_shifted_sounds_move_whole_samples_both_ways_and_stay_in_their_length():
    size = 400
    many = {
        "audio": np.tile(np.arange(1, 41, dtype=np.int16), (size, 1)),
        "samples": np.full(size, 30, np.int32),
    }
    many["samples"][0] = 6
    after = np.round(run("shift_sound", many, seconds=0.01, rate=RATE)["audio"] * 32_768).astype(int)
    offsets = []
    for row, n in zip(after, many["samples"], strict=True):
        heard = np.flatnonzero(row)
        offset = int(heard[0] + 1 - row[heard[0]])
        want = np.zeros(n, int)
        want[max(offset, 0) : n + min(offset, 0)] = np.arange(1, n + 1)[max(-offset, 0) : n - max(offset, 0)]
        np.testing.assert_array_equal(row[:n], want)
        assert not row[n:].any()
        offsets.append(offset)
    assert set(offsets) == set(range(-10, 11)) and abs(offsets[0]) <= 3


@pytest.mark.parametrize("speed", [0.8125, 1.25])
def test_speed_is_that_of_a_cubic_spline(speed):
    b = batch(1_200)
    after = run("change_speed", b, speed=(speed, speed))
    np.testing.assert_array_equal(after["samples"], np.ceil(SAMPLES / speed))
    for before, played in zip(sounds(b), sounds(after), strict=True):
        x = np.pad(before, (2, 3))
        slopes = np.gradient(x)
        spline = CubicHermiteSpline(np.arange(-2, len(before) + 3), x, slopes)
        np.testing.assert_allclose(played, spline(np.arange(len(played)) * speed), atol=1e-6)


def test_places_in_long_sounds_are_exact():
    length = 600_000
    ramp = np.linspace(-1, 1, length, dtype=np.float32)[None]
    tone = np.sin(2 * np.pi * 0.03 * np.arange(length))[None].astype(np.float32)
    for audio, want in (
        (ramp, lambda t: -1 + 2 * t / (length - 1)),
        (tone, lambda t: np.sin(2 * np.pi * 0.03 * t)),
    ):
        b = {"audio": audio, "samples": np.array([length], np.int32)}
        (played,) = sounds(run("change_speed", b, speed=(1.09375, 1.09375)))
        t = np.arange(len(played)) * 1.09375
        np.testing.assert_allclose(played[5:-5], want(t[5:-5]), atol=1e-3)


def test_slow_sounds_fit_into_their_array():
    b = batch(900)
    after = run("change_speed", b, speed=(0.5, 0.5))
    np.testing.assert_array_equal(after["samples"], [900, 2, 900, 666, 900, 0, 128, 900])
    np.testing.assert_array_equal(sounds(after)[4], sounds(b)[4])
    end = sounds(after)[0][-30:]  # the end of the sound is there still
    x = sounds(b)[0]
    spline = CubicHermiteSpline(np.arange(-1, 702), np.pad(x, (1, 2)), np.gradient(np.pad(x, (1, 2))))
    np.testing.assert_allclose(end, spline(np.arange(870, 900) * 700 / 900), atol=0.02)


@pytest.mark.parametrize("color", ["white", "pink"])
def test_noise_is_as_weak_as_asked_over_the_real_samples(color):
    b = batch()
    after = run("add_noise", b, snr=(5.0, 20.0), color=color)
    ratios = []
    for clean, noisy in zip(sounds(b), sounds(after), strict=True):
        if len(clean) > 1:
            ratios.append(to_decibels(np.mean(clean**2) / np.mean((noisy - clean) ** 2)))
    assert 5 <= min(ratios) < max(ratios) - 3 and max(ratios) <= 20
    fixed = run("add_noise", b, snr=(12.0, 12.0), color=color)
    for clean, noisy in zip(sounds(b), sounds(fixed), strict=True):
        if len(clean) > 1:
            ratio = to_decibels(np.mean(clean**2) / np.mean((noisy - clean) ** 2))
            assert ratio == pytest.approx(12, abs=1e-3)
    silence = {**b, "audio": np.zeros_like(b["audio"])}
    assert not run("add_noise", silence, snr=(12.0, 12.0), color=color)["audio"].any()


@pytest.mark.parametrize(("color", "slope"), [("white", 0), ("pink", -3.01)])
def test_noise_has_its_color(color, slope):
    length = 1 << 15
    tone = 0.5 * np.sin(2 * np.pi * 0.25 * np.arange(length))
    b = {"audio": np.tile(tone, (6, 1)).astype(np.float32), "samples": np.full(6, length, np.int32)}
    noise = run("add_noise", b, snr=(20.0, 20.0), color=color)["audio"] - b["audio"]
    frequency, density = signal.welch(noise.astype(np.float64), nperseg=4096)
    octaves = 0.4 / 2.0 ** np.arange(7)[::-1]
    level = [to_decibels(density[:, (frequency > low / 1.4) & (frequency < low)].mean()) for low in octaves]
    found = np.polyfit(np.arange(7), level, 1)[0]
    assert found == pytest.approx(slope, abs=0.3)


def test_rooms_have_energy_one_and_decay_as_asked():
    size, length = 16, 4_000
    impulse = np.zeros((size, length), np.float32)
    impulse[:, 0] = 1
    b = {"audio": impulse, "samples": np.full(size, length, np.int32)}
    options = {"seconds": (1.5, 1.5), "direct": (3.0, 3.0), "rate": 2_000}
    response = run("reverberate", b, **options)["audio"].astype(np.float64)
    np.testing.assert_allclose(np.square(response).sum(1), 1, rtol=1e-4)
    echo = np.square(response[:, 1:])
    np.testing.assert_allclose(to_decibels(response[:, 0] ** 2 / echo.sum(1)), 3, atol=1e-3)
    assert np.abs(response[:, 3_001:]).max() < 1e-6  # behind 1.5 s
    level = to_decibels(echo[:, :2_700].reshape(size, 9, 300).mean((0, 2)))
    assert np.polyfit(np.arange(9) * 300 / 2_000, level, 1)[0] == pytest.approx(-60 / 1.5, rel=0.05)
    # The same key and index give the same room.
    rng = np.random.default_rng(2)
    audio = (0.05 * rng.normal(size=(size, length))).astype(np.float32)
    after = run("reverberate", {**b, "audio": audio}, **options)["audio"]
    want = np.stack(
        [np.convolve(a, r)[:length] for a, r in zip(audio.astype(np.float64), response, strict=True)]
    )
    np.testing.assert_allclose(after, want, atol=2e-6)


def widths(hidden):
    """The length of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


def test_masks_are_as_many_and_as_wide_as_asked():
    size = 1_500
    feature = np.ones((size, 120, 24), np.float32)
    feature[:, 100:] = 0
    many = {"feature": feature, "frames": np.full(size, 100, np.int32)}
    one = run("mask_spectrogram", many, time_masks=1, time_share=0.07, band_masks=1, band_width=6)["feature"]
    in_time, in_bands = (one[:, :100] == 0).all(2), (one[:, :100] == 0).all(1)
    assert np.array_equal(one[:, :100] == 0, in_time[:, :, None] | in_bands[:, None, :])
    for hidden, widest, count in ((in_time, 7, 100), (in_bands, 6, 24)):
        found = [widths(row) for row in hidden]
        assert max(map(len, found)) == 1
        drawn = np.array([sum(row) for row in found])
        # Each width from 0 to the widest is as likely, and each place.
        np.testing.assert_allclose(
            np.bincount(drawn) / size, np.full(widest + 1, 1 / (widest + 1)), atol=0.035
        )
        assert hidden[:, 0].any() and hidden[:, -1].any()
        starts = hidden.argmax(1)[drawn == widest]
        assert starts.max() > 0.95 * (count - widest) and starts.mean() / (count - widest) == pytest.approx(
            0.5, abs=0.06
        )
    two = run("mask_spectrogram", many, time_masks=3, time_share=0.05, band_masks=0)["feature"]
    found = [widths(row) for row in (two[:, :100] == 0).all(2)]
    assert max(map(len, found)) == 3 and max(map(sum, found)) <= 15
    assert np.mean(list(map(sum, found))) == pytest.approx(3 * 2.5 * 0.98, abs=0.3)


def test_masks_depend_on_neither_padding_nor_neighbors():
    options = {"time_share": 0.3, "time_masks": 2, "band_width": 9}
    whole = run("mask_spectrogram", features(), **options)["feature"]
    further = run("mask_spectrogram", features(130), **options)["feature"]
    np.testing.assert_array_equal(further[:, :100], whole)
    assert not further[:, 100:].any()
    some = run("mask_spectrogram", features(rows=slice(2, 5)), **options)["feature"]
    np.testing.assert_array_equal(some, whole[2:5])
    assert (whole[0] == 0).any() and (whole[0] == 1).any()
    for row, n in zip(whole, FRAMES, strict=True):
        assert not row[n:].any()
    nothing = run("mask_spectrogram", features(), time_masks=0, band_masks=0)
    np.testing.assert_array_equal(nothing["feature"], features()["feature"])
    narrow = run("mask_spectrogram", features(), time_share=0, band_width=0)
    np.testing.assert_array_equal(narrow["feature"], features()["feature"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("change_gain", {"decibels": (6, -6)}, "decibels must be"),
        ("change_gain", {"probability": 2}, "probability"),
        ("shift_sound", {"seconds": -1}, "seconds"),
        ("shift_sound", {"seconds": 100}, "seconds must be at most 60"),
        ("change_speed", {"speed": (0.1, 1)}, "speed must be"),
        ("change_speed", {"speed": 1.1}, "speed"),
        ("add_noise", {"color": "brown"}, "color must be white or pink"),
        ("add_noise", {"snr": (10, float("nan"))}, "snr"),
        ("reverberate", {"seconds": (0, 1)}, "seconds must be"),
        ("reverberate", {"rate": 16}, "rate"),
        ("mask_spectrogram", {"time_share": 1.5}, "time_share"),
        ("mask_spectrogram", {"band_masks": -1}, "band_masks"),
    ],
)
def test_bad_options_are_one_line(name, options, message):
    b = features() if name == "mask_spectrogram" else batch()
    with pytest.raises(UserError, match=f"{name}.*{message}") as error:
        getattr(augment, name)(KEY, b, **options)
    assert "\n" not in str(error.value)


def test_what_is_no_sound_is_said():
    with pytest.raises(UserError, match="add_noise needs sounds, and the batch has feature, frames, index"):
        augment.add_noise(KEY, features())
    with pytest.raises(UserError, match=r"int16 or floating-point sounds of shape \(B, samples\), not uint8"):
        augment.change_gain(KEY, {"audio": np.zeros((2, 3), np.uint8), "samples": np.ones(2, np.int32)})
    with pytest.raises(UserError, match=r"augment_features.*audio"):
        augment.mask_spectrogram(KEY, batch())


def test_a_chain_joins_them_with_a_key_each():
    both = augment.chain(augment.change_gain, augment.add_noise)
    after = both(KEY, batch())
    first = augment.change_gain(jax.random.fold_in(KEY, 0), batch())
    want = augment.add_noise(jax.random.fold_in(KEY, 1), first)
    np.testing.assert_allclose(after["audio"], jnp.asarray(want["audio"]), atol=1e-6)
