"""The builders of text data sets: TREC, CLINC150, and those of Pang and Lee."""

import csv
import importlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from grids import slow_but

from jaxaccel.data.builders import builder_class
from jaxaccel.data.builders.original_files import sha256
from jaxaccel.data.builders.trec import FINE
from jaxaccel.data.builders.zip_files import read_texts
from jaxaccel.data.data_sets import open_set, open_source
from jaxaccel.errors import UserError

TREC = [
    b"DESC:manner How did it go ?",
    b"ENTY:animal What sister\xf0city has  a bear ?",
    b"NUM:date When ?  ",
]


def place(monkeypatch, folder, name, contents):
    """Puts files into a folder, and makes the builder of that name expect these."""
    cls, originals = builder_class(name), {}
    for key, content in contents.items():
        file = cls.ORIGINALS[key]
        (folder / file.filename).write_bytes(content)
        originals[key] = file._replace(sha256=sha256(folder / file.filename))
    monkeypatch.setattr(cls, "ORIGINALS", originals)


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def read(name, split, folder):
    source = open_source(name, split, directory=folder / "prepared", downloads=folder)
    return source, source.__getitems__(range(len(source)))


def test_trec(tmp_path, monkeypatch):
    content = b"\n".join(TREC) + b"\n"
    place(monkeypatch, tmp_path, "trec", {"train": content, "test": content[: len(TREC[0]) + 1]})
    source, examples = read("trec", "train", tmp_path)
    names = source.features["label-fine"].names
    found = {(int(x["label-coarse"]), names[x["label-fine"]], x["text"].item()) for x in examples}
    assert found == {
        (0, "manner", b"How did it go ?"),
        (1, "animal", b"What sister city has  a bear ?"),
        (4, "date", b"When ?"),
    }
    assert len(read("trec", "test", tmp_path)[1]) == 1


def test_trec_of_other_lines_is_refused(tmp_path, monkeypatch):
    place(monkeypatch, tmp_path, "trec", {"train": b"DESC:manner a\nDESC:nothing b\n", "test": TREC[0]})
    with pytest.raises(UserError, match=r"train_5500.label is damaged .*the label 'DESC:nothing'"):
        open_set("trec", directory=tmp_path / "prepared", downloads=tmp_path)


def clinc_files():
    header = "text,intent,domain,intent_name,domain_name\r\n"
    rows = {"train": '"in spanish , meet me",84,5,translate,travel\r\nhi,1,2,greeting,small_talk\r\n',
            "val": "hello,1,2,greeting,small_talk\r\n", "test": "hey,1,2,greeting,small_talk\r\n"}  # fmt: skip
    oos = "how much is it,150,10,oos,oos\r\n"
    return {f"{x}.csv": header + y for x, y in rows.items()} | {f"{x}_ood.csv": header + oos for x in rows}


def test_clinc(tmp_path, monkeypatch):
    place(monkeypatch, tmp_path, "clinc_oos", {"all": make_zip(clinc_files())})
    _, examples = read("clinc_oos", "train", tmp_path)
    found = {tuple(x[key].item() for key in ("text", "intent", "domain", "intent_name")) for x in examples}
    assert found == {(b"in spanish , meet me", 84, 5, b"translate"), (b"hi", 1, 2, b"greeting")}
    for split in ("train_oos", "validation_oos", "test_oos"):
        _, (example,) = read("clinc_oos", split, tmp_path)
        assert (example["intent"].item(), example["domain_name"].item()) == (150, b"oos")
    assert read("clinc_oos", "validation", tmp_path)[1][0]["text"].item() == b"hello"


def stock_builder(name, folder):
    """The builder of TFDS itself, which can say what is in a data set without TensorFlow."""
    module, cls = {
        "trec": ("tensorflow_datasets.datasets.trec.trec_dataset_builder", "Builder"),
        "clinc_oos": ("tensorflow_datasets.text.clinc_oos", "ClincOOS"),
    }[name]
    return getattr(importlib.import_module(module), cls)(data_dir=str(folder), file_format="array_record")


@pytest.mark.parametrize("name", ["trec", "clinc_oos"])
def test_features_versions_and_files_are_those_of_tfds(name, tmp_path):
    stock, cls = stock_builder(name, tmp_path), builder_class(name)
    ours = cls(data_dir=str(tmp_path), file_format="array_record")
    assert ours.info.features.to_json() == stock.info.features.to_json()
    assert (ours.name, str(ours.VERSION)) == (stock.name, str(stock.version))
    assert ours.info.supervised_keys == stock.info.supervised_keys
    known = {url: info.checksum for url, info in stock.url_infos.items()}
    assert {file.url: file.sha256 for file in cls.ORIGINALS.values()} == known


def test_queries_are_read_as_tfds_reads_them(tmp_path):
    text = clinc_files()["train.csv"]
    (tmp_path / "train.csv").write_bytes(text.encode())
    stock = list(stock_builder("clinc_oos", tmp_path)._generate_examples(str(tmp_path / "train.csv")))
    ours = list(builder_class("clinc_oos")._generate_examples(None, tmp_path, text))
    assert [(key, {k: str(v) for k, v in x.items()}) for key, x in ours] == stock


def test_sentences_are_in_folds(tmp_path, monkeypatch):
    lines = {kind: "".join(f"{kind} {i} . \n" for i in range(23)) for kind in ("neg", "pos")}
    members = {f"sentence_polarity/rt-polarity.{kind}": text for kind, text in lines.items()}
    place(monkeypatch, tmp_path, "mr", {"all": make_zip(members)})
    source, test = read("mr", "test", tmp_path)
    assert [(int(x["label"]), x["text"].item()) for x in test] == [
        (0, b"neg 9 ."), (1, b"pos 9 ."), (0, b"neg 19 ."), (1, b"pos 19 .")
    ]  # fmt: skip
    assert source.features["label"].names == ["negative", "positive"]
    _, fold = read("mr", "train[:6]", tmp_path)  # those of fold 0
    expected = [f"{kind} {i} ." for i in (0, 10, 20) for kind in ("neg", "pos")]
    assert [x["text"].item().decode() for x in fold] == expected
    assert len(read("mr", "train[6:]+test", tmp_path)[1]) == 40


def test_reviews_are_in_the_folds_of_their_names(tmp_path, monkeypatch):
    members = {
        f"movie_reviews/{kind}/cv{fold}{i:02d}_123.txt": f" {kind} {fold} {i}\nend\n"
        for kind in ("neg", "pos") for fold in range(10) for i in range(2)
    } | {"movie_reviews/README": "x"}  # fmt: skip
    place(monkeypatch, tmp_path, "movie_reviews", {"all": make_zip(members)})
    _, test = read("movie_reviews", "test", tmp_path)
    assert {x["text"].item() for x in test} == {
        f"{k} 9 {i}\nend".encode() for k in ("neg", "pos") for i in (0, 1)
    }
    _, fold = read("movie_reviews", "train[4:8]", tmp_path)
    assert {x["text"].item()[4:5] for x in fold} == {b"1"}


def test_archives_are_read_within_bounds(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_bytes(make_zip({"a/x.txt": "é", "b": "y"}))
    assert read_texts(path, ["a/"]) == {"a/x.txt": "é"}
    with pytest.raises(UserError, match=r"a.zip is damaged or is another archive \(no member c"):
        read_texts(path, ["a", "c"])
    monkeypatch.setattr("jaxaccel.data.builders.zip_files.MAX_BYTES", 2)
    with pytest.raises(UserError, match=r"a.zip holds more than 2 bytes"):
        read_texts(path, ["a"])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"a.zip is damaged"):
        read_texts(path, ["a"])


def test_names_that_are_nearly_right_are_told(tmp_path):
    for wrong, right in (("clinc_os", "clinc_oos"), ("movie_review", "movie_reviews"), ("trecc", "trec")):
        with pytest.raises(UserError, match=rf"unknown data set '{wrong}': did you mean .*{right}"):
            open_set(wrong, directory=tmp_path)


SIZES = {
    "trec": {"train": 5452, "test": 500},
    "clinc_oos": {"train": 15000, "validation": 3000, "test": 4500,
                  "train_oos": 100, "validation_oos": 100, "test_oos": 1000},
    "mr": {"train": 9596, "test": 1066},
    "subj": {"train": 9000, "test": 1000},
    "movie_reviews": {"train": 1800, "test": 200},
}  # fmt: skip


@pytest.mark.data
@pytest.mark.skipif("JAXACCEL_DATA_DIR" not in os.environ, reason="needs JAXACCEL_DATA_DIR")
@pytest.mark.parametrize("name", slow_but([], list(SIZES)))
def test_whole_data_sets(name, tmp_path):
    folder = Path(
        os.environ["JAXACCEL_DATA_DIR"], "text", name if name in ("trec", "clinc_oos") else "pang_lee"
    )
    data = open_set(name, directory=tmp_path, downloads=folder)
    assert dict(data.splits) == SIZES[name] and sum(SIZES[name].values()) == builder_class(name).EXAMPLES
    train, test = (data.open(split).__getitems__(range(SIZES[name][split])) for split in ("train", "test"))
    if name == "trec":
        counts = np.bincount([int(x["label-coarse"]) for x in test])
        assert counts.tolist() == [138, 94, 9, 65, 113, 81]
        assert len({int(x["label-fine"]) for x in train}) == len(FINE)
    elif name == "clinc_oos":
        assert np.bincount([x["intent"].item() for x in train]).tolist() == [100] * 150
        with zipfile.ZipFile(folder / "clinc_oos.zip") as archive:
            rows = list(csv.DictReader(io.StringIO(archive.read("test.csv").decode(), newline="")))
        assert sorted(row["text"].encode() for row in rows) == sorted(x["text"].item() for x in test)
    else:
        assert all(x["text"].item().strip() for x in train)
        fold = 200 if name == "movie_reviews" else 1000 if name == "subj" else 1068
        for part in (train[:fold], test):
            assert np.bincount([int(x["label"]) for x in part]).tolist() == [len(part) // 2] * 2
