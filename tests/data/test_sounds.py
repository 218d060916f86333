"""Folders and tables of sounds, LibriSpeech's layout, and sounds in arrays."""

import os
import pickle
import shutil
import sys

import numpy as np
import pytest
import soundfile as sf
from conftest import FIXTURES
from PIL import Image

from jaxaccel.data import from_arrays
from jaxaccel.data.data_sets import open_set, open_source, open_splits
from jaxaccel.errors import UserError

DIGITS = FIXTURES / "spoken_digits"


def read(name, split="train+test", **options):
    source = open_source(str(name), split, **options)
    return source.__getitems__(range(len(source)))


def write_sounds(folder, *names):
    """Each holds its number and 99 zeros."""
    for number, name in enumerate(names, 1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        sf.write(folder / name, np.eye(1, 100, dtype=np.int16)[0] * number, 8000)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def test_real_recordings_with_transcripts():
    dataset = open_set(str(DIGITS))
    assert dataset.splits == {"train": 20, "test": 10}
    assert "soundfile" in sys.modules  # by this test's own import
    examples = read(DIGITS)
    assert {example["id"].item() for example in examples} == {
        os.fsencode(path.name) for path in DIGITS.iterdir() if path.suffix in (".wav", ".flac")
    }
    by_id = {example["id"].item(): example for example in examples}
    example = by_id[b"7_theo_5.wav"]
    expected, rate = sf.read(DIGITS / "7_theo_5.wav", dtype="int16")
    np.testing.assert_array_equal(example["audio"], expected)
    assert (example["audio"].dtype, example["rate"].dtype, example["rate"].shape) == (np.int16, np.int64, ())
    assert (int(example["rate"]), int(example["label"])) == (rate, 7)
    assert (example["text"].item(), example["speaker"].item()) == (b"seven", b"theo")


def test_features_say_what_examples_hold():
    source = open_source(str(DIGITS), "train")
    features, example = source.features, source[0]
    assert set(features) == set(example) == {"audio", "rate", "id", "text", "label", "speaker"}
    assert (features["audio"].shape, features["audio"].np_dtype) == ((None,), np.int16)
    assert (features["rate"].shape, features["rate"].np_dtype) == ((), np.int64)
    assert features["label"].num_classes == 10


def test_sources_travel_to_child_processes():
    source = open_source(str(DIGITS), "test")
    again = pickle.loads(pickle.dumps(source))
    assert (again.name, again.split, len(again)) == (source.name, "test", 10)
    np.testing.assert_array_equal(again[3]["audio"], source[3]["audio"])


def test_files_are_read_when_an_example_is(tmp_path):
    write_sounds(tmp_path, "a.wav", "b.wav")
    write(tmp_path / "transcripts.csv", "file,text", "a.wav,one", "b.wav,two")
    source = open_source(str(tmp_path), "train+test")
    (tmp_path / "a.wav").write_bytes(b"")
    texts = {}
    for i in range(2):
        try:
            texts[source[i]["text"].item()] = source[i]["audio"][0]
        except UserError as error:
            assert str(error) == f"{tmp_path / 'a.wav'} is empty: repair or remove it"
    assert texts == {b"two": 2}


@pytest.mark.parametrize("column", ["file", "path", "file_name", "audio"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_forms_of_tables(column, suffix, tmp_path):
    write_sounds(tmp_path, "a.wav", "in/b.flac")
    rows = [("a.wav", "one, two"), ("./in/b.flac", "three")]
    lines = {
        "csv": [f"{column},text", *(f'{file},"{text}"' for file, text in rows)],
        "tsv": [f"{column}\ttext", *(f"{file}\t{text}" for file, text in rows)],
        "jsonl": [f'{{"{column}": "{file}", "text": "{text}"}}' for file, text in rows],
    }[suffix]
    write(tmp_path / f"transcripts.{suffix}", *lines)
    examples = read(tmp_path)
    found = {(x["id"].item(), x["text"].item(), int(x["audio"][0])) for x in examples}
    assert found == {(b"a.wav", b"one, two", 1), (b"in/b.flac", b"three", 2)}
    assert len(read(tmp_path / f"transcripts.{suffix}")) == 2  # the file itself is named


def test_a_table_for_each_split(tmp_path):
    write_sounds(tmp_path, "a.wav", "b.wav", "c.wav", "d.wav")
    write(tmp_path / "train.csv", "file,word", "a.wav,yes", "b.wav,no")
    write(tmp_path / "test.csv", "file,word", "c.wav,no")
    write(tmp_path / "val.csv", "file,word", "d.wav,yes")
    splits = open_splits(str(tmp_path), label="word")
    assert splits.train.features["label"].names == ["no", "yes"]
    assert [int(x["label"]) for x in splits.train.__getitems__([0, 1])] == [1, 0]
    assert splits.evaluation[0]["audio"][0] == 4 and splits.test[0]["audio"][0] == 3
    write(tmp_path / "test.csv", "file,word", "c.wav,maybe")
    with pytest.raises(UserError, match=r"test.csv, line 2 has the word 'maybe', which is none of the 2"):
        open_set(str(tmp_path), label="word")


def test_division_goes_by_names_of_files(tmp_path):
    names = [f"{i}.wav" for i in range(20)]
    write_sounds(tmp_path, *names, "new.wav")
    write(tmp_path / "transcripts.csv", "file,text", *(f"{name},x" for name in names))
    before = {x["id"].item() for x in read(tmp_path, "test")}
    write(tmp_path / "transcripts.csv", "file,text", *(f"{name},x" for name in reversed(names)))
    assert len(before) == 4
    assert {x["id"].item() for x in read(tmp_path, "test")} == before


def test_digest_sees_names_sizes_and_texts(tmp_path):
    write_sounds(tmp_path, "a.wav", "b.wav")
    write(tmp_path / "transcripts.csv", "file,text", "a.wav,one", "b.wav,two")
    digests = [open_set(str(tmp_path)).digest() for _ in range(2)]
    write(tmp_path / "transcripts.csv", "file,text", "a.wav,one", "b.wav,three")
    digests.append(open_set(str(tmp_path)).digest())
    sf.write(tmp_path / "a.wav", np.zeros(101, np.int16), 8000)
    digests.append(open_set(str(tmp_path)).digest())
    assert digests[0] == digests[1] and len(set(digests)) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("none.wav,x", r"transcripts.csv, line 3 names none.wav, and there is no such file in"),
        ("../b.wav,x", r"transcripts.csv, line 3 names ../b.wav, which is outside of"),
        ("in/../../b.wav,x", r"line 3 names in/../../b.wav, which is outside of"),
        ("/etc/passwd,x", r"line 3 names /etc/passwd, which is outside of"),
        (",x", r"line 3 has no file of a sound in file: ''"),
    ],
)
def test_files_that_a_table_must_not_name(row, message, tmp_path):
    write_sounds(tmp_path, "data/a.wav", "b.wav")
    write(tmp_path / "data/transcripts.csv", "file,text", "a.wav,one", row)
    with pytest.raises(UserError, match=message):
        open_set(str(tmp_path / "data"))


def test_paths_that_stay_inside_are_taken(tmp_path):
    write_sounds(tmp_path, "a.wav", "in/b.wav")
    write(tmp_path / "transcripts.csv", "file,text", f"{tmp_path}/a.wav,one", "in/../in/b.wav,two")
    assert {x["id"].item() for x in read(tmp_path)} == {b"a.wav", b"in/b.wav"}


def test_tables_that_lack_a_column(tmp_path):
    write_sounds(tmp_path, "a.wav")
    write(tmp_path / "transcripts.csv", "sound,text", "a.wav,one")
    with pytest.raises(UserError, match=r"has no column of the files of sounds: call one file"):
        open_set(str(tmp_path))
    write(tmp_path / "transcripts.csv", "file,words", "a.wav,one")
    with pytest.raises(UserError, match=r"neither a column text, the transcript, nor label, .*file, words"):
        open_set(str(tmp_path))
    (tmp_path / "transcripts.tsv").write_text("")
    with pytest.raises(UserError, match=r"are both the transcripts of"):
        open_set(str(tmp_path))


def test_a_table_of_texts_with_paths_stays_one_of_texts(tmp_path):
    write(tmp_path / "train.csv", "path,text,label", "a.py,x = 1,good", "b.py,x=1,bad")
    examples = read(tmp_path / "train.csv")
    assert {x["path"].item() for x in examples} == {b"a.py", b"b.py"} and "audio" not in examples[0]


def test_a_folder_of_classes(tmp_path):
    for name in ("0_theo_5.wav", "0_lucas_7.flac", "1_theo_5.wav", "1_lucas_7.flac"):
        folder = tmp_path / ("zero" if name[0] == "0" else "one")
        folder.mkdir(exist_ok=True)
        shutil.copy(DIGITS / name, folder)
    (tmp_path / "one" / "README.txt").write_text("beside the sounds")
    source = open_source(str(tmp_path), "train+test")
    assert source.features["label"].names == ["one", "zero"]
    assert open_set(str(tmp_path)).splits == {"train": 2, "test": 2}  # of each class one
    by_id = {x["id"].item(): x for x in source.__getitems__(range(4))}
    assert {key: int(x["label"]) for key, x in by_id.items()} == {
        b"zero/0_theo_5.wav": 1, b"zero/0_lucas_7.flac": 1, b"one/1_theo_5.wav": 0, b"one/1_lucas_7.flac": 0,
    }  # fmt: skip
    expected, _ = sf.read(DIGITS / "1_lucas_7.flac", dtype="int16")
    np.testing.assert_array_equal(by_id[b"one/1_lucas_7.flac"]["audio"], expected)


def test_a_folder_of_classes_with_splits(tmp_path):
    write_sounds(tmp_path, "train/a/1.wav", "train/b/2.OGG.wav", "val/a/3.flac")
    assert open_set(str(tmp_path)).splits == {"train": 2, "validation": 1}
    assert read(tmp_path, "test")[0]["audio"][0] == 3


def test_pictures_go_before_sounds(tmp_path):
    write_sounds(tmp_path, "a/1.wav", "b/2.wav")
    for name in "ab":
        Image.new("L", (3, 3)).save(tmp_path / name / "0.png")
    assert "image" in open_source(str(tmp_path), "train+test").features


def librispeech(folder, *subsets):
    for number, subset in enumerate(subsets):
        chapter = folder / subset / str(10 + number) / "7"
        key = f"{10 + number}-7"
        write_sounds(chapter, f"{key}-0000.flac", f"{key}-0001.flac")
        write(chapter / f"{key}.trans.txt", f"{key}-0000 GO ON", f"{key}-0001 IT'S {subset.upper()}")


def test_librispeech(tmp_path):
    subsets = ["train-clean-100", "train-other-500", "dev-clean", "test-clean", "test-other"]
    librispeech(tmp_path / "LibriSpeech", *subsets)
    dataset = open_set(str(tmp_path))
    assert dataset.splits == {
        "train": 4, "train_clean100": 2, "train_other500": 2, "validation": 2, "dev_clean": 2,
        "test": 4, "test_clean": 2, "test_other": 2,
    }  # fmt: skip
    (_, example) = read(tmp_path, "test_other")
    assert example["id"].item() == b"LibriSpeech/test-other/14/7/14-7-0001.flac"
    assert (example["text"].item(), int(example["speaker"]), int(example["chapter"])) == (
        b"IT'S TEST-OTHER",
        14,
        7,
    )
    assert (example["audio"][0], int(example["rate"])) == (2, 8000)
    splits = open_splits(str(tmp_path))
    assert (len(splits.train), len(splits.evaluation), len(splits.test)) == (4, 2, 4)


@pytest.mark.parametrize("root", ["", "train-clean-5", "train-clean-5/10", "train-clean-5/10/7"])
def test_a_part_of_librispeech(root, tmp_path):
    librispeech(tmp_path, "train-clean-5")
    assert open_set(str(tmp_path / root)).splits == {"train": 1, "test": 1}


def test_damaged_librispeech(tmp_path):
    librispeech(tmp_path, "train-clean-100", "test-clean")
    write(tmp_path / "test-clean/11/7/11-7.trans.txt", "11-7-0000 GO", "", "11-7-0009 NOT THERE")
    with pytest.raises(
        UserError, match=r"11-7.trans.txt, line 3 names 11-7-0009, and there is no 11-7-0009.flac"
    ):
        open_set(str(tmp_path))
    write(tmp_path / "test-clean/11/7/11-7.trans.txt", "hello there")
    with pytest.raises(UserError, match=r"line 1 is no SPEAKER-CHAPTER-NUMBER TEXT: hello there"):
        open_set(str(tmp_path))
    write(tmp_path / "test-clean/11/7/11-7.trans.txt", "11-7-../../x GO")
    with pytest.raises(UserError, match=r"line 1 names .* which is no file of its folder"):
        open_set(str(tmp_path))


def test_sounds_of_different_lengths_in_arrays():
    sounds = [np.full(n, n / 100) for n in (10, 20, 30, 40)]
    name = from_arrays({"audio": sounds, "rate": 16_000, "text": ["a", "b", "c", "d"]})
    examples = read(name)
    found = {x["text"].item(): (len(x["audio"]), int(x["audio"][0])) for x in examples}
    assert found == {b"a": (10, 3277), b"b": (20, 6554), b"c": (30, 9830), b"d": (40, 13107)}
    assert {(int(x["rate"]), x["rate"].dtype, x["audio"].dtype) for x in examples} == {
        (16_000, np.dtype(np.int64), np.dtype(np.int16))
    }
    features = open_source(name, "train").features
    assert (features["audio"].shape, features["audio"].np_dtype) == ((None,), np.int16)


def test_sounds_of_one_length_and_mixed_kinds_in_arrays():
    test = {"audio": [np.zeros(5, np.int16), np.zeros(5)], "rate": [8000, 16_000], "label": ["x", "y"]}
    name = from_arrays(
        {"audio": np.ones((3, 5), np.int16), "rate": np.full(3, 8000), "label": list("xyx")}, test=test
    )
    examples = read(name, "train") + read(name, "test")
    assert [int(x["audio"].sum()) for x in examples] == [5, 5, 5, 0, 0]
    assert [int(x["rate"]) for x in examples] == [8000, 8000, 8000, 8000, 16_000]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"audio": [np.zeros(3)]}, r"audio needs a rate beside it, in Hz"),
        ({"audio": [np.zeros(3)], "rate": [0]}, r"the sound 0 has a rate of 0 Hz"),
        ({"audio": [np.zeros(3)], "rate": [8000.5]}, r"rate holds one whole number of Hz"),
        ({"audio": [np.zeros(3), np.zeros((3, 2))], "rate": 8000}, r"the sound 1 is float64 \(3, 2\): give one"),
        ({"audio": [np.zeros(3), np.array([np.nan])], "rate": 8000}, r"the sound 1 holds NaN"),
        ({"audio": [np.zeros(3), np.zeros(0)], "rate": 8000}, r"the sound 1 holds no samples"),
        ({"audio": [np.array([0, 20_000.0])], "rate": 8000}, r"the sound 0 holds floats from 0 to 20000"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_sounds(columns, message):
    with pytest.raises(UserError, match=message):
        from_arrays(columns)


def test_sounds_in_an_npz(tmp_path):
    np.savez(
        tmp_path / "a.npz", audio=np.ones((10, 7), np.int16), rate=np.full(10, 8000), label=np.arange(10) % 2
    )
    examples = read(tmp_path / "a.npz")
    assert len(examples) == 10 and examples[0]["audio"].tolist() == [1] * 7
