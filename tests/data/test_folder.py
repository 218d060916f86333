"""A folder of images as a data set."""

import pickle

import numpy as np
import pytest
from PIL import Image

from jaxaccel.data.data_sets import open_source, open_splits
from jaxaccel.errors import UserError


def write(path, value, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def flowers(tmp_path):
    """20 roses and 10 tulips of different colors; roses are one wide, so sizes differ."""
    for i in range(20):
        write(tmp_path / "rose" / f"{i:02d}.png", (i, 0, 0))
    for i in range(10):
        write(tmp_path / "tulip" / "deeper" / f"{i:02d}.png", (0, i, 0), size=(8, 8))
    (tmp_path / "rose" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_folder_is_split_by_class(flowers):
    train, test = (open_source(str(flowers), split) for split in ("train", "test"))
    assert (len(train), len(test)) == (24, 6)
    assert np.bincount([int(test[i]["label"]) for i in range(6)]).tolist() == [4, 2]
    assert train.features["label"].names == ["rose", "tulip"]
    assert train.features["image"].shape == (None, None, 3)
    ids = {e["id"].item() for s in (train, test) for e in s.__getitems__(range(len(s)))}
    assert len(ids) == 30
    example = test[0]
    assert example["image"].shape == (4, 6, 3) and example["image"].dtype == np.uint8
    assert example["image"][0, 0].tolist() == [int(example["id"].item()[5:7]), 0, 0]


def test_split_does_not_move_and_can_be_pickled(flowers):
    source = open_source(f"folder:{flowers}", "test")
    ids = [e["id"].item().decode() for e in source.__getitems__(range(len(source)))]
    assert ids == [
        "rose/02.png",
        "rose/05.png",
        "rose/06.png",
        "rose/07.png",
        "tulip/deeper/03.png",
        "tulip/deeper/05.png",
    ]
    copy = pickle.loads(pickle.dumps(source))
    assert [e["id"].item().decode() for e in copy.__getitems__(range(len(copy)))] == ids
    assert len(open_source(str(flowers), "train[:50%]")) == 12


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_split_folders(tmp_path, name):
    write(tmp_path / "train" / "a" / "1.png", 3, mode="L")
    write(tmp_path / "train" / "b" / "1.png", 4, mode="L")
    write(tmp_path / name / "b" / "2.png", 5, mode="L")
    test = open_source(str(tmp_path), "test")
    assert len(test) == 1 and len(open_source(str(tmp_path), "train")) == 2
    assert test[0]["label"] == 1 and test[0]["image"].shape == (4, 6, 1) and test[0]["image"][0, 0, 0] == 5
    assert test.features["image"].shape == (4, 6, 1)


def test_three_split_folders(tmp_path):
    for split in ("train", "val", "test"):
        write(tmp_path / split / "a" / f"{split}.png", 3, mode="L")
    assert open_source(str(tmp_path), "test")[0]["id"].item() == b"test/a/test.png"
    assert open_source(str(tmp_path), "val")[0]["id"].item() == b"val/a/val.png"


def test_bad_folders(tmp_path, flowers):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images found in .*empty: it must hold one subfolder a class"):
        open_source(str(tmp_path / "empty"), "train")
    with pytest.raises(UserError, match="has no split 'valid'; it has: train, test"):
        open_source(str(flowers), "valid")


def test_unreadable_image_is_named(tmp_path):
    write(tmp_path / "a" / "1.png", 3)
    write(tmp_path / "a" / "2.png", 3)
    good = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "a" / "2.png").write_bytes(good[:-30])
    with pytest.raises(UserError, match=r"cannot read the image .*a/2.png"):
        for split in ("train", "test"):
            open_source(str(tmp_path), split)[0]
    (tmp_path / "a" / "2.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"cannot read the image .*a/2.png"):
        open_source(str(tmp_path), "train")


def test_three_split_folders_are_three_splits(tmp_path):
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        for i in range(count):
            write(tmp_path / split / "a" / f"{i}.png", i)
            write(tmp_path / split / "b" / f"{i}.png", 100 + i)
    splits = open_splits(str(tmp_path))
    assert splits.test is not None
    assert [len(source) for source in (splits.train, *splits.held_out)] == [12, 6, 4]
    assert (
        splits.evaluation[0]["id"].item() == b"val/a/0.png" and splits.test[0]["id"].item() == b"test/a/0.png"
    )
    assert len(open_source(str(tmp_path), "validation")) == len(open_source(str(tmp_path), "val")) == 6
