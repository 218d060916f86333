"""Opening data sets by name: reading, slicing, pickling, and what goes wrong."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxaccel.data.data_sets import open_source
from jaxaccel.data.images import decode_image
from jaxaccel.data.tfds_names import find_prepared, parse_name
from jaxaccel.errors import UserError


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    open_source("digits", "train", directory=path)
    return path


def shard(directory, split="train"):
    return directory / "digits" / "1.0.0" / f"digits-{split}.array_record-00000-of-00001"


def test_neither_tensorflow_nor_jax_is_imported_and_nothing_is_printed(tmp_path):
    code = f"""
import sys
from jaxaccel.data.data_sets import open_source
source = open_source("digits", "test", directory={str(tmp_path)!r})
source[0]; source.__getitems__(range(64))
bad = [m for m in ("tensorflow", "cv2", "sklearn") if m in sys.modules]
assert not bad, bad
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_sources_do_not_import_jax():
    package = Path(sys.modules["jaxaccel"].__file__ or "").parent / "data"
    files = [
        package / f
        for f in ("__init__.py", "data_sets.py", "source.py", "folder.py", "arrays.py", "prepare.py")
    ]
    for file in [*files, *(package / "builders").rglob("*.py")]:
        assert "import jax\n" not in file.read_text() and "from jax " not in file.read_text()


def test_same_examples_as_tfds_reads(directory):
    import tensorflow_datasets as tfds

    source = open_source("digits", "test", directory=directory)
    theirs = tfds.builder_from_directory(str(directory / "digits" / "1.0.0")).as_data_source("test")
    for i, ours in zip(range(0, 450, 9), source.__getitems__(range(0, 450, 9)), strict=True):
        assert np.array_equal(theirs[i]["image"], ours["image"])
        assert theirs[i]["label"] == ours["label"]
        assert ours["image"].dtype == np.uint8 and ours["label"].dtype == np.int64


def test_slicing(directory):
    whole = open_source("digits", "train", directory=directory)
    part = open_source("digits", "train[50%:90%]", directory=directory)
    rest = open_source("digits", "train[:100]+test", directory=directory)
    assert len(part) == 538 and len(rest) == 550
    assert np.array_equal(part[0]["image"], whole[674]["image"])
    assert np.array_equal(part[-1]["image"], whole[674 + 537]["image"])
    with pytest.raises(IndexError):
        part[538]


def test_pickled_source_reads_the_same(directory):
    source = open_source("digits", "train[:90%]", directory=directory)
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == len(source) and copy.name == "digits" and copy.split == "train[:90%]"
    assert np.array_equal(copy[7]["image"], source[7]["image"])
    assert len(pickle.dumps(source)) < 1000


def test_name_with_version_and_path(directory, tmp_path):
    assert len(open_source("digits:1.0.0", "test", directory=directory)) == 450
    assert len(open_source("digits:1.*.*", "test", directory=directory)) == 450
    assert len(open_source(str(directory / "digits" / "1.0.0"), "test")) == 450
    with pytest.raises(UserError, match=r"in version 1.0.0 only, not 2.0.0"):
        open_source("digits:2.0.0", "test", directory=tmp_path)


def test_default_directory(directory, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(directory))
    assert len(open_source("digits", "test")) == 450


def test_find_prepared(tmp_path):
    def add(path):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "dataset_info.json").write_text("{}")

    for path in ("a/1.9.0", "a/1.10.0", "a/incomplete.XX_2.0.0", "b/only/1.0.0", "c/x/1.0.0", "c/y/1.0.0"):
        add(path)
    found = {
        n: find_prepared(parse_name(n), tmp_path) for n in ("a", "a:1.9.*", "a:2.*.*", "b", "b/x", "c/y")
    }
    relative = {n: p and p.relative_to(tmp_path).as_posix() for n, p in found.items()}
    expected = {"a": "a/1.10.0", "a:1.9.*": "a/1.9.0", "a:2.*.*": None}
    assert relative == expected | {"b": "b/only/1.0.0", "b/x": None, "c/y": "c/y/1.0.0"}
    with pytest.raises(UserError, match=r"several configurations.*c/x, c/y"):
        find_prepared(parse_name("c"), tmp_path)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("valid", r"^data set 'digits' has no split 'valid'; it has: train, test$"),
        ("train[:", r"^cannot read split 'train\[:' of data set 'digits': write it like train"),
        ("train[:9999]", "cannot read split"),
        ("train[:0]", "is empty"),
        ("", "split"),
    ],
)
def test_wrong_split(directory, split, message):
    with pytest.raises(UserError, match=message) as error:
        open_source("digits", split, directory=directory)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashon_mnist", "unknown data set 'fashon_mnist': did you mean fashion_mnist"),
        ("qqqqqqqq", "unknown data set 'qqqqqqqq': see tensorflow.org"),
        ("what is this", "neither a data set .* nor a folder that exists"),
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("folder:nowhere", "there is no folder nowhere"),
    ],
)
def test_unknown_name(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        open_source(name, "train", directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["truncate", "empty", "remove", "flip", "info"])
def test_damaged_set_is_named(directory, tmp_path, harm):
    copy = tmp_path / "tfds"
    shutil.copytree(directory, copy)
    file = shard(copy)
    content = file.read_bytes()
    if harm == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "remove":
        file.unlink()
    elif harm == "flip":
        file.write_bytes(
            content[:20_000] + bytes(b ^ 0xFF for b in content[20_000:20_016]) + content[20_016:]
        )
    else:
        (file.parent / "dataset_info.json").write_text("{broken")
    with pytest.raises(
        UserError, match=r"the prepared data set in .*digits/1.0.0 is damaged .*delete that folder"
    ):
        source = open_source("digits", "train", directory=copy)
        source.__getitems__(range(len(source)))
    assert len(open_source("digits", "test", directory=directory)) == 450


EVIL = "evil_feature.Feature"
LABEL = {"pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel"}
DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


def of_dict(**features):
    return {"pythonClassName": DICT, "featuresDict": {"features": features}}


@pytest.mark.parametrize(
    "features",
    [
        {"pythonClassName": EVIL, "jsonFeature": {"json": "{}"}},
        of_dict(label={"pythonClassName": EVIL, "jsonFeature": {"json": "{}"}}),
        of_dict(label={"python_class_name": EVIL, "jsonFeature": {"json": "{}"}}),
        of_dict(inner=of_dict(label={"pythonClassName": EVIL, "jsonFeature": {"json": "{}"}})),
        {"type": EVIL, "content": {}},
        {"type": DICT, "content": {"label": {"type": EVIL, "content": {}}}},
        {"type": DICT, "content": {"type": {"type": EVIL, "content": {}}, "content": LABEL}},
        # A feature's own JSON, as text.
        {"pythonClassName": DICT, "jsonFeature": {"json": json.dumps({"a": {"type": EVIL, "content": {}}})}},
        {"pythonClassName": "tensorflow_datasets.evil-.X"},
        {"pythonClassName": "tensorflow_datasets_evil.X"},
        {"pythonClassName": "tensorflow_datasets.__main__.X"},
        {"pythonClassName": ["evil_feature"]},
    ],
    ids=lambda features: json.dumps(features)[:60],
)
def test_classes_of_others_are_not_imported(directory, tmp_path, monkeypatch, features):
    copy = tmp_path / "tfds"
    shutil.copytree(directory, copy)
    (shard(copy).parent / "features.json").write_text(json.dumps(features))
    (tmp_path / "evil_feature.py").write_text("from pathlib import Path; Path('canary').touch()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"only those of tensorflow_datasets are imported"):
        open_source("digits", "train", directory=copy)
    assert not (tmp_path / "canary").exists() and "evil_feature" not in sys.modules


def test_features_may_have_any_names_and_descriptions(tmp_path):
    from jaxaccel.data.features_file import check_features

    features = of_dict(type=LABEL | {"description": "[1] {of"}, content=LABEL, pythonClassName=LABEL)
    (tmp_path / "features.json").write_text(json.dumps(features))
    check_features(tmp_path)


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot prepare the data set in .*file/x .*another data.dir"):
        open_source("digits", "train", directory=tmp_path / "file" / "x")


def test_missing_downloads_folder(tmp_path):
    with pytest.raises(UserError, match="is not a folder") as caught:
        open_source("mnist", "train", directory=tmp_path, downloads=tmp_path / "nothing")
    assert caught.value.as_flags() == f"--data.downloads {tmp_path}/nothing is not a folder"


def test_two_processes_prepare_at_once(tmp_path):
    code = f"""
from jaxaccel.data.data_sets import open_source
print(len(open_source("digits", "test", directory={str(tmp_path)!r})))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    assert [p.communicate(timeout=120)[0] for p in processes] == ["450\n"] * 2
    assert [p.name for p in (tmp_path / "digits").iterdir()] == ["1.0.0"]


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 3), ("RGBA", 3), ("P", 3), ("RGB", 1), ("LA", 1), ("1", 1)]
)
def test_images_get_the_channels_of_the_feature(mode, channels):
    import io

    from PIL import Image

    image = Image.fromarray(np.arange(120, dtype=np.uint8).reshape(5, 8, 3)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    decoded = decode_image(buffer.getvalue(), channels)
    assert decoded.shape == (5, 8, channels)
    expected = np.asarray(image.convert({1: "L", 3: "RGB"}[channels])).reshape(5, 8, channels)
    assert np.array_equal(decoded, expected)


def test_other_features_are_left_to_tfds():
    import tensorflow_datasets as tfds

    from jaxaccel.data.builders.png import encode_png
    from jaxaccel.data.decode import example_decoder

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(4, 4, 3)),
            "box": tfds.features.BBoxFeature(),
            "t": tfds.features.Text(),
        }
    )
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    box = tfds.features.BBox(0.1, 0.2, 0.3, 0.4)
    record = features.serialize_example(
        features.encode_example({"image": encode_png(pixels), "box": box, "t": "a"})
    )
    example = example_decoder(features)(record)
    assert np.array_equal(example["image"], pixels)
    assert np.allclose(example["box"], [0.1, 0.2, 0.3, 0.4]) and example["t"].item() == b"a"
