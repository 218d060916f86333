"""``python -m jaxaccel.evaluate``: each class, what is confused, and the worst mistakes, by hand and in files."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import jaxaccel as ja
from jaxaccel import evaluate
from jaxaccel.errors import UserError
from jaxaccel.evaluate import EvaluateOptions, main
from jaxaccel.tasks import ImageClassification
from jaxaccel.tasks.class_report import ClassReport
from jaxaccel.training import plot_mistakes
from jaxaccel.training.evaluation_tables import class_tables
from jaxaccel.training.plot_mistakes import Mistake

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
PREDICTED = np.array([0, 0, 0, 1, 1, 1, 2, 1, 1, 1])
NAMES = ("cat", "dog", "[bold]newt[/]", "yak")


def test_a_report_by_hand():
    report = ClassReport.of(LABELS, PREDICTED, NAMES)
    assert report.confusion.tolist() == [[3, 1, 0, 0], [0, 2, 1, 0], [0, 3, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(report.precision, [1, 2 / 6, 0, math.nan])
    np.testing.assert_allclose(report.recall, [3 / 4, 2 / 3, 0, math.nan])
    np.testing.assert_allclose(report.f1, [6 / 7, 4 / 9, 0, math.nan])
    assert report.support.tolist() == [4, 3, 3, 0] and report.predictions.tolist() == [3, 6, 1, 0]
    assert report.accuracy == 0.5
    assert report.means() == pytest.approx(
        {"precision": (1 + 2 / 6) / 3, "recall": (3 / 4 + 2 / 3) / 3, "f1": (6 / 7 + 4 / 9) / 3}
    )
    assert report.confused(2) == [("[bold]newt[/]", "dog", 3), ("cat", "dog", 1)]
    assert report.rows()[1] == pytest.approx(
        {"name": "dog", "precision": 2 / 6, "recall": 2 / 3, "f1": 4 / 9, "support": 3, "predictions": 6}
    )


def test_a_class_that_is_never_predicted_has_precision_0_in_the_mean():
    report = ClassReport.of(np.array([0, 1]), np.array([0, 0]), ("a", "b"))
    assert math.isnan(report.precision[1]) and report.means()["precision"] == 0.25


def test_what_a_task_judges():
    task, logits = ImageClassification(), np.log(np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]))
    judged = task.judge(logits, {"label": np.array([2, 0])})
    assert judged["predicted"].tolist() == [1, 0]
    np.testing.assert_allclose(judged["probability"], [0.7, 0.6], rtol=1e-5)
    np.testing.assert_allclose(judged["of_label"], [0.2, 0.6], rtol=1e-5)


@pytest.mark.parametrize("engine", ["xla", "onnxruntime"])
def test_a_bundle_is_judged_by_what_its_engine_gives(engine, digits_run, tmp_path, capsys):
    place = ja.export(digits_run.directory, tmp_path / "digits", to=("onnx",), batch=(32,), timed=False).place
    before = sorted(place.rglob("*"))
    assert main([str(place), "--engine", engine]) == 0
    assert f"{place}, {engine}, 450 examples of digits test: accuracy" in capsys.readouterr().out.replace(
        "\n", ""
    )
    found = json.loads((tmp_path / "digits-evaluation" / "test" / "evaluation.json").read_text())
    own = ja.load(digits_run.directory).evaluate()
    assert found["metrics"] == pytest.approx(own, abs=1e-5) and found["engine"] == engine
    assert len(found["classes"]) == 10 and sorted(place.rglob("*")) == before
    with pytest.raises(UserError, match="is for runs"):
        main([str(place), "--beam", "2"])
    with pytest.raises(UserError, match="computes bundles"):
        main([str(digits_run.directory), "--engine", "openvino"])


def test_the_command_writes_what_is_so(digits_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(digits_run.directory), "--which", "last", "--out", str(out), "--mistakes", "7"]) == 0
    written = json.loads((out / "evaluation.json").read_text())
    assert written["metrics"]["accuracy"] == digits_run.summary["eval"]["accuracy"]
    assert (written["split"], written["data"], written["examples"]) == ("test", "digits", 450)
    confusion = np.array(written["confusion"])
    assert np.trace(confusion) / 450 == pytest.approx(written["metrics"]["accuracy"])
    assert written["mistakes"] == 450 - np.trace(confusion)
    assert [row["support"] for row in written["classes"]] == confusion.sum(1).tolist()
    with (out / "confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert (
        rows[0][1:] == list("0123456789")
        and np.array([row[1:] for row in rows[1:]], int).tolist() == confusion.tolist()
    )
    worst = json.loads((out / "mistakes.json").read_text())
    assert len(worst) == 7 and all(row["true"] != row["predicted"] for row in worst)
    assert [row["probability"] for row in worst] == sorted(
        (row["probability"] for row in worst), reverse=True
    )
    # The first one, by the run itself.
    images = [digits_run_source()[row["index"]] for row in worst]
    logits = digits_run.predict({"image": np.stack([x["image"] for x in images])})
    assert [str(x["label"]) for x in images] == [row["true"] for row in worst]
    assert [str(i) for i in logits.argmax(-1)] == [row["predicted"] for row in worst]
    for name in ("confusion.png", "mistakes.png"):
        assert min(Image.open(out / name).size) > 200
    said = capsys.readouterr().out
    assert "precision" in said and f"accuracy {written['metrics']['accuracy']:.4f}" in said


def digits_run_source():
    import jaxaccel as ja

    return ja.data.open("digits", "test")


def test_mistakes_of_the_command_line(digits_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    run = str(digits_run.directory)
    for words, says in (
        ([], "name a run"),
        (["nowhere"], "nowhere is not there"),
        ([run, "--splt", "test"], "did you mean --split?"),
        ([run, "--split", "tset"], "no split 'tset'; it has: train, test"),
        ([run, "--which", "bst"], "no checkpoint 'bst'"),
        ([run, "--mistakes", "-1"], "--mistakes must be at least 0"),
        ([run, "--out", "/proc/nowhere"], "choose another place with --out DIR"),
        ([run, "--data-dir", "file/x"], "give another --data-dir"),
    ):
        with pytest.raises(UserError) as error:
            main(words)
        assert says in error.value.as_flags()


def test_a_split_has_its_folder(digits_run, monkeypatch):
    assert evaluate._folder("train[:90%]+test") == "train[-90%]+test"
    assert evaluate._folder("../x") == "..-x"
    written = []
    monkeypatch.setattr(evaluate, "_write", lambda out, *rest: written.append(out))
    evaluate.evaluate(digits_run.directory, EvaluateOptions(split="train[:64]"))
    assert written == [digits_run.directory / "evaluation" / "train[-64]"]


@pytest.mark.parametrize("size", [1, 2, 100, 200])
def test_pictures_and_tables_of_any_number_of_classes(size, tmp_path):
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, size, (2, 500))
    names = [f"$class_{i} [red] with a long name" for i in range(size)]
    report = ClassReport.of(labels, predicted, names)
    plot_mistakes.draw_confusion(tmp_path / "confusion.png", report, "digits on train[:90%]: 98.00%")
    assert min(Image.open(tmp_path / "confusion.png").size) >= 500
    console = Console(record=True, width=200)
    for table in class_tables(report):
        console.print(table)
    text = console.export_text()
    assert "$class_0 [red] with a long name" in text or size > 20
    assert len(text.splitlines()) < 50 and ("with the lowest F1" in text) == (size > 20)


@pytest.mark.parametrize("shape", [(8, 8, 1), (30, 20, 3), (9, 40, 4)])
def test_pictures_of_mistakes(shape, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, *shape), np.uint8)
    listed = [Mistake(i, str(i), "$a_", "b" * 80, 0.9, 0.1) for i in range(7)]
    for count in (1, 7):
        plot_mistakes.draw_mistakes(tmp_path / "m.png", listed[:count], images[:count], "mistakes")
        assert min(Image.open(tmp_path / "m.png").size) > 100
