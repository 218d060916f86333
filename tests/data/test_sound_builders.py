"""The builders of data sets of sounds: spoken digits, sequences of them, words, and yes-no."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from conftest import FIXTURES

from jaxaccel.data import prepare
from jaxaccel.data.builders import builder_class, spoken_sequences
from jaxaccel.data.builders.original_files import sha256
from jaxaccel.data.builders.sound_archives import hash_members, read_members
from jaxaccel.data.builders.spoken_digit import WORDS, DigitRecordings, SpokenDigit, parse_name
from jaxaccel.data.builders.spoken_sequences import join_digits
from jaxaccel.data.builders.yesno import YesNo
from jaxaccel.data.data_sets import open_set, open_source
from jaxaccel.data.tfds_names import DatasetName
from jaxaccel.errors import UserError

THEO = FIXTURES / "spoken_digits"


def encode(samples, rate=8000, form="WAV"):
    buffer = io.BytesIO()
    sf.write(buffer, np.asarray(samples, np.int16), rate, format=form)
    return buffer.getvalue()


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def place(monkeypatch, cls, path, members, mode="w:gz"):
    """Writes an archive, and makes the builder expect what is in it."""
    make_tar(path, members, mode)
    monkeypatch.setattr(cls, "CONTENT", hash_members(read_members(path, cls.MEMBERS)))


def read(name, split, folder):
    source = open_source(name, split, directory=folder / "prepared", downloads=folder)
    return source, source.__getitems__(range(len(source)))


def digit_members(speakers=("theo", "lucas"), numbers=(0, 4, 5, 49)):
    """Each recording holds its digit, number and the length of the speaker's name, in 20 to 29 samples."""
    return {
        f"free-spoken-digit-dataset-1.0.10/recordings/{digit}_{speaker}_{number}.wav": encode(
            [1000 * digit + number * 10 + len(speaker)] * (20 + digit)
        )
        for digit in range(10)
        for speaker in speakers
        for number in numbers
    }


def test_spoken_digit(tmp_path, monkeypatch):
    members = digit_members() | {"free-spoken-digit-dataset-1.0.10/acquire_data/x.wav": b"no recording"}
    place(monkeypatch, DigitRecordings, tmp_path / SpokenDigit.ARCHIVES[1], members)
    source, test = read("spoken_digit", "test", tmp_path)
    assert open_set("spoken_digit", directory=tmp_path / "prepared").splits == {"train": 40, "test": 40}
    assert {example["filename"].item().decode().split("_")[2] for example in test} == {"0.wav", "4.wav"}
    assert source.features["label"].names == list(WORDS)
    (example,) = [x for x in test if x["filename"].item() == b"7_lucas_4.wav"]
    assert example["audio"].tolist() == [7045] * 27 and example["audio"].dtype == np.int16
    assert (int(example["rate"]), int(example["label"])) == (8000, 7)
    assert (example["text"].item(), example["speaker"].item()) == (b"seven", b"lucas")


def test_a_real_recording_is_kept_as_it_is(tmp_path, monkeypatch):
    members = {f"x/recordings/{path.name}": path.read_bytes() for path in THEO.glob("*.wav")}
    members |= {"x/recordings/0_theo_0.wav": encode([1])}
    place(monkeypatch, DigitRecordings, tmp_path / SpokenDigit.ARCHIVES[0], members)
    _, train = read("spoken_digit", "train", tmp_path)
    assert len(train) == 10
    for example in train:
        expected, _ = sf.read(THEO / example["filename"].item().decode(), dtype="int16")
        np.testing.assert_array_equal(example["audio"], expected)


def test_other_recordings_are_refused(tmp_path, monkeypatch):
    path = tmp_path / SpokenDigit.ARCHIVES[0]
    place(monkeypatch, DigitRecordings, path, digit_members())
    make_tar(path, digit_members(numbers=(0, 5)))
    with pytest.raises(
        UserError, match=r"1.0.10.tar.gz does not hold the recordings .*sha256 of 40 files expected"
    ):
        read("spoken_digit", "train", tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"1.0.10.tar.gz is damaged or is no tar archive"):
        read("spoken_digit", "train", tmp_path)


def test_archives_differ_and_their_content_does_not(tmp_path):
    files = digit_members(numbers=(0,))
    make_tar(tmp_path / "a.tar.gz", files)
    make_tar(
        tmp_path / "b.tar.xz", {f"other/{k.partition('/')[2]}": files[k] for k in reversed(files)}, "w:xz"
    )
    found = {
        hash_members(read_members(tmp_path / x, DigitRecordings.MEMBERS)) for x in ("a.tar.gz", "b.tar.xz")
    }
    assert len(found) == 1
    with pytest.raises(UserError, match=r"two files 0_theo_0.wav"):
        twice = {"a/recordings/0_theo_0.wav": b"1", "b/recordings/0_theo_0.wav": b"1"}
        make_tar(tmp_path / "c.tar", twice, "w")
        read_members(tmp_path / "c.tar", DigitRecordings.MEMBERS)


def takes():
    """Two recordings of each digit, of different levels."""
    return {
        digit: [np.full(50 + take, 1000 * (digit + 1) + take, np.int16) for take in (0, 1)]
        for digit in range(10)
    }


def test_a_sequence_holds_its_digits_in_order():
    lengths = set()
    for i in range(200):
        audio, digits = join_digits(takes(), (1, 2, i))
        lengths.add(len(digits))
        # The noise has 64 steps at most, and levels are 1,000 apart.
        levels = np.rint(audio / 1000).astype(int)
        ends = np.flatnonzero(np.diff(levels)) + 1
        runs = np.split(levels, ends)
        gaps, said = runs[::2], runs[1::2]
        assert [int(run[0]) - 1 for run in said] == digits
        assert all(len(run) in (50, 51) for run in said)
        assert all(run[0] == 0 and 400 <= len(run) <= 3200 for run in gaps) and len(gaps) == len(digits) + 1
        assert 3 <= np.abs(audio[: len(gaps[0])]).max() <= 64
    assert lengths == {3, 4, 5, 6, 7}


def test_sequences_are_the_same_on_any_machine():
    total = hashlib.sha256()
    for i in range(3):
        total.update(join_digits(takes(), (spoken_sequences.SEED, 0, i)).audio.astype("<i2").tobytes())
    assert total.hexdigest() == "c8c801c2ad314caa6f576144206d3a4a768132c4a77ab4a5138d2d223d2a22ff"
    assert join_digits(takes(), (1, 0, 0)).digits != join_digits(takes(), (2, 0, 0)).digits


def test_spoken_sequences(tmp_path, monkeypatch):
    monkeypatch.setattr(spoken_sequences, "COUNTS", {"train": 12, "test": 4, "heldout": 3})
    members = digit_members(("theo", "jackson", "lucas"), (0, 4, 5, 49))
    place(monkeypatch, DigitRecordings, tmp_path / SpokenDigit.ARCHIVES[1], members)
    for split, count in (("train", 12), ("test", 4), ("heldout", 3)):
        _, examples = read("spoken_sequences", split, tmp_path)
        assert len(examples) == count
        speakers = [example["speaker"].item().decode() for example in examples]
        expected = (
            ["lucas"] * 3 if split == "heldout" else ["jackson"] * (count // 2) + ["theo"] * (count // 2)
        )
        assert sorted(speakers) == expected
        for example in examples:
            digits = [WORDS.index(word) for word in example["text"].item().decode().split()]
            assert 3 <= len(digits) <= 7 and int(example["rate"]) == 8000
            loud = example["audio"][np.abs(example["audio"]) > 900]
            assert len(loud) <= sum(20 + digit for digit in digits)


def test_takes_are_those_of_the_split(tmp_path, monkeypatch):
    path = tmp_path / SpokenDigit.ARCHIVES[1]
    place(monkeypatch, DigitRecordings, path, digit_members(("theo", "lucas")))
    builder = builder_class("spoken_sequences")(
        data_dir=str(tmp_path), file_format="array_record", downloads=tmp_path
    )
    found = builder._read_speakers()
    assert {split: sorted(speakers) for split, speakers in found.items()} == {
        "train": ["theo"], "test": ["theo"], "heldout": ["lucas"]
    }  # fmt: skip
    numbers = {
        split: [int(take[0] - 3000) // 10 for take in next(iter(speakers.values()))[3]]
        for split, speakers in found.items()
    }
    assert numbers == {"train": [5, 49], "test": [0, 4], "heldout": [0, 4, 5, 49]}


def word_members(extra=""):
    rows = [
        "yes/aa_nohash_0.flac,yes,aa,test",
        "no/aa_nohash_0.flac,no,aa,test",
        "up/bb_nohash_1.flac,up,bb,train",
    ]
    clips = {row.split(",")[0]: encode([number + 1] * 9, 16_000, "FLAC") for number, row in enumerate(rows)}
    return clips | {
        "splits.csv": "\n".join([*rows, *([extra] if extra else []), ""]).encode(),
        "README.md": b"x",
    }


def place_words(monkeypatch, folder, members):
    cls = builder_class("speech_words")
    file = cls.ORIGINALS["all"]
    make_tar(folder / file.filename, members, "w")
    monkeypatch.setattr(cls, "ORIGINALS", {"all": file._replace(sha256=sha256(folder / file.filename))})


def test_speech_words(tmp_path, monkeypatch):
    place_words(monkeypatch, tmp_path, word_members())
    source, test = read("speech_words", "test", tmp_path)
    assert source.features["label"].names == ["yes", "no", "up", "down"]
    found = {(int(x["label"]), x["speaker"].item(), x["audio"].tolist()[0], int(x["rate"])) for x in test}
    assert found == {(0, b"aa", 1, 16_000), (1, b"aa", 2, 16_000)}
    (example,) = read("speech_words", "train", tmp_path)[1]
    assert (int(example["label"]), example["filename"].item()) == (2, b"up/bb_nohash_1.flac")


def test_speech_words_without_their_file(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"'speech_words' is prepared of speech_commands_v0.02-yes_no_up_down.tar"
    ):
        read("speech_words", "test", tmp_path)
    place_words(monkeypatch, tmp_path, word_members("down/cc_nohash_0.flac,down,cc,test"))
    with pytest.raises(UserError, match=r"is damaged or is another archive"):
        read("speech_words", "test", tmp_path)


def test_yesno(tmp_path, monkeypatch):
    names = ["_".join(f"{i:08b}") for i in range(8)]
    members = {f"waves_yesno/{name}.wav": encode([i] * 5) for i, name in enumerate(names)}
    place(monkeypatch, YesNo, tmp_path / "waves_yesno.tar.xz", members | {"waves_yesno/README": b"x"}, "w:xz")
    _, test = read("yesno", "test", tmp_path)
    assert {x["text"].item().decode() for x in test} == {
        "no no no no no no yes yes",
        "no no no no no yes yes yes",
    }
    _, train = read("yesno", "train", tmp_path)
    assert sorted(int(x["audio"][0]) for x in train) == [0, 1, 2, 4, 5, 6]


def test_names_of_recordings():
    assert parse_name("7_jackson_32.wav") == (7, "jackson", 32)
    assert [parse_name(f"0_theo_{n}.wav").is_test for n in (0, 4, 5, 49)] == [True, True, False, False]


def test_other_versions_are_those_of_tfds():
    asked = [
        ("spoken_digit", None),
        ("spoken_digit", "1.0.10"),
        ("spoken_digit", "1.0.9"),
        ("yesno", "1.0.0"),
    ]
    asked += [("yesno", "1.*.*"), ("mnist", "3.0.0")]
    ours = [prepare._is_ours(DatasetName(name, None, version)) for name, version in asked]
    assert ours == [True, True, False, False, True, True]


REAL = {
    "spoken_digit": ("spoken_digit", {"train": 2700, "test": 300}),
    "speech_words": ("speech_commands", {"train": 1007, "test": 1655}),
    "yesno": ("yesno", {"train": 45, "test": 15}),
    "spoken_sequences": ("spoken_digit", {"train": 4000, "test": 500, "heldout": 500}),
}


@pytest.mark.data
@pytest.mark.skipif("JAXACCEL_DATA_DIR" not in os.environ, reason="needs JAXACCEL_DATA_DIR")
@pytest.mark.parametrize("name", REAL)
def test_real_data(name, tmp_path):
    folder, counts = REAL[name]
    downloads = Path(os.environ["JAXACCEL_DATA_DIR"], folder)
    dataset = open_set(name, directory=tmp_path, downloads=downloads)
    assert dataset.splits == counts
    if name == "spoken_digit":
        examples = dataset.open("train+test").__getitems__(range(3000))
        assert round(sum(len(x["audio"]) for x in examples) / 8000) == 1312  # seconds
        assert {x["speaker"].item() for x in examples} == {
            b"george", b"jackson", b"lucas", b"nicolas", b"theo", b"yweweler"
        }  # fmt: skip
