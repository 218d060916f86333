"""``python -m jaxaccel.predict``: one line an input, in order, with the values of ``ja.load(run).predict``."""

import dataclasses
import gzip
import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jaxaccel as ja
from jaxaccel.deployment.predict_inputs import find_sources, predict_sources
from jaxaccel.errors import UserError
from jaxaccel.predict import main, to_line
from jaxaccel.tasks import Task, TextClassification
from jaxaccel.tasks.reading import Input

SAID = {
    "alarm": "wake me at seven",
    "weather": "will it rain today",
    "music": "play a loud song",
    "other": "eat more fruit",
}
ENDS = ("please", "now", "then", "for me")


@pytest.fixture(scope="module")
def texts_run(tmp_path_factory):
    """A tiny run of texts, with a class of those that belong to no other: do not write into it."""
    texts = [f"{text} {end}" for text in SAID.values() for end in ENDS for _ in range(4)]
    labels = [name for name in SAID for _ in range(16)]
    data = ja.data.from_arrays({"text": texts, "label": labels})
    recipe = ja.Recipe(
        name="intents",
        task=TextClassification(
            tokenizer="bpe", vocabulary=300, fill_to=(64,), unknown="other", threshold=0.34
        ),
        model=partial(ja.models.fast_text, width=8, buckets=64),
        data=ja.training.Data(name=data, eval_split="train"),
        epochs=2,
        batch_size=16,
    )
    return ja.train(recipe, run=tmp_path_factory.mktemp("texts") / "intents").directory


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of eight digits, one of them damaged and one of another size, in folders."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    (folder / "inner").mkdir(parents=True)
    for i, example in enumerate(ja.data.open("digits", "test").__getitems__(range(6))):
        Image.fromarray(example["image"][..., 0]).save(folder / ("inner" if i % 2 else ".") / f"{i}.png")
    (folder / "3.png").write_text("no picture")
    Image.new("L", (9, 9)).save(folder / "inner" / "9.PNG")
    (folder / "notes.txt").write_text("no picture either")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def say(capsysbinary):
    """Runs the command: (what it raised, its records)."""

    def run(*words):
        capsysbinary.readouterr()
        try:
            assert main([str(word) for word in words]) == 0
            error = ""
        except UserError as raised:
            error = raised.as_flags()
        return error, [json.loads(line) for line in capsysbinary.readouterr().out.decode().splitlines()]

    return run


def give_stdin(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))


def expect(run, given):
    """{name: probability} of each, by `predict`."""
    loaded = ja.load(run)
    rows = np.asarray(jax.nn.softmax(loaded.predict(given)))
    return [dict(zip(loaded.class_names, row.tolist(), strict=True)) for row in rows]


# ---- pictures ---------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures(digits_run, photos, say):
    error, found = say(digits_run.directory, photos, photos / "0.png", "--top", "3", "--batch", "4")
    assert error == "2 of 9 inputs could not be predicted: the lines with an error say why"
    names = ["0.png", "2.png", "3.png", "4.png", "inner/1.png", "inner/3.png", "inner/5.png", "inner/9.PNG"]
    assert [row["input"] for row in found] == [*(str(photos / name) for name in names), str(photos / "0.png")]
    bad = [row for row in found if "error" in row]
    assert found.index(bad[0]) == 2 and bad[0]["error"].startswith(
        f"cannot read the image {photos / '3.png'}"
    )
    assert "takes images of shape (8, 8, 1), got (9, 9, 1)" in bad[1]["error"] and len(bad) == 2
    good = [row for row in found if "error" not in row]
    for row, scores in zip(good, expect(digits_run.directory, [row["input"] for row in good]), strict=True):
        best = sorted(scores, key=scores.__getitem__, reverse=True)[:3]
        assert list(row) == ["input", "label", "scores"] and row["label"] == best[0]
        assert list(row["scores"]) == best
        assert row["scores"] == pytest.approx({name: scores[name] for name in best}, abs=2e-6)
    assert found[0]["scores"] == pytest.approx(found[-1]["scores"], abs=2e-6)


def test_scores_of_all_classes_add_up_to_1(digits_run, photos):
    (row,) = ja.predict(digits_run.directory, photos / "0.png", top=99)
    assert len(row["scores"]) == 10 and sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_standard_input_names_pictures(digits_run, photos, say, monkeypatch):
    give_stdin(monkeypatch, f"{photos}/2.png\n{photos}/gone.png\n{photos}/0.png".encode())
    error, found = say(digits_run.directory)
    assert [row["input"] for row in found] == [f"{photos}/{name}.png" for name in (2, "gone", 0)]
    assert "gone.png is not there" in found[1]["error"] and error.startswith("1 of 3 inputs")
    assert found[2] == next(iter(ja.predict(digits_run.directory, [photos / "0.png"])))


@pytest.mark.parametrize("kind", ["png", "bmp", "npy"])
def test_a_picture_on_standard_input(kind, digits_run, photos, say, monkeypatch, tmp_path):
    path = tmp_path / f"one.{kind}"
    picture = Image.open(photos / "0.png")
    np.save(path, np.asarray(picture)) if kind == "npy" else picture.save(path)
    give_stdin(monkeypatch, path.read_bytes())
    error, (found,) = say(digits_run.directory, "-")
    expected = next(iter(ja.predict(digits_run.directory, photos / "0.png")))
    assert not error and found == expected | {"input": "stdin"}


def test_a_line_that_is_no_path(digits_run, photos, say, monkeypatch):
    give_stdin(monkeypatch, f"{photos}/0.png\n".encode() * 40 + b"a\0b\n")
    error, found = say(digits_run.directory, "-")
    assert found[-1] == {"input": "stdin:41", "error": "stdin:41 is no path of a file"}
    assert error.startswith("1 of 41 inputs")


def test_few_programs(digits_run, photos):
    run = ja.load(digits_run.directory)
    for count in range(1, 14):
        batches = list(predict_sources(run, [photos / "0.png"] * count, batch=8))
        assert sum(map(len, batches)) == count and max(map(len, batches)) <= 8
    assert run._predict._cache_size() <= 4


# ---- texts ------------------------------------------------------------------------------------------------------


LINES = b"\xef\xbb\xbfplay a song\r\n\nrain \xff\nw\xc3\xa4ke me please\nlast"
READ = ["play a song", "", None, "wäke me please", "last"]


@pytest.mark.parametrize("packed", [False, True])
def test_lines_of_a_file(texts_run, say, packed):
    path = Path("lines.txt.gz" if packed else "lines.txt")
    path.write_bytes(gzip.compress(LINES) if packed else LINES)
    error, found = say(texts_run, path, "--text", "no", "--text", "")
    assert error.startswith("1 of 7 inputs could not be predicted")
    assert [row["input"] for row in found] == [*(f"{path}:{i}" for i in range(1, 6)), "text:1", "text:2"]
    assert [row.get("text") for row in found] == [*READ, "no", ""]
    assert found[2] == {"input": f"{path}:3", "error": "not UTF-8 (byte 0xff at 5)"}
    good = [row for row in found if "error" not in row]
    for row, scores in zip(good, expect(texts_run, [row["text"] for row in good]), strict=True):
        assert row["scores"] == pytest.approx(scores, abs=2e-6) and set(scores) == {
            "alarm",
            "weather",
            "music",
        }
        best = max(scores, key=scores.__getitem__)
        assert row["known"] == (scores[best] >= 0.34) and row["label"] == (best if row["known"] else "other")
    assert found[1]["scores"] == pytest.approx(found[-1]["scores"], abs=2e-6)


def test_a_threshold_decides_what_is_known(texts_run):
    run = ja.load(texts_run)
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    for threshold, label in ((0.49, "alarm"), (0.51, "other")):
        task = dataclasses.replace(run.task, threshold=threshold)
        found = task.describe("x", logits, run.facts.values, top=1)
        assert found == {"text": "x", "label": label, "scores": {"alarm": 0.5}, "known": label == "alarm"}
    with pytest.raises(UserError, match="NaN or infinite"):
        run.task.describe("x", logits * np.nan, run.facts.values, top=1)


def test_texts_in_python(texts_run):
    run = ja.load(texts_run)
    one, many = run.classify("play a song"), run.classify(["play a song", "rain"], top=2)
    assert [guess.name for guess in one[:2]] == [guess.name for guess in many[0]] and len(one) == 3
    (row,) = ja.predict(texts_run, texts=["play a song"])
    assert row["scores"] == pytest.approx({guess.name: guess.probability for guess in one}, abs=2e-6)
    assert run.predict("rain").shape == (3,) and run.predict([]).shape == (0, 3)


def test_rows_of_tables(texts_run, say):
    Path("a.csv").write_text('id,text\n1,"wake me, please"\n2,rain\n')
    Path("b.jsonl").write_text('{"text": "rain"}\n{"text": null}\n{"text": "half \\ud800"}\n')
    Path("c.csv").write_text("words\nrain\n")
    error, found = say(texts_run, "a.csv", "c.csv", "b.jsonl")
    assert [row.get("text") for row in found] == ["wake me, please", "rain", None, "rain", None, None]
    assert [row["input"] for row in found] == [
        "a.csv:2",
        "a.csv:3",
        "c.csv",
        *(f"b.jsonl:{i}" for i in (1, 2, 3)),
    ]
    assert "c.csv has no column 'text'; its columns are words" in found[2]["error"]
    assert "must hold texts, got None" in found[4]["error"] and "surrogate" in found[5]["error"]
    assert error.startswith("3 of 6")


def test_a_file_that_ends_too_early_counts_once(texts_run, say):
    packed = gzip.compress(
        os.urandom(1 << 16).hex().encode() + b"\nrain\n" + os.urandom(1 << 17).hex().encode()
    )
    Path("cut.txt.gz").write_bytes(packed[:-1000])
    Path("wide.txt").write_bytes("rain\n".encode("utf-16"))
    error, found = say(texts_run, "cut.txt.gz", "wide.txt", "--text", "rain")
    assert [row["input"] for row in found][-3:] == ["cut.txt.gz", "wide.txt", "text:1"]
    assert found[1]["text"] == "rain" and "is damaged or is no whole gzip file" in found[-3]["error"]
    assert "is UTF-16: save it as UTF-8" in found[-2]["error"] and error.startswith("2 of 5")


def test_a_stream_is_answered_as_it_comes(texts_run):
    words = [sys.executable, "-m", "jaxaccel.predict", str(texts_run), "-", "--top", "1"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        for number, text in enumerate(("rain", "play", ""), 1):
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            row = json.loads(process.stdout.readline())  # before the next line is written
            assert (row["input"], row["text"]) == (f"stdin:{number}", text)
        process.stdin.close()
        assert process.wait(60) == 0 and process.stdout.read() == b""
        assert process.stderr.read() == b""


def test_a_named_pipe_is_a_stream(texts_run):
    os.mkfifo("pipe")
    with subprocess.Popen(["sh", "-c", "printf 'rain\\nplay' > pipe"]):
        found = list(ja.predict(texts_run, ["pipe"], batch=1))
    assert [row["input"] for row in found] == ["pipe:1", "pipe:2"] and found[1]["text"] == "play"


# ---- the command ------------------------------------------------------------------------------------------------


def test_what_is_written_to_a_file(texts_run, say, monkeypatch):
    give_stdin(monkeypatch, LINES)
    assert say(texts_run, "-", "--output", "out.jsonl") == (
        "1 of 5 inputs could not be predicted: the lines with an error say why",
        [],
    )
    rows = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row.get("text") for row in rows] == READ and "wäke" in Path("out.jsonl").read_text(
        encoding="utf-8"
    )


def test_names_that_are_no_characters_are_escaped():
    name = os.fsdecode(b"a\xff.png")
    assert (
        json.loads(to_line({"input": name}))["input"] == name
        and to_line({"input": "ä"}) == b'{"input": "\xc3\xa4"}\n'
    )


def test_mistakes(digits_run, texts_run, photos, say, monkeypatch):
    command = sys.modules["jaxaccel.predict"]  # as ja.predict it is the function
    monkeypatch.setattr(command, "predict_sources", lambda *args, **options: pytest.fail("computed"))
    (photos.parent / "empty").mkdir(exist_ok=True)
    Path("a.txt").write_text("rain")
    run = digits_run.directory
    for words, says in (
        ([], "name a run"),
        (["nowhere", photos], "nowhere is not there"),
        ([run, photos, "gone.png"], "the input gone.png is not there"),
        ([run, "-", "-"], "name - once"),
        ([run, photos.parent / "empty"], "no images found in"),
        ([run, "--text", "rain"], "--text is for tasks that read texts, and ImageClassification does not"),
        ([run, photos, "--top", "0"], "--top must be at least 1"),
        ([run, photos, "--batch", "0"], "--batch must be at least 1"),
        ([run, photos, "--tpo", "3"], "did you mean --top?"),
        ([run, photos, "--which", "bst"], "no checkpoint 'bst'"),
        ([run, photos, "--output", "/proc/nowhere"], "choose another place with --output FILE"),
        ([texts_run, "a.txt", "--output", "./a.txt"], "is an input as well"),
    ):
        error, found = say(*words)
        assert says in error and not found and "\n" not in error
    assert Path("a.txt").read_text() == "rain"


def test_exit_codes(texts_run, run_train):
    for words, code, says in (
        (["--text", "rain"], 0, ""),
        (
            ["gone.txt"],
            2,
            "error: the input gone.txt is not there: name files or folders, or - for standard input\n",
        ),
    ):
        assert run_train(texts_run, *words, module="jaxaccel.predict")[::2] == (code, says)


# ---- tasks of one's own -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Doubling(Task):
    """Rows of three numbers."""

    def inputs(self, batch):
        return (batch["row"],)

    def loss(self, outputs, batch):
        raise NotImplementedError


class Rows(Doubling):
    """Reads them from files."""

    def read(self, path):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield Input(f"{path}:{number}", np.array(line.split(), float))


@dataclasses.dataclass
class Sums:
    """What is asked of a trained model."""

    task: Task

    def predict(self, given, batch):
        (found,) = (x["row"].sum(-1) for x in self.task.bring(given, self.facts.example, batch).batches)
        return {"sum": found}

    @property
    def facts(self):
        row = {"row": jax.ShapeDtypeStruct((3,), np.float32)}
        return dataclasses.make_dataclass("F", ["example", "values"])(row, {})


def test_a_task_of_ones_own():
    Path("rows").write_text("1 2 3\n4 5\n6 7 8\n")
    ((first, second, third),) = predict_sources(Sums(Rows()), [Path("rows")])
    assert first == {"input": "rows:1", "prediction": {"sum": 6.0}} and third["prediction"] == {"sum": 21.0}
    assert "row must have the shape (examples, 3), got (2,)" in second["error"]
    with pytest.raises(UserError, match=r"Doubling reads no files: give arrays to ja\.load\(run\)\.predict"):
        find_sources(Doubling(), [Path("rows")])
    with pytest.raises(UserError, match="Rows reads no folders"):
        Rows().find_files(Path())
