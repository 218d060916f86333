"""Parallel texts: files of lines, tables of two columns, a prepared set of TFDS, and the builder of Multi30k."""

import gzip
import json
from typing import ClassVar

import pytest
import tensorflow_datasets as tfds
from test_text_builders import place, read

import jaxaccel as ja
from jaxaccel.data.builders import builder_class
from jaxaccel.errors import UserError

ENGLISH = "A dog runs .\nTwo cats .\n\nA line\u2028in two .\n"
GERMAN = "Ein Hund läuft .\r\nZwei Katzen .\r\nNichts .\r\nEine Zeile .\r\n"


def write_lines(folder, **files):
    for name, text in files.items():
        name = name.replace("__", ".")
        content = text.encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def texts_of(source):
    return [{key: value.item().decode() for key, value in example.items()} for example in source]


def test_two_files_of_lines_are_pairs(tmp_path):
    write_lines(
        tmp_path,
        train__en=ENGLISH,
        train__de__gz=GERMAN,
        val__en="x",
        val__de="y",
        news__en="n",
        news__de="m",
    )
    source = ja.data.open(str(tmp_path), "train")
    found = texts_of(source[i] for i in range(len(source)))
    assert [pair["de"] for pair in found] == ["Ein Hund läuft .", "Zwei Katzen .", "Nichts .", "Eine Zeile ."]
    assert [pair["en"] for pair in found] == ["A dog runs .", "Two cats .", "", "A line\u2028in two ."]
    assert texts_of([ja.data.open(str(tmp_path), "validation")[0]]) == [{"en": "x", "de": "y"}]
    assert texts_of([ja.data.open(str(tmp_path), "news")[0]]) == [{"en": "n", "de": "m"}]


def test_one_pair_of_files_is_divided(tmp_path):
    write_lines(tmp_path, train__en="a\n" * 10, train__de="b\n" * 10)
    assert [len(ja.data.open(str(tmp_path), split)) for split in ("train", "test")] == [8, 2]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"train__en": "a\nb\n", "train__de": "c\n"},
            r"train.de has 1 lines and .*train.en has 2: .*equally many",
        ),
        (
            {"train__en": "a", "train__de": "b", "test__en": "c"},
            r"has no test.de, .* need the same languages",
        ),
        (
            {"train__en": "a", "test__en": "c", "test__de": "d"},
            r"has no train.de, .* need the same languages",
        ),
        ({"train__en": "a", "train__de": "\n \n"}, r"train.de holds no texts: it is empty"),
        ({"train__en": "a", "train__en__gz": "b"}, r"train.en and .*train.en.gz are both the en of train"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, files, said):
    write_lines(tmp_path, **files)
    with pytest.raises(UserError, match=said) as caught:
        ja.data.open(str(tmp_path), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_tables_of_two_columns_need_no_class(tmp_path, suffix):
    rows = [{"en": "a, b", "de": "c d"}, {"en": "e", "de": "5"}]
    path = tmp_path / f"train.{suffix}"
    comma = {"csv": ",", "tsv": "\t"}.get(suffix, "")
    if comma:
        quote = '"{}"'.format if suffix == "csv" else str
        lines = [comma.join(row) for row in ([["en", "de"], *([quote(x) for x in r.values()] for r in rows)])]
    else:
        lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    (tmp_path / f"test.{suffix}").write_text("\n".join(lines) + "\n")
    source = ja.data.open(str(tmp_path), "train")
    assert texts_of(source[i] for i in range(2)) == rows


def test_a_translation_that_tfds_prepared_is_read_without_tensorflow(tmp_path):
    class Pairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """As wmt14_translate has it."""

        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="de-en", version=VERSION)]

        def _info(self):
            features = tfds.features.Translation(languages=("de", "en"))
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": ((i, {"de": f"Wort {i}", "en": f"word {i}"}) for i in range(3))}

        def _generate_examples(self):
            return iter(())

    Pairs(config="de-en", data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    source = ja.data.open("pairs/de-en", "train", directory=tmp_path)
    assert set(source.features) == {"de", "en"}
    found = texts_of(source.__getitems__(range(3)))
    assert sorted(pair["en"] for pair in found) == ["word 0", "word 1", "word 2"]
    assert all(pair["de"] == pair["en"].replace("word", "Wort") for pair in found)


def packed(lines):
    return gzip.compress("".join(f"{line}\n" for line in lines).encode())


def test_multi30k(tmp_path, monkeypatch):
    splits = dict.fromkeys(key.partition(".")[0] for key in builder_class("multi30k").ORIGINALS)
    contents = {
        f"{split}.{language}": packed(f"{language} {split} {i}" for i in range(20))
        for split in splits
        for language in ("en", "de")
    }
    place(monkeypatch, tmp_path, "multi30k", contents)
    for split in splits:
        found = texts_of(read("multi30k", split, tmp_path)[1])
        assert found == [{"en": f"en {split} {i}", "de": f"de {split} {i}"} for i in range(20)]
    assert list(splits)[:3] == ["train", "validation", "test"]
    assert builder_class("multi30k").ORIGINALS["test.en"].filename == "test_2016_flickr.en.gz"


def test_multi30k_of_files_of_unequal_length_is_refused(tmp_path, monkeypatch):
    keys = builder_class("multi30k").ORIGINALS
    contents = {key: packed(["a"] if key == "train.de" else ["a", "b"]) for key in keys}
    place(monkeypatch, tmp_path, "multi30k", contents)
    with pytest.raises(UserError, match=r"train.de.gz .*1 lines for 2"):
        read("multi30k", "train", tmp_path)
