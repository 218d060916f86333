"""Text classification: from texts to batches, training on a small real set, predictions, and what is refused."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel import augment, models
from jaxaccel.errors import UserError
from jaxaccel.tasks import TextClassification
from jaxaccel.tasks import text_tokens as tokens
from jaxaccel.training import Data
from jaxaccel.training import fit as fit_module

CLINC = Path(__file__).parents[1] / "data" / "clinc150"
SMALL = functools.partial(models.fast_text, width=16, buckets=1024)


@pytest.fixture(scope="module")
def source():
    return ja.data.open(str(CLINC), "train")


@pytest.fixture(scope="module")
def task(source):
    return TextClassification(vocabulary=800).fit(source)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    recipe = ja.Recipe(
        name="clinc", model=SMALL, task=TextClassification(vocabulary=800), data=Data(name=str(CLINC)), epochs=8,
        eval_every=4, batch_size=16, optimizer=ja.Optimizer("adamw", learning_rate=3e-2),
        augment=(functools.partial(augment.word_dropout, rate=0.1),),
    )  # fmt: skip
    return ja.train(recipe, run=tmp_path_factory.mktemp("text") / "run")


def test_what_is_read_off_the_data(task, source):
    facts = task.facts(source.features)
    assert facts["classes"] == 10 and facts["vocabulary"] <= 800 and facts["pad"] == 0
    assert (
        facts["max_length"] == task.bounds[-1] == max(task.lengths(source)) + -max(task.lengths(source)) % 4
    )
    texts = [example["text"].item().decode() for example in source.__getitems__(range(5))]
    for i, text in enumerate(texts):
        element = task.element(source[i])
        assert task.tokens.decode(element["token"]) == text.lower()
        assert element["length"] == len(element["token"])


def test_a_text_filled_up_or_cut_keeps_its_end(task, source):
    element = task.element(source[0])
    n, pad = len(element["token"]), task.tokens.pad
    longer = task.pad(element, n + 3)
    assert longer["token"].tolist() == [*element["token"], pad, pad, pad] and longer["length"] == n
    shorter = task.pad(element, n - 2)
    assert shorter["token"].tolist() == [*element["token"][: n - 3], element["token"][-1]]
    assert shorter["length"] == n - 2


def test_a_small_model_learns_ten_intents(trained):
    rows = [json.loads(line) for line in (trained.directory / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < 0.5 * losses[0]
    assert trained.summary["eval"]["accuracy"] > 0.8  # of ten classes, by chance 0.1


def test_a_run_predicts_texts_alone_and_together(trained):
    run = ja.load(trained.directory, which="last")
    questions = ["how much is in my bank account", "play", "", "word " * 20_000, "ÄÖ \ud83d\ude00"]
    together = run.predict(questions)
    assert together.shape == (5, 10)
    for question, logits in zip(questions, together, strict=True):
        np.testing.assert_allclose(run.predict(question), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run.predict({"text": iter(questions)}), together, rtol=1e-6)
    np.testing.assert_allclose(trained.predict(questions), together, rtol=1e-4, atol=1e-5)
    assert run.classify(questions[0])[0].name in run.class_names
    token = np.array([[*run.task.tokens.encode(["play"])[0], 0, 0, 0]])
    np.testing.assert_allclose(run.function(run.params, token)[0], together[1], rtol=1e-4, atol=1e-5)


def test_a_split_is_written_with_the_classes_that_the_model_says(trained, source, tmp_path):
    from jaxaccel.predict import PredictOptions, write_predictions

    out = tmp_path / "taught.jsonl"
    counts = write_predictions(
        trained.directory, PredictOptions(which="last", split="train[:40]", output=out)
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert counts.inputs == len(rows) == 40
    texts = [source[i]["text"].item().decode() for i in range(40)]
    said = ja.load(trained.directory, which="last").classify(texts, top=1)
    assert rows == [{"text": text, "label": one[0].name} for text, one in zip(texts, said, strict=True)]


@pytest.mark.parametrize(
    ("label", "says"),
    [("gardening", "[a-z]+ is only in one of them"), ("", "their order differs")],
)
def test_a_held_out_set_of_other_classes_is_refused_before_training(source, tmp_path, label, says):
    names = tuple(source.features["label"].names)
    other = (label, *names[1:]) if label else (names[1], names[0], *names[2:])
    held = ja.data.from_arrays(
        {"text": np.array(["play a song", "my balance"], object), "label": np.arange(2)}, class_names=other
    )
    recipe = ja.Recipe(
        name="other", model=SMALL, task=TextClassification(vocabulary=800), epochs=1, batch_size=16,
        data=Data(name=str(CLINC), eval_name=held, eval_split="train"),
    )  # fmt: skip
    with pytest.raises(UserError, match=f"has other classes than .*, which is trained on: {says}"):
        ja.train(recipe, run=tmp_path / "run")


def test_each_step_of_an_evaluation_is_one_of_few_programs(trained, source):
    report = ja.load(trained.directory, which="last").report()
    assert report.examples == 100
    assert report.metrics["accuracy"] == pytest.approx(trained.summary["eval"]["accuracy"])
    assert report.report.accuracy == pytest.approx(report.metrics["accuracy"])


def test_an_evaluation_shows_the_surest_mistakes_as_texts(trained, tmp_path, capsys):
    from jaxaccel.evaluate import EvaluateOptions, evaluate

    found = evaluate(trained.directory, EvaluateOptions(which="last", out=tmp_path, mistakes=3))
    listed = json.loads((tmp_path / "mistakes.json").read_text())
    errors = round(100 * (1 - found.metrics["accuracy"]))
    assert len(listed) == min(3, errors) and errors > 0
    source = ja.data.open(str(CLINC), "test")
    assert listed[0]["text"] == source[listed[0]["index"]]["text"].item().decode()
    assert (tmp_path / "confusion.png").is_file() and not (tmp_path / "mistakes.png").exists()
    assert listed[0]["text"].split()[0] in capsys.readouterr().out


def test_compression_takes_texts_and_keeps_their_tokens(trained, tmp_path, monkeypatch):
    from jaxaccel.compression import FineTune, Pipeline, Quantize

    monkeypatch.setattr(tokens, "train_tokenizer", None)  # nothing is learned anew
    steps = {"tune": FineTune(split="train[:60]"), "int8": Quantize()}
    done = ja.compress(Pipeline(steps), trained.directory, run=tmp_path / "small")
    tuned = ja.load(tmp_path / "small" / "tune", which="last")
    assert tuned.task.fitted_tokenizer == trained.task.fitted_tokenizer
    assert [row.scores["accuracy"] > 0.75 for row in done.receipts] == [True] * 3
    assert done.receipts[-1].bytes < 0.4 * done.receipts[0].bytes


def test_weights_of_another_run_keep_their_tokens(trained, tmp_path):
    texts = ["first of all", "and then the second one", "the first", "a second"] * 5
    name = ja.data.from_arrays({"text": texts, "label": ["one", "two"] * 10})
    recipe = ja.Recipe(
        name="other", model=SMALL, task=TextClassification(vocabulary=800), data=Data(name=name), epochs=1
    )
    other = ja.train(recipe, run=tmp_path / "other", init_from=trained.directory)
    assert other.task.fitted_tokenizer == trained.task.fitted_tokenizer


NAMED = {"text": ["pay my bill", "play a song", "who are you", "play it", "pay now", "what is it"] * 4,
         "intent": ["pay", "play", "oos", "play", "pay", "oos"] * 4}  # fmt: skip


def test_names_are_labels_and_one_of_them_is_none_of_the_others():
    name = ja.data.from_arrays(NAMED, test=NAMED)
    source = ja.data.open(name, "train")
    task = TextClassification(label="intent", unknown="oos", vocabulary=300, threshold=0.6).fit(source)
    assert task.facts(source.features)["class_names"] == ("pay", "play")
    labels = [int(task.element(example)["label"]) for example in source.__getitems__(range(6))]
    assert labels == [0, 1, -1, 1, 0, -1]
    with pytest.raises(
        UserError, match="'plya' is none of the training split's 2 classes; did you mean play"
    ):
        task.number("plya")

    logits = np.log(np.array([[0.9, 0.1], [0.3, 0.7], [0.55, 0.45], [0.8, 0.2], [0.5, 0.5], [0.1, 0.9]]))
    batch = {"label": np.array(labels), "mask": np.ones(6, np.float32), "token": np.ones((6, 2), np.int32)}
    batch |= {"length": np.full(6, 2)}
    found = task.summarize(task.evaluate(lambda *_: jax.numpy.asarray(logits), batch))
    assert found["accuracy"] == pytest.approx(3 / 4)  # of texts 0, 1, 3, 4, of which 3 is wrong
    assert found["kept"] == pytest.approx(3 / 4)
    assert found["unknown_recall"] == pytest.approx(1 / 2)
    loss, _ = task.loss(jax.numpy.asarray(logits), batch)
    assert float(loss) == pytest.approx(-np.log([0.9, 0.7, 0.2, 0.5]).mean(), rel=1e-5)


def test_numbers_of_classes_move_up_where_one_is_unknown():
    data = {"text": NAMED["text"], "label": NAMED["intent"]}
    source = ja.data.open(ja.data.from_arrays(data, test=data), "train")
    task = TextClassification(unknown="pay", vocabulary=300, class_weights="balanced").fit(source)
    assert task.facts(source.features)["class_names"] == ("oos", "play")
    assert [task.number(label) for label in range(3)] == [0, -1, 1]
    assert task.class_weights == (1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ("title",)}, r"has no 'title', it has label, text: say with task.text what to take"),
        ({"label": "class"}, r"has no 'class', it has label, text: say with task.label"),
        ({"unknown": "pay_bil"}, r"task.unknown='pay_bil' is none of the 10 classes"),
        ({"class_weights": (1.0, 2.0)}, r"class_weights has 2 numbers and the data 10 classes"),
        ({"tokenizer": "nowhere/tokenizer.json"}, r"nowhere/tokenizer.json"),
    ],
)
def test_what_does_not_fit_the_data_is_said(options, message, tmp_path):
    recipe = ja.Recipe(name="x", model=SMALL, task=TextClassification(**options), data=Data(name=str(CLINC)))
    with pytest.raises(UserError, match=message):
        ja.train(recipe, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill_to": (16, 8)}, "fill_to must rise"),
        ({"fill_to": (16, 600)}, "texts are cut at 512: raise max_length"),
        ({"threshold": 1.5}, "threshold"),
    ],
)
def test_options_that_exclude_each_other(options, message):
    with pytest.raises(UserError, match=message):
        TextClassification(**options)


def test_what_is_no_text_is_said(trained):
    run = ja.load(trained.directory, which="last")
    with pytest.raises(UserError, match="text 1 is 3: give texts"):
        run.predict(["one", 3])
    with pytest.raises(UserError, match=r"text 0 is no UTF-8 \(byte 1\)"):
        run.predict([b"a\xff"])
    with pytest.raises(UserError, match="a batch of texts has an entry text, got image"):
        run.predict({"image": 1})


def test_a_vocabulary_that_does_not_fit_the_checkpoint_is_said(trained, tmp_path):
    facts = json.loads((trained.directory / "facts.json").read_text())
    facts["facts"]["vocabulary"] += 1
    copy = tmp_path / "copy"
    import shutil

    shutil.copytree(trained.directory, copy)
    (copy / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"made for vocabulary (\d+), and the tokens or symbols give \d+"):
        ja.load(copy, which="last")


def test_a_student_has_other_tokens_than_its_teacher(trained, tmp_path, monkeypatch):
    from jaxaccel.training import Distill
    from jaxaccel.training.problem import Problem
    from jaxaccel.training.warm_start import read_task

    recipe = ja.Recipe(
        name="student", model=SMALL, task=TextClassification(vocabulary=200), data=Data(name=str(CLINC)), epochs=2,
        eval_every=1, distill=Distill(teacher=trained.directory, temperature=2, soft=0.7),
    )  # fmt: skip
    task = Problem(recipe, teacher=read_task(trained.directory)).task
    assert task.tokens.vocabulary == 200 < trained.task.tokens.vocabulary
    source = ja.data.open(str(CLINC), "train")
    batch = {name: x[None] for name, x in task.example(source[3]).items()} | {"mask": np.ones(1, np.float32)}
    theirs, own = task.teacher_batch(batch), trained.task.example(source[3], task.bounds[-1])
    assert theirs["token"][0].tolist() == own["token"].tolist() and theirs["length"][0] == own["length"]
    assert batch["length"][0] > own["length"]

    whole = ja.train(recipe, run=tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    lessons = [row["distill"] for row in rows if "distill" in row]
    assert lessons[-1] < lessons[0]
    assert ja.load(tmp_path / "whole").predict("play a song").shape == (10,)

    ran = fit_module.evaluate_and_save

    def stop(*args):
        ran(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "evaluate_and_save", stop)
    with pytest.raises(KeyboardInterrupt):
        ja.train(recipe, run=tmp_path / "stopped")
    monkeypatch.setattr(fit_module, "evaluate_and_save", ran)
    resumed = ja.train(recipe, run=tmp_path / "stopped", resume=True)
    assert resumed.summary["state_sha256"] == whole.summary["state_sha256"]
