"""Speech while it is heard: chunks give what the whole sound gives, and pipes are read as they are written."""

import dataclasses
import io
import itertools
import json
import struct
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.data.audio import decode_audio
from jaxaccel.deployment.logit_stream import LogitStream
from jaxaccel.deployment.stream import Stream
from jaxaccel.deployment.stream_input import read_samples, recognize_stream
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model, inference
from jaxaccel.predict import main
from jaxaccel.tasks import AudioClassification, SpeechRecognition

RATE, BANDS = 8000, 12
DIGITS = Path(__file__).parents[1] / "fixtures" / "spoken_digits"
LISTENER = partial(ja.models.lstm_ctc, width=12, features=12, depth=1, bidirectional=False, dropout=0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run that hears streams: do not write into it."""
    recipe = ja.Recipe(
        name="heard",
        task=SpeechRecognition(
            rate=RATE, bands=BANDS, normalize="data", units="word", fill_to=(1.5,), max_seconds=1.5
        ),
        model=LISTENER,
        data=ja.training.Data(name=str(DIGITS), train_split="all", eval_split="all"),
        optimizer=ja.Optimizer(learning_rate=0.05),
        epochs=1,
        batch_size=16,
    )
    return ja.train(recipe, run=tmp_path_factory.mktemp("speech") / "heard").directory


@pytest.fixture(scope="module")
def wild(run):
    """The same model with weights that say a lot."""
    draw = np.random.default_rng(0)
    trained = ja.load(run)
    params = jax.tree.map(lambda x: draw.normal(0, 1.5, x.shape).astype(np.float32), trained.params)
    return dataclasses.replace(trained, params=params)


@pytest.fixture(scope="module")
def sound():
    """Digits one after another, of a number of samples that no chunk divides."""
    parts = [decode_audio(DIGITS / f"{n}_theo_5.wav")[0] for n in range(5)]
    return np.concatenate(parts)[:8_531]


@pytest.fixture(scope="module")
def mild(wild):
    """The same model with weights that leave logits the precision of their inputs."""
    return dataclasses.replace(wild, params=jax.tree.map(lambda x: 0.4 * x, wild.params))


def with_task(trained, **changes):
    task = dataclasses.replace(trained.task, **changes)
    return dataclasses.replace(trained, recipe=dataclasses.replace(trained.recipe, task=task))


def hear_whole(trained, sound, length=None):
    """Logits (outputs, classes) of the whole sound, or of its first `length` samples."""
    task, length = trained.task, length or len(sound)

    @jax.jit
    def hear(params, batch):
        return trained.run(params, *task.inputs(task.features(batch)))

    found = hear(trained.params, {"audio": sound[None], "samples": np.array([length], np.int32)})
    return np.asarray(found)[0, : task.count_outputs(task.mel.count_frames(length))]


def cut(sound, size):
    return [sound[i : i + size] for i in range(0, len(sound), size)]


# ---- chunks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk_ms", "size", "changes"),
    [
        (320, 1, {}),
        (20, 777, {}),
        (130, 80, {"normalize": "none"}),
        (1, 333, {"window_ms": 17.0, "hop_ms": 10.0}),
        (100, 501, {"window_ms": 10.0, "hop_ms": 35.0}),
        (90, 400, {"window_ms": 32.0, "hop_ms": 9.875}),
    ],
)
def test_chunks_give_the_logits_of_the_whole(mild, sound, chunk_ms, size, changes):
    trained = with_task(mild, **changes)
    stream = LogitStream(trained, chunk_ms)
    found = np.concatenate([*(stream.feed(part) for part in cut(sound, size)), stream.finish()])
    whole = hear_whole(trained, sound)
    assert np.ptp(whole, axis=0).min() > 0.1
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert stream.frames % trained.task.subsampling == 0 and stream.chunk_seconds >= chunk_ms / 1000 - 1e-9


def test_sounds_of_any_length(mild, sound):
    stream = LogitStream(mild)
    whole = hear_whole(mild, sound[:4000])  # of which all shorter ones begin the same, but for half a window
    for length in (1, 79, 80, 99, 100, 2559, 2560, 2661):
        stream.start()
        found = np.concatenate([stream.feed(sound[:length]), stream.finish()])
        assert len(found) == 1 + length // 80 // 2
        sure = max(len(found) - 2, 0)
        np.testing.assert_allclose(found[:sure], whole[:sure], atol=1e-5)
    np.testing.assert_allclose(found, hear_whole(mild, sound[:4000], 2661), atol=1e-5)


def test_a_chunk_waits_for_half_a_window(wild, sound):
    stream = LogitStream(wild, 100)
    # The middle of the last of 10 frames is at sample 720, and the window looks 100 samples further.
    assert not len(stream.feed(sound[:819]))
    assert len(stream.feed(sound[819:820])) == 5


def test_later_samples_change_nothing_that_was_heard(wild, sound):
    stream, other = LogitStream(wild), LogitStream(wild)
    first = stream.feed(sound[:4000])
    changed = np.concatenate([sound[:4000], sound[:4000][::-1]])
    np.testing.assert_array_equal(first, other.feed(changed)[: len(first)])


# ---- text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [97, 2560])
def test_the_text_is_that_of_the_whole(wild, sound, size):
    stream = Stream(wild, chunk_ms=60)
    heard = [stream.feed(part) for part in cut(sound, size)]
    last = stream.finish()
    whole = wild.task.describe(None, wild.predict(sound), {}, top=1)
    assert len(last.words) >= 5 and {"text": last.text, "words": last.words} == {
        key: whole[key] for key in ("text", "words")
    }
    assert last.score == pytest.approx(whole["score"], abs=2e-6)
    assert all(later.text.startswith(now.text) for now, later in itertools.pairwise(heard))
    assert [one.seconds for one in heard] == sorted(one.seconds for one in heard)
    assert last.seconds == round(len(sound) / RATE, 3)


def test_floats_are_the_same_samples(wild, sound):
    first, second = Stream(wild), Stream(wild)
    assert first.feed(sound) == second.feed(sound / 32768)


def test_a_stream_begins_anew(wild, sound):
    stream = Stream(wild)
    stream.feed(sound)
    once = stream.finish()
    assert stream.finish() == once
    with pytest.raises(UserError, match=r"has ended: call start\(\)"):
        stream.feed(sound)
    stream.start()
    assert stream.feed([]).text == "" and stream.stats.chunks == 0
    stream.feed(sound)
    assert stream.finish() == once


def test_silence_of_no_samples(wild):
    assert Stream(wild).finish().text == ""


def test_the_latency_is_a_chunk_half_a_window_and_the_computing(wild, sound):
    stream = Stream(wild, chunk_ms=200)
    stream.feed(sound)
    stream.finish()
    stats = stream.stats
    spent = np.array(stream._outputs.seconds)
    assert stats.chunks == 6 and len(spent) == 6
    assert stats.latency_ms == pytest.approx(200 + 12.5 + 1000 * np.median(spent), abs=0.01)
    assert stats.worst_latency_ms == pytest.approx(200 + 12.5 + 1000 * spent.max(), abs=0.01)
    assert stats.real_time_factor == pytest.approx(spent.sum() / (len(sound) / RATE), rel=1e-3)


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_other_precisions(wild, sound, kind):
    params = wild.params if kind == "bfloat16" else ja.quantize(wild.params)
    other = dataclasses.replace(wild, params=params, run=getattr(ja, kind)(wild.run))
    stream = LogitStream(other)
    found = np.concatenate([stream.feed(sound), stream.finish()])
    assert 0 < abs(found - hear_whole(wild, sound)).mean() < 0.3


# ---- what streams not -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["utterance", "band"])
def test_the_whole_sound_is_not_known_yet(wild, normalize):
    with pytest.raises(UserError, match=rf"\({normalize}\), which a stream does not know") as raised:
        Stream(with_task(wild, normalize=normalize))
    assert "--task.normalize data" in raised.value.as_flags()


def test_both_directions_hear_no_stream(wild):
    inputs = (jax.ShapeDtypeStruct((1, 8, BANDS), "float32"), jax.ShapeDtypeStruct((1, 8), "bool"))
    both = partial(LISTENER, bidirectional=True, features=4)
    for factory in (both, partial(ja.models.Conformer, width=8, depth=1, heads=2, filters=2)):
        model = as_model(factory, {"classes": 11, "channels": BANDS, "subsampling": 2}, inputs)
        params, state = jax.eval_shape(model.init, jax.random.key(0))
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), {"params": params, "model_state": state})
        with pytest.raises(UserError, match=r"hears no streams .* such as lstm_ctc\(bidirectional=False\)"):
            Stream(dataclasses.replace(wild, params=zeros, run=inference(model)))


def test_a_folded_model_has_no_methods(wild):
    def folded(params, *inputs):
        raise AssertionError

    with pytest.raises(UserError, match=r"compressed model .* a step before its layers were"):
        Stream(dataclasses.replace(wild, model=None, run=folded))


def test_classes_are_not_streamed(wild):
    task = AudioClassification(rate=RATE, bands=BANDS, normalize="none")
    other = dataclasses.replace(wild, recipe=dataclasses.replace(wild.recipe, task=task))
    with pytest.raises(UserError, match="is one of AudioClassification: predict files"):
        Stream(other)


# ---- pipes ------------------------------------------------------------------------------------------------------


class Pipe:
    """Gives its parts one by one, and raises at the end what it is told to."""

    def __init__(self, parts, error=None):
        self.parts, self.error = list(parts), error

    def read1(self, size):
        if self.parts:
            return self.parts.pop(0)
        if self.error:
            raise self.error
        return b""


def wav(samples, rate=RATE, channels=1, bits=16, size=None, before=b""):
    data = samples.astype("<i2").tobytes()
    width = channels * bits // 8
    header = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * width, width, bits)
    size = len(data) if size is None else size
    return (
        b"RIFF" + struct.pack("<I", 0) + b"WAVE" + before + header + b"data" + struct.pack("<I", size) + data
    )


@pytest.mark.parametrize("size", [1, 3, 44, 10_000])
@pytest.mark.parametrize("kind", ["raw", "wav", "endless", "unknown", "listed", "tailed"])
def test_samples_of_pipes(sound, kind, size):
    few = sound[:500]
    content = {
        "raw": few.astype("<i2").tobytes() + b"\x01",
        "wav": wav(few),
        "endless": wav(few, size=0x80000000),
        "unknown": wav(few, size=0),
        "listed": wav(few, before=b"LIST" + struct.pack("<I", 5) + b"odd..\0"),
        "tailed": wav(few) + b"LIST" + struct.pack("<I", 4) + b"tail",
    }[kind]
    found = list(read_samples(Pipe(cut(content, size)), RATE, "the pipe"))
    np.testing.assert_array_equal(np.concatenate(found), few)
    assert all(part.dtype == np.int16 for part in found)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            wav(np.zeros(9, np.int16), rate=44_100),
            "16 bits, 1 channels and 44,100 Hz, and the model hears 16",
        ),
        (wav(np.zeros(9, np.int16), channels=2), "2 channels .* arecord -f S16_LE -c 1 -r 8000"),
        (wav(np.zeros(9, np.int16), bits=24), "is WAV of 24 bits"),
        (b"fLaC\0\0\0\0", "is FLAC, and a stream is raw samples or WAV"),
        (wav(np.zeros(9, np.int16))[:30], "ends within the header"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "without a format"),
        (b"RIFF\0\0\0\0WAVELIST\xff\xff\xff\x7f", "header of more than"),
    ],
)
def test_other_sounds_are_told(content, says):
    with pytest.raises(UserError, match=says):
        list(read_samples(Pipe([content]), RATE, "the pipe"))


def test_lines_come_while_it_hears(wild, sound):
    parts = cut(sound.astype("<i2").tobytes(), 2_001)
    found = list(recognize_stream(wild, Pipe(parts), chunk_ms=60))
    *lines, last = found
    assert len(lines) >= 5 and all(list(line) == ["seconds", "text"] for line in lines)
    assert len({line["text"] for line in lines}) == len(lines)
    assert list(last) == ["seconds", "text", "score", "words", "final", "stats"] and last["final"] is True
    assert last["text"].startswith(lines[-1]["text"]) and last["stats"]["chunks"] == 18
    # What came late in one piece has the same lines.
    late = list(recognize_stream(wild, Pipe([b"".join(parts)]), chunk_ms=60))
    assert late[-1]["words"] == last["words"] and len(late) == len(found)


def test_ctrl_c_ends_the_recording(wild, sound):
    content = sound.astype("<i2").tobytes()
    *_, last = recognize_stream(wild, Pipe([content], KeyboardInterrupt()))
    *_, whole = recognize_stream(wild, Pipe([content]))
    assert last["final"] and last["words"] == whole["words"]


# ---- the command ------------------------------------------------------------------------------------------------


def test_the_command(run, sound, monkeypatch, capsysbinary):
    path = DIGITS / "5_theo_5.wav"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert main([str(run), "--stream", "--chunk-ms", "100"]) == 0
    *_, last = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    (whole,) = ja.predict(run, path)
    assert last["final"] and last["text"] == whole["text"] and last["words"] == whole["words"]
    assert last["score"] == pytest.approx(whole["score"], abs=2e-6)


@pytest.mark.parametrize(
    ("words", "content", "says"),
    [
        (("--stream",), b"", "standard input held no samples"),
        (("--stream", "a.wav"), b"", "--stream reads standard input alone"),
        (("--stream", "--text", "one"), b"", "--stream reads standard input alone"),
        (("--stream", "--chunk-ms", "0"), b"", "--chunk-ms must be above 0, got 0"),
    ],
)
def test_mistakes_are_one_line(run, words, content, says, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(UserError) as raised:
        main([str(run), *words])
    assert says in raised.value.as_flags()
