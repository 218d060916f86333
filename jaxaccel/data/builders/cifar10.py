"""CIFAR-10 (Krizhevsky 2009) from the binary or the python batches, or from lossless WebP tiles."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxaccel.core.formats import npz_files, pickle_values, pickles
from jaxaccel.core.formats.bounds import Refused, check, check_pixels, explain_errors, open_file
from jaxaccel.data.builders.original_files import OriginalBuilder, OriginalFile, candidates, locate
from jaxaccel.data.builders.png import encode_png
from jaxaccel.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_URL = "https://www.cs.toronto.edu/~kriz/"
_PIXELS = 3 * 32 * 32
_MAX_BYTES = 1 << 26  # of a file of 10,000 images, which has 31 MB

# Images uint8 (N, 32, 32, 3) and labels uint8 (N,) of one file of the data set.
Batch = tuple[np.ndarray, np.ndarray]


def _images(planes: np.ndarray) -> np.ndarray:
    """(N, 3072) bytes, a plane a channel, as images (N, 32, 32, 3)."""
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def parse_binary(content: bytes) -> Batch:
    """A batch of the binary version: records of one label byte and 3072 pixel bytes."""
    if not content or len(content) % (1 + _PIXELS):
        raise ValueError(f"{len(content)} bytes are no whole number of {1 + _PIXELS}-byte records")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return _images(records[:, 1:]), records[:, 0]


def parse_python(content: bytes) -> Batch:
    """A batch of the python version: a pickled dict with ``data`` (N, 3072) and ``labels``. Nothing in it is run."""
    batch = pickles.load(io.BytesIO(content), pickle_values.callable_functions(len(content)))
    check(isinstance(batch, dict), "a pickle of something else")
    # Names are bytes or, as Python 2 wrote them, text.
    named = {
        name.decode("latin1") if isinstance(name, bytes) else name: value for name, value in batch.items()
    }
    data, labels = named["data"], named["labels"]
    images = data.value if isinstance(data, pickle_values.NumpyArray) else None
    if images is None:
        raise ValueError("no array of images")
    check(isinstance(labels, list) and all(type(n) is int for n in labels), "no list of labels")
    return _images(images.astype(np.uint8)), np.asarray(labels, np.uint8)


def parse_tiles(path: Path) -> np.ndarray:
    """The images of a lossless WebP of 32x32 tiles, row by row, as uint8 (N, 32, 32, 3)."""
    from PIL import Image

    with open_file(path) as file, Image.open(file) as image:
        check_pixels(image.size)
        pixels = np.asarray(image.convert("RGB"))
    rows, columns = pixels.shape[0] // 32, pixels.shape[1] // 32
    return pixels.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)


def read_archive(path: Path, parse: Callable[[bytes], Batch], members: list[str]) -> Iterator[Batch]:
    """The batches called `members` of a .tar.gz, in that order, without extracting it to disk."""
    with explain_errors(path, "is no archive of CIFAR-10 batches"):
        try:
            with open_file(path) as file, tarfile.open(fileobj=file, mode="r:gz") as archive:
                for member in members:
                    stream = archive.extractfile(member)
                    if stream is None:
                        raise ValueError(f"{member} is no file")
                    content = stream.read(_MAX_BYTES + 1)
                    if len(content) > _MAX_BYTES:
                        raise Refused(f"has a member of more than {_MAX_BYTES:,} bytes, which no batch has")
                    yield parse(content)
        except tarfile.TarError as error:
            raise ValueError(str(error)) from error


class Cifar10(OriginalBuilder, skip_registration=True):
    """CIFAR-10: 50,000 + 10,000 photographs, 32x32 RGB.

    From either archive the examples, their ids and their order on disk are those of TFDS. The tiles hold the
    same images in another order, hence under other ids.
    """

    name = "cifar10"
    VERSION = tfds.core.Version("3.0.2")
    EXAMPLES = 60_000
    ORIGINALS: ClassVar[Mapping[str, OriginalFile]] = {
        "binary": OriginalFile(
            "cifar-10-binary.tar.gz",
            _URL + "cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        "python": OriginalFile(
            "cifar-10-python.tar.gz",
            _URL + "cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
    }
    # sha256 of the decoded images (N, 32, 32, 3): the pixels are checked, not one encoder's bytes.
    TILES: ClassVar[dict[str, str]] = {
        "train-0": "2da71769433de6174a451d7fbae14e06907fe076dfe0fe68962444636154df71",
        "train-1": "b2a8d9653850cf2b16b2255fec9bbeaed0041c3946d407e0e8d450d4a54d6cf4",
        "train-2": "7c3ba0eeb074e3ddbee7488bd116caf8dc398fa150a1dd27aaec6d581bcdf01d",
        "train-3": "d4d2e02402273ffb89d998d95a96eebdef2098f4a06e2151a9254d7a95d6ab45",
        "train-4": "b90e60f60e875cec4792fede9f8d4fa298327f29c8d89547927e09ef386c97ed",
        "test": "6f5c5fc4747070b3fdb6d43818a37c258ecceb707033324f2c3f1a5e3fc459d8",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # it extracts archives with TensorFlow
        batches = self._open_batches()
        return {split: self._generate_examples(split, batches(split)) for split in ("train", "test")}

    def _open_batches(self) -> Callable[[str], Iterator[Batch]]:
        """The form of the data set that is at hand, as split -> batches; else the binary one, downloaded."""
        python = locate(self.ORIGINALS["python"], self.name, self.downloads)
        if locate(self.ORIGINALS["binary"], self.name, self.downloads) is None:
            if python is not None:
                return lambda split: read_archive(
                    python, parse_python, _members("cifar-10-batches-py", "", split)
                )
            if labels := next(candidates(["labels.npz"], self.name, self.downloads), None):
                return lambda split: self._read_tiles(labels, split)
        binary = self.originals({"binary": self.ORIGINALS["binary"]})["binary"]
        return lambda split: read_archive(
            binary, parse_binary, _members("cifar-10-batches-bin", ".bin", split)
        )

    def _read_tiles(self, labels: Path, split: str) -> Iterator[Batch]:
        """The tiled images beside `labels`, an archive with an array ``NAME.labels`` for each NAME.webp."""
        for name in (n for n in self.TILES if n.startswith(split)):
            path = labels.with_name(f"{name}.webp")
            with explain_errors(path, "is no WebP of tiles"):
                images = parse_tiles(path)
            with explain_errors(labels, "has no labels of these tiles"):
                label = npz_files.read(labels)[f"{name}.labels"]
            found = hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()
            if found != self.TILES[name]:
                raise UserError(
                    f"{path} does not hold its part of CIFAR-10: sha256 of the pixels expected "
                    f"{self.TILES[name]}, found {found}"
                )
            yield images, label

    def _generate_examples(
        self, split: str, batches: Iterator[Batch]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        key = 0  # runs on through the files of a split, as in TFDS: keys decide the order on disk
        for images, labels in batches:
            for image, label in zip(images, labels, strict=True):
                example = {"id": f"{split}_{key:05d}", "image": encode_png(image), "label": int(label)}
                yield key, example
                key += 1


def _members(folder: str, suffix: str, split: str) -> list[str]:
    """Names of the batch files of a split inside the archive, in TFDS's order."""
    stems = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    return [f"{folder}/{stem}{suffix}" for stem in stems]
