"""The builders that prepare data sets without TensorFlow."""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from grids import slow_but

from jaxaccel.data.builders import cifar10, idx, original_files
from jaxaccel.data.builders.cifar10 import Cifar10, parse_binary, parse_python, parse_tiles
from jaxaccel.data.builders.digits.digits_dataset_builder import choose_test, load_digits
from jaxaccel.data.builders.idx import Mnist, read_idx
from jaxaccel.data.data_sets import open_source
from jaxaccel.errors import UserError

MNIST = [2, 0, 4, 8, 7, 6, 0, 6, 3, 1, 8, 0, 7, 9, 8, 4]
FASHION = [4, 4, 9, 7, 5, 1, 0, 5, 7, 4, 0, 8, 2, 3, 9, 0]


@pytest.fixture
def small_mnist(monkeypatch):
    """The mnist builder, made to expect the small files in tests/fixtures."""
    small = {
        key: file._replace(sha256=original_files.sha256(FIXTURES / "mnist" / file.filename))
        for key, file in Mnist.ORIGINALS.items()
    }
    monkeypatch.setattr(Mnist, "ORIGINALS", small)
    return small


@pytest.fixture
def small_tiles(monkeypatch):
    tiles = {
        "train-0": "7ace2635944cd1d35714bafe452223292934d7ed7fcd9b502a2c31aab7451ea0",
        "test": "5cc7b5d69a26327ac5606634c9b0067466b6d14410449451aedecc8938de3931",
    }
    monkeypatch.setattr(Cifar10, "TILES", tiles)


def test_digits_are_those_of_scikit_learn_and_their_split_is_fixed():
    images, labels = load_digits()
    content = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert content == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    test = choose_test(labels)
    chosen = hashlib.sha256(test.astype("<i4").tobytes()).hexdigest()
    assert chosen == "f044fd9eceb26a589baf3a94eb3b1ae8e5a12a5224996ec0500b4a702cbb3110"
    share = np.bincount(labels[test]) / np.bincount(labels)
    assert len(test) == 450
    assert np.all(np.abs(share - 0.25) < 0.005)


def test_digits_prepared(tmp_path):
    train, test = (open_source("digits", split, directory=tmp_path) for split in ("train", "test"))
    assert (len(train), len(test)) == (1347, 450)
    assert train.features["image"].shape == (8, 8, 1)
    assert train.features["label"].names == [str(i) for i in range(10)]
    examples = [e for s in (train, test) for e in s.__getitems__(range(len(s)))]
    images, labels = load_digits()
    scaled = np.floor(images.astype(int) * 255 / 16 + 0.5).astype(np.uint8)
    found = sorted((int(e["label"]), e["image"].tobytes()) for e in examples)
    assert found == sorted((int(y), x.tobytes()) for x, y in zip(scaled, labels, strict=True))


def test_notice_stands_beside_the_digits():
    folder = Path(idx.__file__).parent / "digits"
    notice = (folder / "NOTICE").read_text()
    assert "10.24432/C50P49" in notice and "CC BY 4.0" in notice and "BSD 3-Clause" in notice
    assert (folder / "digits.npz").stat().st_size < 60_000


def test_mnist_decodes_to_the_bytes_of_its_files(small_mnist, tmp_path):
    source = open_source("mnist", "train", directory=tmp_path, downloads=FIXTURES)
    images = read_idx(FIXTURES / "mnist" / "train-images-idx3-ubyte.gz")
    labels = read_idx(FIXTURES / "mnist" / "train-labels-idx1-ubyte.gz")
    examples = source.__getitems__(range(len(source)))
    expected = sorted((int(y), x.tobytes()) for x, y in zip(images, labels, strict=True))
    assert sorted((int(e["label"]), e["image"].tobytes()) for e in examples) == expected
    assert images.shape == (64, 28, 28) and source[0]["image"].shape == (28, 28, 1)
    assert [p.name for p in (tmp_path / "mnist").iterdir()] == ["3.0.1"]


def test_files_may_have_the_names_of_tfds(small_mnist, tmp_path):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for file in small_mnist.values():
        (downloads / file.tfds_filename).write_bytes((FIXTURES / "mnist" / file.filename).read_bytes())
    assert len(open_source("mnist", "test", directory=tmp_path / "prepared", downloads=downloads)) == 32


def test_name_in_a_download_folder_is_that_of_tfds():
    name = "cvdf-datasets_mnist_t10k-labels-idx1-ubyte965g-S4A7G3r0jpgiMMdvSNx7KP_oN7677JZkkIErsY.gz"
    assert Mnist.ORIGINALS["test_labels"].tfds_filename == name


def test_files_of_another_data_set_are_refused(small_mnist, tmp_path):
    with pytest.raises(UserError, match=r"train-images.*'fashion_mnist': sha256 expected 3aede38d.*, found "):
        open_source("fashion_mnist", "train", directory=tmp_path, downloads=FIXTURES / "mnist")
    assert not (tmp_path / "fashion_mnist" / "3.0.1").exists()


def test_download_is_checked_and_kept(small_mnist, tmp_path, monkeypatch):
    handler = partial(SimpleHTTPRequestHandler, directory=str(FIXTURES / "mnist"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}/"
        files = {key: file._replace(url=base + file.filename) for key, file in small_mnist.items()}
        monkeypatch.setattr(Mnist, "ORIGINALS", files)
        assert len(open_source("mnist", "train", directory=tmp_path)) == 64
        wrong = files["test_labels"]._replace(sha256="0" * 64)
        with pytest.raises(UserError, match="did not give the t10k-labels"):
            original_files.download(wrong, "mnist", tmp_path / "x")
        gone = files["test_labels"]._replace(url=base + "nothing.gz")
        with pytest.raises(UserError, match=r"cannot download .*nothing.gz .*data.downloads=DIR"):
            original_files.download(gone, "mnist", tmp_path / "x")
        server.shutdown()
    assert list((tmp_path / "x").iterdir()) == []
    assert len(list((tmp_path / "downloads" / "mnist").iterdir())) == 4


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x00\x08", b"\x00\x00\x0d\x01", b"\x00\x00\x08\x01\x00\x00\x00\x09ab"]
)
def test_bad_idx_is_refused(content, tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=r"a.gz"):
        read_idx(tmp_path / "a.gz")
    (tmp_path / "b.gz").write_bytes(gzip.compress(content)[:-3])
    with pytest.raises(UserError, match="is no whole gzip file"):
        read_idx(tmp_path / "b.gz")


def test_cifar10_from_tiles(small_tiles, tmp_path):
    source = open_source("cifar10", "train", directory=tmp_path, downloads=FIXTURES)
    pixels = parse_tiles(FIXTURES / "cifar10" / "train-0.webp")
    assert source.features["label"].names[:2] == ["airplane", "automobile"]
    assert len(source) == len(pixels) == 20
    for example in source.__getitems__(range(20)):
        prefix, _, key = example["id"].item().decode().partition("_")
        assert prefix == "train" and example["id"].item() == f"train_{int(key):05d}".encode()
        assert np.array_equal(example["image"], pixels[int(key)])
        assert example["label"] == int(key) % 10


def test_damaged_tiles_are_refused(small_tiles, tmp_path):
    for file in (FIXTURES / "cifar10").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "train-0.webp").write_bytes((tmp_path / "test.webp").read_bytes())
    with pytest.raises(UserError, match=r"train-0.webp does not hold its part"):
        open_source("cifar10", "train", directory=tmp_path / "prepared", downloads=tmp_path)


def planes(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("form", ["binary", "python"])
def test_cifar10_from_batches(form, tmp_path, monkeypatch):
    images = parse_tiles(FIXTURES / "cifar10" / "train-0.webp")
    labels = (np.arange(20) % 10).astype(np.uint8)
    parts = {f"data_batch_{i + 1}": slice(4 * i, 4 * i + 4) for i in range(5)} | {"test_batch": slice(0, 6)}
    members = {}
    for name, part in parts.items():
        flat, label = planes(images[part]), labels[part]
        if form == "binary":
            members[f"cifar-10-batches-bin/{name}.bin"] = np.hstack([label[:, None], flat]).tobytes()
        else:
            batch = {b"data": flat, b"labels": label.tolist(), b"filenames": [b"x"] * len(label)}
            members[f"cifar-10-batches-py/{name}"] = pickle.dumps(batch, protocol=2)
    file = Cifar10.ORIGINALS[form]
    write_tar(tmp_path / file.filename, members)
    found = file._replace(sha256=original_files.sha256(tmp_path / file.filename))
    monkeypatch.setattr(Cifar10, "ORIGINALS", {**Cifar10.ORIGINALS, form: found})
    source = open_source("cifar10", "train", directory=tmp_path / "prepared", downloads=tmp_path)
    assert len(source) == 20
    for example in source.__getitems__(range(20)):
        key = int(example["id"].item().decode().removeprefix("train_"))
        assert np.array_equal(example["image"], images[key])
        assert example["label"] == labels[key]
    assert len(open_source("cifar10", "test", directory=tmp_path / "prepared")) == 6


def test_pickled_batches_cannot_run_code():
    @dataclasses.dataclass
    class Evil:
        def __reduce__(self):
            return os.getenv, ("HOME",)

    with pytest.raises(ValueError, match="no array of images"):
        parse_python(pickle.dumps({b"data": Evil(), b"labels": [1]}, protocol=2))
    with pytest.raises(ValueError, match="whole number"):
        parse_binary(b"123")


def test_archive_errors_are_one_line(tmp_path):
    write_tar(tmp_path / "a.tar.gz", {"m": pickle.dumps([1])})
    for parse, member in ((parse_python, "m"), (parse_python, "absent"), (parse_binary, "m")):
        with pytest.raises(UserError, match=r"a.tar.gz"):
            list(cifar10.read_archive(tmp_path / "a.tar.gz", parse, [member]))
    (tmp_path / "b.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:40])
    with pytest.raises(UserError, match=r"b.tar.gz"):
        list(cifar10.read_archive(tmp_path / "b.tar.gz", parse_python, ["m"]))


@pytest.mark.data
@pytest.mark.skipif("JAXACCEL_DATA_DIR" not in os.environ, reason="needs JAXACCEL_DATA_DIR")
@pytest.mark.parametrize("name", slow_but([], ["mnist", "fashion_mnist", "cifar10"]))
def test_whole_data_sets(name, tmp_path):
    downloads = os.environ["JAXACCEL_DATA_DIR"]
    train = open_source(name, "train", directory=tmp_path, downloads=downloads)
    test = open_source(name, "test", directory=tmp_path)
    assert (len(train), len(test)) == ((50_000, 10_000) if name == "cifar10" else (60_000, 10_000))
    examples = test.__getitems__(range(len(test)))
    counts = np.bincount([int(e["label"]) for e in examples])
    assert len(counts) == 10
    if name == "mnist":
        images = read_idx(Path(downloads) / "mnist" / "t10k-images-idx3-ubyte.gz")
        assert sorted(e["image"].tobytes() for e in examples) == sorted(x.tobytes() for x in images)
    else:
        assert counts.tolist() == [1000] * 10
    # The order on disk is that of TFDS's own builder, run with TensorFlow on the same files.
    order = {"mnist": MNIST, "fashion_mnist": FASHION}
    if name in order:
        assert [int(e["label"]) for e in examples[:16]] == order[name]
