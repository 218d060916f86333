"""Decoding, conversion and resampling of sounds."""

import io
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from conftest import FIXTURES

from jaxaccel.data.audio import decode_audio, resample, to_int16
from jaxaccel.errors import UserError

SAMPLES = np.random.default_rng(0).integers(-32768, 32768, 3001).astype(np.int16)


def encode(samples, rate=8000, form="WAV", subtype=None):
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["WAV", "FLAC", "AIFF"])
def test_16_bits_are_kept(form):
    audio, rate = decode_audio(encode(SAMPLES, 11_025, form, "PCM_16"))
    assert (audio.dtype, rate) == (np.int16, 11_025)
    np.testing.assert_array_equal(audio, SAMPLES)


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_24_bits_are_rounded(form):
    values = np.array([0, 100, 127, 129, -127, -129, 2**23 - 1, -(2**23)], np.int32)
    audio, _ = decode_audio(encode(values << 8, form=form, subtype="PCM_24"))
    assert audio.tolist() == [0, 0, 0, 1, 0, -1, 32767, -32768]


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_are_rounded_and_clipped(subtype):
    floats = np.array([0, 0.5, -1, 1, 3, -7, 0.75 / 32768, 0.25 / 32768])
    audio, _ = decode_audio(encode(floats, subtype=subtype))
    assert audio.tolist() == [0, 16384, -32768, 32767, 32767, -32768, 1, 0]


def test_8_bits():
    audio, _ = decode_audio(encode((np.array([-128, 0, 127], np.int16) * 256), subtype="PCM_U8"))
    assert audio.tolist() == [-32768, 0, 127 * 256]


@pytest.mark.parametrize(("form", "channels"), [("WAV", 2), ("FLAC", 2), ("FLAC", 5)])
def test_channels_are_averaged(form, channels):
    samples = np.random.default_rng(1).integers(-32768, 32768, (70_000, channels)).astype(np.int16)
    audio, _ = decode_audio(encode(samples, form=form, subtype="PCM_16"))  # more than one block
    np.testing.assert_allclose(audio, samples.mean(axis=1), atol=0.5)


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_formats(form, subtype):
    sine = (12_000 * np.sin(2 * np.pi * 440 / 16_000 * np.arange(16_000))).astype(np.int16)
    audio, rate = decode_audio(encode(sine, 16_000, form, subtype))
    spectrum = np.abs(np.fft.rfft(audio[4000:12_000].astype(float)))
    assert (rate, spectrum.argmax() * 2) == (16_000, 440)
    assert abs(int(np.abs(audio[4000:12_000]).max()) - 12_000) < 600


def test_a_real_file():
    audio, rate = decode_audio(FIXTURES / "spoken_digits" / "0_theo_5.wav")
    expected, _ = sf.read(FIXTURES / "spoken_digits" / "0_theo_5.wav", dtype="int16")
    np.testing.assert_array_equal(audio, expected)
    assert rate == 8000


def broken(kind):
    flac = encode(SAMPLES, form="FLAC")
    if kind == "NaN":
        return encode(np.array([0, np.nan, 0.5]), subtype="FLOAT")
    if kind == "long header":  # the number of samples in FLAC's header has 36 bits
        return flac[:21] + bytes([flac[21] | 0x0F]) + b"\xff" * 4 + flac[26:]
    return {
        "empty": b"",
        "text": b"not a sound at all" * 20,
        "no samples": encode(SAMPLES[:0]),
        "cut flac": flac[: len(flac) // 2],
        "damaged flac": flac[:3000] + bytes(200) + flac[3200:],
        "infinity": encode(np.array([0, np.inf]), subtype="DOUBLE"),
        "slow": encode(SAMPLES, 100),
        "fast": encode(SAMPLES, 500_000),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "is empty: repair or remove it"),
        ("text", r"is damaged or no sound \(.*\): repair or remove it"),
        ("no samples", "holds no samples"),
        ("cut flac", r"is damaged or no sound"),
        ("damaged flac", r"is damaged or no sound"),
        ("NaN", "holds NaN or infinity"),
        ("infinity", "holds NaN or infinity"),
        ("slow", "has a rate of 100 Hz, and 1,000 to 384,000 are read"),
        ("fast", "has a rate of 500,000 Hz"),
        ("long header", r"lasts longer \(143,166 minutes\) than the 60 minutes that are read: divide it"),
    ],
)
def test_bad_files_are_one_line(kind, message, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(broken(kind))
    with pytest.raises(UserError, match=f"^{path} {message}") as caught:
        decode_audio(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^the sound"):
        decode_audio(broken(kind))


def test_what_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"none.wav cannot be read: No such file"):
        decode_audio(tmp_path / "none.wav")
    with pytest.raises(UserError, match="it is a device and no file"):
        decode_audio(Path("/dev/zero"))


def test_three_hours_are_refused_before_they_are_decoded():
    content = encode(np.zeros(3 * 3600 * 1000, np.int16), 1000, "FLAC")
    tracemalloc.start()
    with pytest.raises(UserError, match=r"lasts longer \(180 minutes\)"):
        decode_audio(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(content) < 1 << 20 and peak < 1 << 20


def test_many_channels_are_refused_by_their_number():
    content = encode(np.zeros((48, 8), np.int16), 192_000, "FLAC")
    frames = 3600 * 192_000 - 1  # not quite an hour
    bits = int.from_bytes(content[18:26]) & ~((1 << 36) - 1) | frames
    with pytest.raises(
        UserError, match=r"holds 5,529,599,992 samples in 8 channels, and 345,600,000 are read"
    ):
        decode_audio(content[:18] + bits.to_bytes(8) + content[26:])


def test_without_soundfile_the_extra_is_named():
    code = (
        "import sys; sys.modules['soundfile'] = None\n"
        "from jaxaccel.data.audio import decode_audio\n"
        "try: decode_audio(b'abc')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "reading sounds needs the package soundfile: pip install 'jaxaccel[audio]'\n"


@pytest.mark.parametrize(("rate", "to"), [(8000, 16_000), (44_100, 16_000), (16_000, 8000), (11_025, 8000)])
def test_resampling_keeps_a_tone(rate, to):
    def tone(hertz):
        return 10_000 * np.sin(2 * np.pi * 1000 / hertz * np.arange(hertz))

    made = resample(np.rint(tone(rate)).astype(np.int16), rate, to)
    assert (made.dtype, len(made)) == (np.int16, to)
    middle = slice(to // 4, -to // 4)
    np.testing.assert_allclose(made[middle], tone(to)[middle], atol=60)  # the filter's ripple: 0.6%


def test_resampling_removes_what_would_alias():
    tone = (10_000 * np.sin(2 * np.pi * 6000 / 16_000 * np.arange(16_000))).astype(np.int16)
    assert np.abs(resample(tone, 16_000, 8000)[500:-500]).max() < 50


def test_resampling_clips_and_rounds_up_lengths():
    square = np.where(np.arange(101) // 10 % 2, 32767, -32768).astype(np.int16)
    made = resample(square, 8000, 12_000)
    assert (len(made), made.max(), made.min()) == (152, 32767, -32768)
    assert resample(square, 8000, 8000) is square


def test_odd_rates_and_arrays_are_refused():
    for rates in ((0, 8000), (8000, -1), (8000, 10**9)):
        with pytest.raises(UserError, match="has a rate of"):
            resample(SAMPLES, *rates)
    with pytest.raises(UserError, match=r"int16 of shape \(n,\), got float64 \(2,\)"):
        resample(np.zeros(2), 8000, 16_000)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (np.array([0, 0.5, -1, 1], np.float32), [0, 16384, -32768, 32767]),
        (np.array([0, -0.25], np.float16), [0, -8192]),
        (np.array([5, -32768, 32767], np.int64), [5, -32768, 32767]),
    ],
)
def test_arrays_become_16_bits(given, made):
    found = to_int16(given)
    assert (found.dtype, found.tolist()) == (np.int16, made)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros(0), "holds no samples"),
        (np.zeros((4, 2)), r"is float64 \(4, 2\): give one channel"),
        (np.zeros(4, np.uint8), "is uint8"),
        (np.array([0, 40_000]), "whole numbers from 0 to 40000"),
        (np.array([0, 1.5]), "floats from 0 to 1.5: scale them"),
        (np.array([np.nan, 0.5]), "holds NaN"),
    ],
)
def test_other_arrays_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        to_int16(given)
