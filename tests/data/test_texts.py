"""Tables and folders of texts as data sets."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from jaxaccel.data.data_sets import open_set, open_source, open_splits
from jaxaccel.errors import UserError

CLINC = Path(__file__).parent / "clinc150"
INTENTS = ["alarm", "balance", "calories", "flight_status", "play_music", "restaurant_reservation", "tell_joke",
           "timer", "translate", "weather"]  # fmt: skip


def write(path, *lines, end="\n"):
    path.write_text("".join(f"{line}{end}" for line in lines), encoding="utf-8", newline="")
    return path


def texts(source, key="text"):
    return [example[key].item().decode() for example in source.__getitems__(range(len(source)))]


def labels(source):
    names = source.features["label"].names
    return [names[int(example["label"])] for example in source.__getitems__(range(len(source)))]


def labels_in_order(path):
    """Labels of the lines of a file, whose texts are numbers."""
    source = open_source(str(path), "train+test")
    return [label for _, label in sorted(zip(map(int, texts(source)), labels(source), strict=True))]


def test_queries_with_their_splits():
    splits = open_splits(str(CLINC))
    assert (len(splits.train), len(splits.evaluation), splits.test) == (300, 100, None)
    assert splits.train.features["label"].names == INTENTS
    with (CLINC / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert texts(splits.evaluation) == [row["text"] for row in rows]
    assert labels(splits.evaluation) == [row["label"] for row in rows]
    assert np.bincount([int(x["label"]) for x in splits.train.__getitems__(range(300))]).tolist() == [30] * 10
    assert "CC BY 3.0" in (CLINC / "NOTICE").read_text()


def test_one_file_is_divided_in_every_class(tmp_path):
    path = write(tmp_path / "a.csv", "text,label", *(f"text {i},{'xyz'[i % 3]}" for i in range(60)))
    train, test = (open_source(str(path), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (48, 12) and not {*texts(train)} & {*texts(test)}
    assert sorted(labels(test)) == ["x"] * 4 + ["y"] * 4 + ["z"] * 4
    assert len(open_source(str(path), "train[:50%]")) == 24


TEXT = 'a "quoted" text, with a comma,\nand a second line'


def write_csv(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([["text", "label"], *rows])


def test_forms_give_the_same_examples(tmp_path, monkeypatch):
    rows = [(f"{'é日'[i % 2]}{i}" + TEXT * (i == 3), "ab"[i % 2]) for i in range(10)]
    flat = [(text.replace("\n", " "), label) for text, label in rows]
    write_csv(tmp_path / "a.csv", rows)
    write_csv(tmp_path / "b.tsv", flat, "\t")  # which quotes
    write(tmp_path / "c.tsv", "text\tlabel", *(f"{text}\t{label}" for text, label in flat), end="\r\n")
    write(tmp_path / "d.jsonl", *(json.dumps({"label": y, "text": x}) for x, y in rows), "")
    content = (tmp_path / "a.csv").read_bytes()
    (tmp_path / "e.CSV.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + content))
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.tsv", "c.tsv", "d.jsonl", "e.CSV.gz"):
        source = open_source(name, "train+test")
        expected = flat if "tsv" in name else rows
        assert sorted(zip(texts(source), labels(source), strict=True)) == sorted(expected), name
    assert open_set("a.csv").digest() == open_set("d.jsonl").digest() != open_set("c.tsv").digest()


def test_quotes_of_a_tsv_are_kept_where_they_quote_nothing(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel", '"a\t0', 'b" c\t1', '"d"\t0', "e\t1")
    assert sorted(texts(open_source(str(path), "train+test"))) == ['"a', '"d"', 'b" c', "e"]


def test_a_field_of_a_million_characters(tmp_path):
    limit = csv.field_size_limit()
    long = "word, " * 200_000
    write_csv(tmp_path / "a.csv", [(long, "a"), (long, "b"), ("", "a"), ("", "b")])
    source = open_source(str(tmp_path / "a.csv"), "train+test")
    assert sorted(map(len, texts(source))) == [0, 0, 1_200_000, 1_200_000]
    assert csv.field_size_limit() == limit


def test_columns_are_texts_or_numbers(tmp_path):
    rows = [("12", "7", "1.5", "1", "01"), ("13", "-8", "2e3", "x", "02")]
    write(tmp_path / "a.csv", "text,count,score,mixed,code,label", *(",".join([*row, "k"]) for row in rows))
    source = open_source(str(tmp_path / "a.csv"), "train+test")
    example = source[texts(source).index("13")]
    assert [example[key].item() for key in ("text", "mixed", "code")] == [b"13", b"x", b"02"]
    assert (example["count"].dtype, example["count"].item()) == (np.int64, -8)
    assert (example["score"].dtype, example["score"].item()) == (np.float64, 2000)
    line = {"text": "a", "n": 1, "f": 1, "gone": None, "deep": [1], "label": True}
    write(tmp_path / "a.jsonl", json.dumps(line), json.dumps(line | {"f": 0.5, "label": False}))
    source = open_source(str(tmp_path / "a.jsonl"), "train+test")
    assert source.features.keys() == {"text", "n", "f", "label"}
    assert source.features["label"].names == ["false", "true"] and source[1]["f"].dtype == np.float64


def test_the_column_of_the_class_may_have_another_name(tmp_path, caplog):
    path = write(tmp_path / "a.csv", ",text,label,mood", *(f"{i},text,{i},{'uv'[i % 2]}" for i in range(10)))
    caplog.set_level("INFO")
    splits = open_splits(str(path), label="mood")
    assert splits.train.features.keys() == {"text", "label"}
    assert splits.train.features["label"].names == ["u", "v"]
    assert "column label is left out" in caplog.text and "1 columns without a name" in caplog.text


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["0", "2", "0", "2"], ["0", "1", "2"]),  # numbers of classes, as in arrays
        (["-1", "1", "-1", "1"], ["-1", "1"]),
        (["01", "1", "01", "1"], ["01", "1"]),
        ([" b", "a ", "b", "a"], ["a", "b"]),
    ],
)
def test_names_of_classes(given, names, tmp_path):
    for ending, lines in (
        ("csv", ["text,label", *(f"{i},{label}" for i, label in enumerate(given))]),
        ("jsonl", [json.dumps({"text": str(i), "label": label}) for i, label in enumerate(given)]),
    ):
        path = write(tmp_path / f"a.{ending}", *lines)
        assert open_source(str(path), "train").features["label"].names == names
        assert labels_in_order(path) == [label.strip() for label in given]


def test_whole_numbers_of_json_are_numbers_of_classes(tmp_path):
    lines = [json.dumps({"text": str(i), "label": y}) for i, y in enumerate((2, 0, 2.0, 0))]
    assert labels_in_order(write(tmp_path / "a.jsonl", *lines)) == ["2", "0", "2", "0"]


def test_a_folder_with_a_file_for_each_split(tmp_path):
    for name, count in (("train", 6), ("val", 2), ("test", 4)):
        write(
            tmp_path / f"{name}.jsonl",
            *(json.dumps({"text": f"{name} {i}", "label": i % 2}) for i in range(count)),
        )
    splits = open_splits(str(tmp_path))
    assert splits.test is not None
    assert [texts(part)[0] for part in (splits.train, splits.evaluation, splits.test)] == [
        "train 0",
        "val 0",
        "test 0",
    ]
    (tmp_path / "test.jsonl").rename(tmp_path / "training.csv")
    with pytest.raises(
        UserError, match=r"train.jsonl and .*training.csv are both the split train: rename one"
    ):
        open_set(str(tmp_path))
    (tmp_path / "training.csv").rename(tmp_path / "test.csv")
    with pytest.raises(UserError, match=r"holds splits as .csv and .jsonl: make them one kind"):
        open_set(str(tmp_path))


def test_a_folder_of_text_files(tmp_path):
    for label in ("neg", "pos"):
        for i in range(10):
            path = tmp_path / label / "deep" / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\xef\xbb\xbf" * (i % 2) + f"  {label} été {i}\r\nline 2\n".encode())
    train, test = (open_source(str(tmp_path), split) for split in ("train", "test"))
    assert (len(train), len(test), sorted(labels(test))) == (16, 4, ["neg", "neg", "pos", "pos"])
    assert train[0]["id"].item().startswith(b"neg/deep/")
    assert {*texts(train)} | {*texts(test)} == {
        f"{x} été {i}\r\nline 2" for x in ("neg", "pos") for i in range(10)
    }
    before = set(texts(test))
    (tmp_path / "pos" / "11.txt").write_text("another")  # moves none of the others
    assert before <= {*texts(open_source(str(tmp_path), "test"))}
    (tmp_path / "neg" / "deep" / "3.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"3.txt, line 2 is not UTF-8 \(byte 0xe9\).*iconv -f latin1"):
        open_set(str(tmp_path))


def test_a_folder_of_text_files_with_splits(tmp_path):
    for name in ("train/a/1.txt", "train/b/1.txt", "test/b/1.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    splits = open_splits(str(tmp_path))
    assert (texts(splits.train), texts(splits.evaluation)) == (
        ["train/a/1.txt", "train/b/1.txt"],
        ["test/b/1.txt"],
    )
    assert splits.evaluation.features["label"].names == ["a", "b"] and labels(splits.evaluation) == ["b"]


def test_pictures_go_before_texts_beside_them(tmp_path):
    from PIL import Image

    for i in range(4):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        Image.new("L", (3, 3)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a caption")
    write(tmp_path / "train.csv", "text,label", "a,b")
    assert "image" in open_source(str(tmp_path), "train").features


BAD = [
    ("a.csv", b"", r"a.csv holds no examples: it is empty"),
    ("a.csv", b"text,label\n", r"a.csv holds no examples"),
    ("a.csv", b"text,label\nx,y\n\nx\n", r"a.csv, line 4 has 1 columns, and line 1 has 2: .*quotes"),
    ("a.csv", b"text,label\nx,y\nx,y,z\n", r"a.csv, line 3 has 3 columns, and line 1 has 2"),
    ("a.csv", b'text,label\n"x\ny",z\n"x,y\nz,w\n', r"a.csv, line 4: unexpected end of data: .*ends with one"),
    ("a.csv", b'text,label\n"x" y,z\n', r"a.csv, line 2: ',' expected after '\"'"),
    ("a.csv", b"text,label\nx,y\nx, \n", r"a.csv, line 3 has an empty label: give its class"),
    ("a.csv", b"text,text,label\nx,y,z\n", r"line 1: two columns are called text"),
    ("a.csv", b"label\nx\n", r"holds classes and nothing else"),
    ("a.csv", b"text,label\nx,y\ncaf\xe9,y\n", r"a.csv, line 3 is not UTF-8 \(byte 0xe9\): save the file as UTF-8"),
    ("a.csv", "text,label\nx,y\n".encode("utf-16"), r"a.csv, line 1 is UTF-16 .*iconv -f utf-16"),
    ("a.tsv", b"text\tlabel\nx y\n", r"a.tsv, line 2 has 1 columns, and line 1 has 2: correct it$"),
    ("a.jsonl", b'{"text": "x", "label": "y"}\n["x"]\n', r"a.jsonl, line 2 is no object such as"),
    ("a.jsonl", b'{"text": "x", "label": "y"}\n\n{"text": "x"}\n', r"a.jsonl, line 3 lacks 'label', unlike line 1"),
    ("a.jsonl", b'{"label": "y"}\n{"text": "x", "label": "y"}\n', r"a.jsonl, line 2 has 'text', unlike line 1"),
    ("a.jsonl", b'{"text": "x", "label": "y"}\n{"text"\n', r"a.jsonl, line 2 is no JSON"),
    ("a.jsonl", b"[" * 100_000, r"a.jsonl, line 1 is no JSON"),
    ("a.jsonl", b'{"text": "x", "label": null}\n', r"a.jsonl, line 1 has an empty label"),
    ("a.jsonl", b'{"text": "x", "label": 0.5}\n', r"line 1 has the label 0.5: a class is a text or a whole number"),
    ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": 3, "label": 1}\n', r"line 2 has the text 3, and other lines"),
    ("a.jsonl", b'{"text": "\\ud800", "label": 1}\n', r"line 1 has half of a surrogate pair in text"),
    ("a.jsonl", b'{"n": 1, "label": 1}\n{"n": 1e400, "label": 1}\n', r"line 2 has a n that is no finite number"),
    ("a.jsonl", b'{"n": 99999999999999999999, "label": 1}\n', r"line 1 has a n that is no finite number"),
    ("a.csv.gz", gzip.compress(b"text,label\nx,y\n", mtime=0)[:-4], r"a.csv.gz is damaged or is no whole gzip file"),
    ("a.csv.gz", b"text,label\nx,y\n", r"a.csv.gz cannot be read: Not a gzipped file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_what_is_wrong_is_told_with_its_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_set(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_other_splits_have_the_classes_and_columns_of_the_training_file(tmp_path):
    write(tmp_path / "train.csv", "text,label", "x,a", "y,b")
    write(tmp_path / "test.csv", "text,label", "x,a", '"y', 'z",c')
    with pytest.raises(
        UserError, match=r"test.csv, line 3 has the label 'c', .*none of the 2 classes of train.csv"
    ):
        open_set(str(tmp_path))
    write(tmp_path / "test.csv", "text,label,more", "x,a,1")
    with pytest.raises(UserError, match=r"test.csv has a column 'more', and .*train.csv has none"):
        open_set(str(tmp_path))
    with pytest.raises(UserError, match=r"b.csv cannot be read: No such file"):
        open_set(str(tmp_path / "b.csv"))
    with pytest.raises(
        UserError, match=r"there is no folder .*a folder of images, sounds or texts, or a file .npz, .csv"
    ):
        open_set(str(tmp_path / "b.txt"))


def test_gzip_that_grows_without_end_is_refused(tmp_path, monkeypatch):
    from jaxaccel.data import table_files

    monkeypatch.setattr(table_files, "FLOOR", 1000)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,label\n" + b"x" * 1_000_000 + b",a\n"))
    with pytest.raises(UserError, match=r"holds more than [\d,]+ bytes"):
        open_set(str(tmp_path / "a.csv.gz"))
