"""Tasks on sounds: spoken digits of real speakers, classified and transcribed."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from conftest import FIXTURES

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model, inference
from jaxaccel.tasks import AudioClassification, Recording, SpeechRecognition
from jaxaccel.tasks.transcripts import Transcripts, measure_errors
from jaxaccel.training import run_log
from jaxaccel.training.evaluation import compile_predict

DIGITS = FIXTURES / "spoken_digits"
SPEECH = SpeechRecognition(rate=8000, bands=20, subsampling=2)
WORDS = AudioClassification(rate=8000, bands=20)
RNG = np.random.default_rng(0)


def sounds(*seconds, rate=8000):
    return [(3000 * RNG.normal(size=int(s * rate))).astype(np.int16) for s in seconds]


def source(audio, rate=8000, **columns):
    held = {"audio": audio, "rate": np.full(len(audio), rate), **columns}
    return ja.data.open(ja.data.from_arrays(held, test=held), "train")


@pytest.fixture(scope="module")
def digits():
    return ja.data.open(str(DIGITS), "train")


@pytest.fixture(scope="module")
def fitted(digits):
    return SPEECH.fit(digits)


def test_what_follows_from_the_training_split(fitted, digits):
    assert fitted.fitted_symbols == tuple("efghinorstuvwxz") and fitted.fitted_most == 5
    assert list(fitted.bounds) == sorted(fitted.bounds) and 2 <= len(fitted.bounds) <= 6
    assert fitted.bounds[-1] >= fitted.lengths(digits).max()
    assert fitted.facts(digits.features) == {
        "channels": 20, "subsampling": 2, "classes": 16, "symbols": fitted.fitted_symbols
    }  # fmt: skip
    assert WORDS.fit(digits).facts(digits.features) | {"channels": 0} == {
        "channels": 0, "classes": 10, "class_names": tuple("0123456789")
    }  # fmt: skip


def test_an_example_is_resampled_and_spelled(fitted):
    (sound,) = sounds(1.0, rate=16000)
    element = fitted.element(
        {"audio": sound, "rate": np.array(16000), "text": np.array("  One\tTWO ", object)}
    )
    assert element["audio"].shape == (8000,) and element["samples"] == 8000
    assert fitted.transcripts.decode(element["label"]) == "one two" or element["labels"] == -1
    spelled = dataclasses.replace(fitted, fitted_symbols=(*fitted.fitted_symbols, " "))
    element = spelled.element(
        {"audio": sound, "rate": np.array(16000), "text": np.array("  One\tTWO ", object)}
    )
    assert spelled.transcripts.decode(element["label"]) == "one two" and element["labels"] == 7


def test_padding_is_silence_and_cuts_take_the_transcript(fitted):
    element = fitted.element(
        {"audio": sounds(0.5)[0], "rate": np.array(8000), "text": np.array("one", object)}
    )
    whole = fitted.pad(element, 60)
    assert whole["audio"].shape == (60 * 80 - 1,) and whole["labels"] == 3 and whole["samples"] == 4000
    assert (whole["audio"][4000:] == 0).all() and whole["label"].shape == (5,)
    cut = fitted.pad(element, 20)
    assert cut["samples"] == 20 * 80 - 1 and cut["labels"] == -1
    assert fitted.pad(element, 4)["label"].shape == (2,)  # no alignment has more symbols than outputs


@pytest.mark.parametrize("normalize", ["utterance", "band", "data", "none"])
def test_features_do_not_depend_on_what_is_beside(normalize, fitted, digits):
    task = dataclasses.replace(fitted, normalize=normalize).fit(digits)
    elements = [task.element(example) for example in digits.__getitems__([0, 5, 9])]
    frames = [task.length(element) for element in elements]
    compute = jax.jit(task.features)

    def features(chosen, length):
        rows = [task.pad(element, length) for element in chosen]
        return compute({name: np.stack([row[name] for row in rows]) for name in rows[0]})

    together = features(elements, max(frames) + 20)
    assert together["frames"].tolist() == frames and "audio" not in together
    mask = np.asarray(task.inputs(together)[1])
    assert mask.sum(1).tolist() == frames and (np.asarray(together["feature"])[~mask] == 0).all()
    alone = features(elements[1:2], frames[1])
    np.testing.assert_allclose(together["feature"][1, : frames[1]], alone["feature"][0], atol=2e-5)


def test_features_of_the_data_are_normal(fitted, digits):
    task = dataclasses.replace(fitted, normalize="data").fit(digits)
    rows = [
        task.pad(task.element(example), task.bounds[-1])
        for example in digits.__getitems__(range(len(digits)))
    ]
    found = task.features({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    there = np.asarray(found["feature"])[np.asarray(task.inputs(found)[1])]
    np.testing.assert_allclose(there.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(there.std(0), 1, atol=1e-3)
    with pytest.raises(UserError, match=r"measured first: task.fit"):
        dataclasses.replace(SPEECH, normalize="data").features(
            found | {"audio": rows[0]["audio"][None], "samples": np.array([9])}
        )


def test_the_loss_counts_symbols_and_leaves_out_what_cannot_be(fitted):
    rng = np.random.default_rng(1)
    batch = {
        "label": np.array([[6, 5, 1, 0, 0], [6, 5, 1, 1, 5], [6, 5, 1, 0, 0], [1, 0, 0, 0, 0]], np.int32),
        "labels": np.array([3, 5, -1, 1], np.int32), "frames": np.array([20, 8, 20, 20]),
        "mask": np.array([1, 1, 1, 0], np.float32), "feature": np.zeros((4, 20, 20)),
    }  # fmt: skip
    logits = rng.normal(size=(4, 10, 16)).astype(np.float32)
    loss, means = jax.jit(fitted.loss)(logits, batch)
    assert loss.count == 3 and float(means["unusable"].value()) == pytest.approx(2 / 3)
    alone, _ = fitted.loss(logits[:1], {name: x[:1] for name, x in batch.items()})
    np.testing.assert_allclose(loss.value(), alone.value(), rtol=1e-5)
    assert fitted.weights(batch).sum(1).tolist() == [10, 4, 10, 0]


@pytest.mark.parametrize("beam", [1, 4])
def test_words_are_found_with_their_times(beam, fitted):
    task = dataclasses.replace(fitted, beam=beam, fitted_symbols=(*fitted.fitted_symbols, " "))
    numbers = {symbol: i for i, symbol in enumerate(task.fitted_symbols, 1)}
    path = [
        0,
        *[numbers["o"]] * 2,
        numbers["n"],
        0,
        numbers["e"],
        numbers[" "],
        0,
        numbers["s"],
        numbers["i"],
        numbers["x"],
        0,
    ]
    logits = 20.0 * np.eye(len(numbers) + 1, dtype=np.float32)[path][None]
    found = jax.tree.map(lambda x: np.asarray(x)[0], task.decode(logits, np.array([len(path)])))
    said = task.describe(None, found, {}, top=1)
    assert said["text"] == "one six" and said["score"] == pytest.approx(0, abs=1e-4)
    assert said["words"] == [
        {"word": "one", "from": 0.02, "to": 0.12},
        {"word": "six", "from": 0.16, "to": 0.22},
    ]
    with pytest.raises(UserError, match=r"NaN or infinite"):
        task.describe(None, found | {"score": np.float32(np.nan)}, {}, top=1)


def test_ngrams_of_the_training_transcripts_decide_what_sounds_alike(digits):
    task = dataclasses.replace(SPEECH, beam=8, ngram=3).fit(digits)
    assert len(task.fitted_ngrams[0]) == 4
    numbers = {symbol: i for i, symbol in enumerate(task.fitted_symbols, 1)}
    heard = np.zeros((1, 6, len(numbers) + 1), np.float32)
    for place, symbols in enumerate([("t",), ("w", "v"), ("o",)]):
        heard[0, 2 * place, [numbers[symbol] for symbol in symbols]] = 8.0
        heard[0, 2 * place + 1, 0] = 8.0
    heard[0, 2, numbers["v"]] += 0.5  # "tvo" is what the sound says, and no transcript has it
    outputs = np.array([6])
    plain = dataclasses.replace(task, ngram_weight=0.0)
    assert plain.transcripts.decode(plain.search(heard, outputs)[0]) == "tvo"
    assert task.transcripts.decode(task.search(heard, outputs)[0]) == "two"
    assert dataclasses.replace(SPEECH.fit(digits), beam=8, ngram=2).fit(digits).find_ngrams() is not None


def test_a_search_uses_the_ngrams_that_were_counted_and_no_others(digits, caplog):
    task = dataclasses.replace(SPEECH, beam=8, ngram=3, symbol_bonus=0.5).fit(digits)
    heard = np.random.default_rng(0).normal(size=(2, 9, 16)).astype(np.float32)
    outputs = np.array([9, 5])
    one = dataclasses.replace(task, beam=1)  # as `--beam 1` makes it
    plain = dataclasses.replace(SPEECH.fit(digits), beam=1)
    np.testing.assert_array_equal(
        one.decode(heard, outputs)["symbols"], plain.decode(heard, outputs)["symbols"]
    )
    with pytest.raises(
        UserError, match=r"ngram=2 was not counted in the training transcripts: give task.ngram=3,"
    ):
        dataclasses.replace(task, ngram=2).decode(heard, outputs)
    with pytest.raises(UserError, match=r"ngram=3 was not counted .*: give task.ngram=0, or train with it"):
        dataclasses.replace(plain, beam=8, ngram=3).decode(heard, outputs)
    assert "does not use it" not in caplog.text
    dataclasses.replace(SPEECH, ngram=2).fit(digits)
    assert "task.ngram=2 is counted, and a beam of 1 does not use it: task.beam=16 does" in caplog.text


def test_weights_of_another_run_keep_their_symbols_and_not_their_counts():
    first = source(sounds(0.5, 0.5), text=np.array(["one", "ten"], object))
    task = dataclasses.replace(SPEECH, beam=4, ngram=2)
    earlier = task.fit(first)
    kept = {
        name: getattr(earlier, name)
        for name in ("fitted_symbols", "fitted_most", "fitted_ngrams", "fitted_bounds")
    }
    other = source(sounds(0.5, 0.5, 0.5), text=np.array(["none", "tenten", "öne"], object))
    tuned = task.after(kept).fit(other)
    assert tuned.fitted_symbols == earlier.fitted_symbols == tuple("enot")
    assert tuned.fitted_most == 6  # "tenten"; what cannot be spelled counts nowhere
    e, n, o, t = 1, 2, 3, 4
    assert {row[:2]: row[2] for row in tuned.fitted_ngrams} == {
        (0, n): 1, (n, o): 1, (o, n): 1, (n, e): 1, (e, 0): 1,
        (0, t): 1, (t, e): 2, (e, n): 2, (n, t): 1, (n, 0): 1,
    }  # fmt: skip
    strange = source(sounds(0.5), text=np.array(["äö"], object))
    with pytest.raises(
        UserError, match=r"no transcript of .* is spelled in the symbols of the run .*: 'ä' of 'äö'"
    ):
        task.after(kept).fit(strange)


def test_error_rates_are_sums_over_the_split():
    assert measure_errors(["one two", "", "a b c d"], ["one too", "x", "a b d"]) == {
        "wer": pytest.approx(3 / 6), "cer": pytest.approx(4 / 14)
    }  # fmt: skip
    spelled = Transcripts("word", lowercase=True, symbols=("one", "two"))
    assert spelled.encode("Two  one") == [2, 1] and spelled.decode([2, -1, 1]) == "two one"
    assert spelled.encode("two three") is None and spelled.find_unknown("two three") == "three"
    assert spelled.split_words([2, 1]) == [("two", 0, 0), ("one", 1, 1)]


def test_what_has_no_loss_is_told(caplog):
    held = source(sounds(0.5, 0.5, 0.02), text=np.array(["one", "two", "seven"], object))
    task = dataclasses.replace(SPEECH, fitted_symbols=tuple("enosvtw"), fitted_most=5).fit(held)
    task.lengths(held)
    assert "1 of 3 transcripts have more symbols than their sound has outputs, such as 'seven'" in caplog.text
    assert "task.subsampling 1 or a smaller task.hop_ms gives more" in caplog.text
    other = source(sounds(0.5, 0.9), text=np.array(["one", "öne"], object))
    task.lengths(other)
    assert "1 of 2 transcripts hold what the training transcripts lack, such as 'ö'" in caplog.text
    assert "1 of 2 sounds are longer than the 0.5" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpeechRecognition(fill_to=(2, 1)), r"fill_to must rise"),
        (lambda: SpeechRecognition(fill_to=(2, 40)), r"sounds are cut at 30: raise max_seconds"),
        (lambda: SpeechRecognition(rate=100), r"rate must lie in"),
        (lambda: SpeechRecognition(rate=8000, bands=300), r"bands 300 are more than the 129 frequencies"),
        (lambda: SpeechRecognition(hop_ms=0.01), r"less than samples at 16000 Hz: raise them"),
        (lambda: SpeechRecognition(beam=0), r"beam must lie in"),
        (lambda: SpeechRecognition(beam=8, symbol_bonus=0.5), r"symbol_bonus is added by the n-gram model: give ngram"),
        (lambda: SPEECH.fit(source(sounds(0.5), text=np.array([" "], object))), r"all transcripts of .* are empty"),
        (lambda: SPEECH.facts({"audio": 0}), r"no 'text', it has audio: say with task.text"),
        (lambda: WORDS.facts({"wave": 0}), r"no 'audio', it has wave: say with task.audio"),
        (lambda: WORDS.facts({"audio": 0, "text": 0}), r"labels with names, and 'label' is not there"),
    ],
)  # fmt: skip
def test_bad_options_and_data_are_told(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_sounds_that_a_person_has(fitted):
    one, two = sounds(0.3, 0.7)
    brought = fitted.bring([str(DIGITS / "0_jackson_0.flac"), one, Recording(two / 32768, 8000)], {}, 2)
    batches = list(brought.batches)
    assert not brought.single and [len(batch["audio"]) for batch in batches] == [2, 1]
    np.testing.assert_array_equal(batches[0]["audio"][1, :2400], one)
    np.testing.assert_array_equal(batches[1]["audio"][0, :5600], two)
    long = next(fitted.bring(sounds(9.0)[0], {}, 2).batches)
    assert long["samples"].tolist() == [72000] and long["audio"].shape[1] >= 72000
    for given, message in (
        (3, "give a sound or several"),
        ([None], "sound 0 is None"),
        ("no.wav", "cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            list(fitted.bring(given, {}, 2).batches)


def test_predictions_are_the_same_alone_and_together(fitted, digits):
    facts = fitted.facts(digits.features)
    shapes = jax.eval_shape(lambda b: fitted.inputs(fitted.features(b)), _batch(fitted, digits, [0]))
    model = as_model(partial(models.lstm_ctc, width=8, features=8, depth=1), facts, shapes)
    params, state = model.init(jax.random.key(0))
    predict = partial(compile_predict(fitted, inference(model)), {"params": params, "model_state": state})
    together = predict(_batch(fitted, digits, [0, 3, 7]))
    for row, index in enumerate([0, 3, 7]):
        alone = predict(_batch(fitted, digits, [index]))
        kept = alone["symbols"].shape[1]
        np.testing.assert_array_equal(together["symbols"][row, :kept], alone["symbols"][0])
        np.testing.assert_allclose(together["score"][row], alone["score"][0], rtol=1e-4)


def _batch(task, held, indices):
    elements = [task.element(example) for example in held.__getitems__(indices)]
    length = max(map(task.length, elements))
    rows = [task.pad(element, length) for element in elements]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} | {
        "mask": np.ones(len(rows), np.float32), "index": np.arange(len(rows)), "epoch": np.zeros(len(rows), np.int32)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "model"),
    [
        (
            SpeechRecognition(rate=8000, bands=20, fill_to=(1.0,), units="word", beam=4, ngram=2),
            partial(models.lstm_ctc, width=16, features=16, depth=1, dropout=0.0),
        ),
        (
            AudioClassification(rate=8000, bands=20, fill_to=(1.0,)),
            partial(models.BcResNet, stages=((8, 1, 1, 1), (12, 1, 2, 2)), dropout=0.0),
        ),
    ],
)
def test_a_falling_loss(task, model, tmp_path):
    recipe = ja.Recipe(
        name="digits", model=model, task=task, epochs=8, batch_size=10, eval_every=8,
        data=ja.training.Data(name=str(DIGITS), train_split="train+test", eval_split="train"),
        optimizer=ja.Optimizer("adamw", learning_rate=1e-2),
    )  # fmt: skip
    result = ja.train(recipe, run=tmp_path / "run")
    losses = [row["loss"] for row in run_log.read(tmp_path / "run") if row["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0]
    trained = ja.load(tmp_path / "run")
    assert trained.evaluate("train") == pytest.approx(result.summary["eval"], abs=1e-4)
