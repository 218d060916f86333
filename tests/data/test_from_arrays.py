"""Arrays of a session and of a file.npz as data sets."""

import pickle

import numpy as np
import pytest
from PIL import Image

from jaxaccel.data import from_arrays
from jaxaccel.data.data_sets import open_source
from jaxaccel.errors import UserError

LABELS = np.arange(40) % 4
IMAGES = np.arange(40 * 6, dtype=np.uint8).reshape(40, 2, 3)


class Frame:
    """The part of a pandas DataFrame that is used."""

    def __init__(self, **columns):
        self._columns = columns

    def keys(self):
        return self._columns.keys()

    def __getitem__(self, key):
        return Series(self._columns[key])


class Series:
    def __init__(self, values):
        self._values = values

    def to_numpy(self):
        return np.array([*self._values, None], object)[:-1]


def whole(name):
    """All examples of a data set's splits, sorted by image and label."""
    source = open_source(name, "train+test")
    return sorted((e["image"].tobytes(), int(e["label"])) for e in source.__getitems__(range(len(source))))


EXPECTED = sorted((x.tobytes(), int(y)) for x, y in zip(IMAGES, LABELS, strict=True))


@pytest.mark.parametrize(
    "arrays",
    [
        {"image": IMAGES, "label": LABELS},
        {"image": IMAGES[..., None].astype(np.float64), "label": LABELS.astype(np.uint8)},
        {"image": list(IMAGES.astype(np.int64)), "label": LABELS.tolist()},
        [{"image": x, "label": y} for x, y in zip(IMAGES, LABELS, strict=True)],
        [(Image.fromarray(x), int(y)) for x, y in zip(IMAGES, LABELS, strict=True)],
        Frame(image=IMAGES, label=LABELS),
    ],
    ids=["arrays", "floats", "lists", "dicts", "pairs", "frame"],
)
def test_every_way_to_give_the_same_pictures(arrays):
    name = from_arrays(arrays)
    train, test = (open_source(name, split) for split in ("train", "test"))
    assert whole(name) == EXPECTED
    assert (len(train), len(test)) == (32, 8)
    assert np.bincount([int(test[i]["label"]) for i in range(8)]).tolist() == [2, 2, 2, 2]
    assert train.features["image"].shape == (2, 3, 1) and train.features["label"].names == [
        "0",
        "1",
        "2",
        "3",
    ]
    assert train[0]["image"].dtype == np.uint8 and train[0]["label"].dtype == np.int64


def test_splits_and_names_of_classes():
    parts = {key: {"image": IMAGES[rows], "label": LABELS[rows]} for key, rows in
             {"train": slice(0, 20), "validation": slice(20, 30), "test": slice(30, 40)}.items()}  # fmt: skip
    name = from_arrays(parts["train"], validation=parts["validation"], test=parts["test"], class_names="abcd")
    assert np.array_equal(open_source(name, "val[5:]")[0]["image"][..., 0], IMAGES[25])
    assert len(open_source(name, "train+test")) == 30
    assert open_source(name, "test").features["label"].names == ["a", "b", "c", "d"]


def test_labels_that_are_texts():
    name = from_arrays({"image": IMAGES, "label": np.array(["dog", "cat"])[LABELS % 2]})
    source = open_source(name, "train+test")
    assert source.features["label"].names == ["cat", "dog"]
    assert {bytes(e["image"].tobytes()): int(e["label"]) for e in source.__getitems__(range(40))} == {
        x.tobytes(): int(1 - y % 2) for x, y in zip(IMAGES, LABELS, strict=True)
    }


def test_other_columns_are_kept_as_they_are():
    name = from_arrays(
        {"x": np.linspace(0, 1, 40), "table": np.ones((40, 5), np.float32), "text": ["é"] * 40}
    )
    source = open_source(name, "train")
    assert source[0]["table"].dtype == np.float32 and source[0]["text"].item() == "é".encode()
    assert source.features["table"].shape == (5,) and source.features["x"].shape == ()


def test_pictures_of_different_sizes():
    pictures = [np.full((2 + i % 3, 4, 3), i, np.uint8) for i in range(10)]
    source = open_source(from_arrays({"image": pictures, "label": [0, 1] * 5}), "train+test")
    assert source.features["image"].shape == (None, None, 3)
    assert sorted(int(e["image"][0, 0, 0]) for e in source.__getitems__(range(10))) == list(range(10))


def test_scales_of_floats():
    rng = np.random.default_rng(0)
    shares = rng.random((8, 4, 4, 3))
    for given, expected in ((shares, shares), (shares * 255, shares), (shares - 0.5, shares - 0.5)):
        source = open_source(from_arrays({"image": given, "label": np.zeros(8, int)}), "train+test")
        found = np.sort(np.stack([e["image"] for e in source.__getitems__(range(8))]), axis=None)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.sort(expected, axis=None), atol=1e-6)


def test_the_name_is_a_digest_of_the_content():
    arrays = {"image": IMAGES.copy(), "label": LABELS}
    name = from_arrays(arrays)
    assert from_arrays({"label": LABELS.tolist(), "image": IMAGES}) == name
    assert from_arrays(arrays, class_names="abcd") != name
    changed = IMAGES.copy()
    changed[7, 1, 1] += 1
    assert from_arrays({"image": changed, "label": LABELS}) != name
    with pytest.raises(UserError, match="arrays:0123 are arrays of another Python session: call from_arrays"):
        open_source("arrays:0123", "train")


def test_pickled_splits_read_the_same():
    source = open_source(from_arrays({"image": IMAGES, "label": LABELS}), "test")
    assert source.features
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 8 and np.array_equal(copy[3]["image"], source[3]["image"])
    assert copy.features["label"].num_classes == 4


def changed_label(value):
    labels = LABELS.copy()
    labels[17] = value
    return labels


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        ({"image": IMAGES, "label": changed_label(-1)}, {}, r"label of example 17 is -1: there are 4 classes"),
        ({"image": IMAGES, "label": changed_label(9)}, {"class_names": "abcd"}, r"label of example 17 is 9: there"),
        ({"image": IMAGES, "label": ["a"] * 39 + ["x"]}, {"class_names": ["a"]}, r"example 39 is 'x', which is not"),
        ({"image": IMAGES, "label": LABELS[:-1]}, {}, r"same number of examples, .* 'label': 39"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, {}, "at least one"),
        ({"image": IMAGES.astype(int) * 300, "label": LABELS}, {}, "whole numbers from 0 to 71700"),
        ({"image": np.full((40, 4, 4), np.nan), "label": LABELS}, {}, "image holds NaN"),
        ({"image": np.zeros((40, 3, 32, 32)), "label": LABELS}, {}, "channels come last"),
        ({"image": np.zeros((40, 784)), "label": LABELS}, {}, r"image must hold numbers \(N, H, W, C\)"),
        ([{"image": 1}, {"label": 2}], {}, "example 1 has label, example 0 has image"),
        ("digits", {}, "arrays are a mapping"),
        ([], {}, "at least one"),
        ({"image": IMAGES, "label": LABELS}, {"test": {"image": IMAGES}}, "different arrays"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arrays, options, says):
    with pytest.raises(UserError, match=says) as error:
        from_arrays(arrays, **options)
    assert "\n" not in str(error.value)


def test_npz(tmp_path):
    path = tmp_path / "my.npz"
    np.savez(path, image=IMAGES, label=LABELS, class_names=np.array(["a", "b", "c", "d"]))
    assert whole(str(path)) == EXPECTED
    assert open_source(str(path), "test").features["label"].names == ["a", "b", "c", "d"]
    train, test = slice(0, 30), slice(30, 40)
    np.savez_compressed(
        path,
        train_image=IMAGES[train],
        train_label=LABELS[train],
        test_image=IMAGES[test],
        test_label=LABELS[test],
    )
    test = open_source(str(path), "test")
    assert [int(e["label"]) for e in test.__getitems__(range(10))] == LABELS[30:].tolist()


def test_bad_npz_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxaccel.core.formats.npz_files.FLOOR", 1000)
    path = tmp_path / "my.npz"
    np.savez_compressed(path, image=np.zeros((4, 1000, 1000), np.uint8), label=np.zeros(400))
    bomb = path.read_bytes()
    np.savez(path, image=np.array([{}], object), label=np.zeros(1))
    objects = path.read_bytes()
    np.savez(path, train_x=LABELS, other=LABELS)
    names = path.read_bytes()
    np.savez(path, image=IMAGES, label=changed_label(-1))
    wrong = path.read_bytes()
    cases = {b"": "no whole npz", b"text": "no whole npz", bomb: "claims to hold 4,0", objects: "of type object",
             objects[:100]: "no whole npz", names: "holds train_x, other: name its arrays",
             wrong: "example 17 is -1"}  # fmt: skip
    for content, says in cases.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=says) as error:
            open_source(str(path), "train")
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=r"my\.npz"):
        open_source(str(path), "train")
