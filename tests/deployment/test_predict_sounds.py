"""``python -m jaxaccel.predict`` and ``ja.load(run).predict`` on sounds, of any length and in any company."""

import dataclasses
import io
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import jaxaccel as ja
from jaxaccel.data.audio import decode_audio
from jaxaccel.deployment.predict_inputs import predict_sources
from jaxaccel.errors import UserError
from jaxaccel.predict import main
from jaxaccel.tasks import AudioClassification, Recording, SpeechRecognition, bring_sounds
from jaxaccel.tasks.bring_arrays import Given
from jaxaccel.tasks.prediction import predict

RATE = 8000
DIGITS = Path(__file__).parents[1] / "fixtures" / "spoken_digits"
SOUNDS = [DIGITS / f"{n}_theo_5.wav" for n in range(4)]
FRONT = {"rate": RATE, "bands": 12, "fill_to": (0.8,), "max_seconds": 0.8}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A tiny run of speech recognition: do not write into it."""
    recipe = ja.Recipe(
        name="sounds",
        task=SpeechRecognition(**FRONT),
        model=partial(ja.models.gru_ctc, width=8, features=8, depth=1, bidirectional=True, dropout=0.0),
        data=ja.training.Data(name=str(DIGITS), train_split="all", eval_split="all"),
        optimizer=ja.Optimizer(learning_rate=0.1),
        epochs=2,
        batch_size=15,
    )
    return ja.train(recipe, run=tmp_path_factory.mktemp("speech") / "run").directory


@pytest.fixture(scope="module")
def words(speech):
    """A model that tells high sounds from low and from even ones."""

    def run(params, features, mask):
        bands = jnp.where(mask[..., None], features, 0).sum(1) / mask.sum(1, keepdims=True)
        return bands.reshape(-1, 3, 4).mean(-1)

    trained = ja.load(speech)
    facts = dataclasses.replace(trained.facts, values={"class_names": ("low", "even", "high")})
    recipe = dataclasses.replace(trained.recipe, task=AudioClassification(**FRONT))
    return dataclasses.replace(trained, recipe=recipe, facts=facts, run=run)


@pytest.fixture
def say(capsysbinary):
    """Runs the command: (what it raised, its records)."""

    def run(*given):
        capsysbinary.readouterr()
        try:
            assert main([str(word) for word in given]) == 0
            error = ""
        except UserError as raised:
            error = raised.as_flags()
        return error, [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]

    return run


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_a_sound_on_standard_input(kind, speech, say, monkeypatch, tmp_path):
    path = tmp_path / f"one.{kind}"
    soundfile.write(path, *soundfile.read(SOUNDS[1], dtype="int16"))
    give_stdin(monkeypatch, path.read_bytes())
    error, (found,) = say(speech, "-")
    assert not error and found == only(speech, path) | {"input": "stdin"}


def give_stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))


def only(run, path):
    (record,) = ja.predict(run, path)
    return record


def test_files_folders_and_standard_input(speech, say, tmp_path, monkeypatch):
    folder = tmp_path / "recordings"
    (folder / "inner").mkdir(parents=True)
    for path in SOUNDS[:2]:
        shutil.copy(path, folder / "inner")
    (folder / "broken.wav").write_bytes(b"no sound")
    (folder / "empty.flac").touch()
    (folder / "notes.txt").write_text("no sound either")
    gone = tmp_path / "gone.wav"
    give_stdin(monkeypatch, f"{gone}\n{SOUNDS[3]}\n".encode())
    error, found = say(speech, SOUNDS[2], folder, "-")
    assert error == "3 of 7 inputs could not be predicted: the lines with an error say why"
    names = ["broken.wav", "empty.flac", "inner/0_theo_5.wav", "inner/1_theo_5.wav"]
    places = [SOUNDS[2], *(folder / name for name in names), gone, SOUNDS[3]]
    assert [row["input"] for row in found] == [str(place) for place in places]
    says = [row["error"].removeprefix(row["input"]) for row in found if "error" in row]
    assert says[0].startswith(" is damaged or no sound") and says[1].startswith(" is empty")
    assert says[2].startswith(" cannot be read: No such file")
    for row in found:
        if "error" not in row:
            assert list(row) == ["input", "text", "score", "words"]
            alone = only(speech, row["input"])
            assert (row["text"], row["words"]) == (alone["text"], alone["words"])
            assert row["score"] == pytest.approx(alone["score"], abs=2e-6)


def test_words_are_labels(words, tmp_path):
    times = np.arange(4 * RATE) / RATE
    sounds = {hertz: (20_000 * np.sin(2 * np.pi * hertz * times)).astype(np.int16) for hertz in (200, 3600)}
    places = [tmp_path / f"{hertz}.wav" for hertz in sounds]
    for place, sound in zip(places, sounds.values(), strict=True):
        soundfile.write(place, sound, RATE)
    (tmp_path / "bad.wav").write_bytes(b"bad")
    (rows,) = predict_sources(words, [places[0], tmp_path / "bad.wav", places[1]], top=2)
    assert [row.get("label") for row in rows] == ["low", None, "high"] and "damaged" in rows[1]["error"]
    for row, sound in zip((rows[0], rows[2]), sounds.values(), strict=True):
        guesses = words.classify(sound, top=2)
        assert row["scores"] == pytest.approx({guess.name: guess.probability for guess in guesses}, abs=2e-6)


def test_no_text_is_spoken(speech, say):
    error, _ = say(speech, "--text", "one")
    assert error == "--text is for tasks that read texts, and SpeechRecognition does not"


def test_paths_samples_and_recordings_are_the_same(speech):
    run = ja.load(speech)
    samples, rate = decode_audio(SOUNDS[0])
    assert rate == RATE
    given = [str(SOUNDS[0]), SOUNDS[0].read_bytes(), samples, samples / 32768, Recording(samples, rate)]
    one, several = run.predict(SOUNDS[0]), run.predict(given)
    assert set(one) == {"symbols", "starts", "ends", "score"} and one["symbols"].ndim == 1
    for i in range(len(given)):
        np.testing.assert_array_equal(several["symbols"][i], one["symbols"])
        np.testing.assert_allclose(several["score"][i], one["score"], atol=1e-6)


def test_long_sounds_are_heard_whole(speech):
    run = ja.load(speech)
    short = decode_audio(SOUNDS[0])[0]
    long = np.tile(short, 12)
    assert len(long) > 4 * run.task.max_seconds * RATE
    found = run.predict([short, long, short], batch=1)
    outputs = run.task.count_outputs(run.task.mel.count_frames(len(long)))
    assert found["symbols"].shape == found["starts"].shape and found["symbols"].shape[1] >= outputs
    alone = run.predict(short)
    for i in (0, 2):
        width = alone["symbols"].size
        np.testing.assert_array_equal(found["symbols"][i, :width], alone["symbols"])
        for name in ("symbols", "starts", "ends"):  # filled up to the widest
            assert (found[name][i, width:] == -1).all()
    # The end is heard as well as the beginning: another end is another score.
    changed = long.copy()
    changed[-len(short) :] = 0
    assert abs(run.predict(changed)["score"] - found["score"][1]) > 1e-4


def test_ragged_predictions_are_filled_up(monkeypatch):
    parts = [{"x": np.ones((2, 3))}, {"x": np.ones((1, 5))}, {"x": np.ones((1, 1))}]

    def compute(batch):
        x = batch["x"]
        return {"f": x, "i": x.astype(np.int32), "b": x > 0, "s": x[:, 0]}

    task = SpeechRecognition()
    monkeypatch.setattr(SpeechRecognition, "bring", lambda *_, **__: Given(iter(parts), False))
    found = predict(task, {}, compute, None)
    assert found["s"].shape == (4,)
    np.testing.assert_array_equal(found["f"].sum(1), [3, 3, 5, 1])
    np.testing.assert_array_equal(found["f"][3], [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(found["i"][0], [1, 1, 1, -1, -1])
    np.testing.assert_array_equal(found["b"][3], [True, False, False, False, False])


def batches_of(monkeypatch, lengths, most, size=8, bounds=(10, 20)):
    """Shapes of the batches of sounds of so many frames, one sample each."""
    monkeypatch.setattr(bring_sounds, "MAX_BATCH_FRAMES", most)
    task = SpeechRecognition(rate=RATE, bands=12)
    sounds = [np.ones(length * task.mel.hop - 1, np.int16) for length in lengths]
    given = bring_sounds.bring_sounds(sounds, size, RATE, task.length, task.pad_sound, bounds)
    return [(len(batch["audio"]), (batch["audio"].shape[1] + 1) // task.mel.hop) for batch in given.batches]


def test_batches_are_no_larger_than_memory(monkeypatch):
    assert batches_of(monkeypatch, [5] * 20, 10_000) == [(8, 10), (8, 10), (4, 10)]
    # A power of two of sounds is computed.
    assert batches_of(monkeypatch, [5] * 10, 50) == [(4, 10), (4, 10), (2, 10)]
    assert batches_of(monkeypatch, [5, 5, 15, 5, 200, 5], 40) == [(2, 10), (2, 20), (1, 200), (1, 10)]
    # Of long sounds there are few lengths.
    assert batches_of(monkeypatch, [21, 95, 141, 161, 181], 10) == [
        (1, 40), (1, 100), (1, 160), (1, 200), (1, 200),
    ]  # fmt: skip


def test_few_seconds_of_files_are_in_memory(speech, monkeypatch):
    monkeypatch.setattr("jaxaccel.tasks.sounds.MAX_BATCH_FRAMES", 60)
    batches = list(predict_sources(ja.load(speech), SOUNDS * 2, batch=8))
    frames = [len(decode_audio(path)[0]) / 80 for path in SOUNDS * 2]
    assert [row["input"] for rows in batches for row in rows] == list(map(str, SOUNDS * 2))
    assert 2 < len(batches) < 8
    for rows in batches[:-1]:  # each was full with its last file, and not before
        there, frames = frames[: len(rows)], frames[len(rows) :]
        assert sum(there[:-1]) < 60 <= sum(there)


def test_a_model_of_both_directions_streams_nothing(speech, monkeypatch):
    give_stdin(monkeypatch, b"")
    with pytest.raises(UserError, match="normalizes by the whole sound"):
        main([str(speech), "--stream"])
