"""MNIST and Fashion-MNIST from their original IDX files (LeCun et al. 1998; Xiao et al. 2017)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxaccel.core.formats.bounds import explain_errors, open_file, size_of
from jaxaccel.data.builders.original_files import OriginalBuilder, OriginalFile
from jaxaccel.data.builders.png import encode_png
from jaxaccel.errors import UserError

_FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}
_MAX_BYTES = 1 << 27  # 60,000 images of 28x28 are 47 MB
_UINT8 = 0x08  # the IDX type code of unsigned bytes


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file.

    IDX (http://yann.lecun.com/exdb/mnist): two zero bytes, a type code, the number of dimensions, each
    dimension as a big-endian uint32, then the elements in C order. Raises UserError for anything else.
    """
    with explain_errors(path, "is no whole gzip file"), open_file(path) as file:
        most = min(_MAX_BYTES, 64 * size_of(file) + (1 << 20))
        try:
            content = gzip.GzipFile(fileobj=file).read(most + 1)
        except gzip.BadGzipFile as error:
            raise ValueError(str(error)) from error
    if len(content) > most:
        raise UserError(f"{path} holds more than {most:,} bytes, which no such file does; download it again")
    if len(content) < 4 or content[:3] != bytes((0, 0, _UINT8)):
        raise UserError(f"{path} is not an IDX file of unsigned bytes; download it again")
    start = 4 + 4 * content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4"))
    if len(content) - start != np.prod(shape, dtype=np.int64):
        raise UserError(f"{path} does not hold the {shape} bytes it announces; download it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def originals(url: str, hashes: Mapping[str, str]) -> dict[str, OriginalFile]:
    """The four IDX files below `url`, with their sha256."""
    return {key: OriginalFile(filename, url + filename, hashes[key]) for key, filename in _FILES.items()}


class Mnist(OriginalBuilder, skip_registration=True):
    """MNIST: 60,000 + 10,000 handwritten digits, 28x28 gray."""

    name = "mnist"
    VERSION = tfds.core.Version("3.0.1")
    EXAMPLES = 70_000
    ORIGINALS = originals(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        {
            "train_images": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train_labels": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "test_images": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "test_labels": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    )
    HOMEPAGE: ClassVar[str] = "http://yann.lecun.com/exdb/mnist/"
    LABEL: ClassVar[dict[str, Any]] = {"num_classes": 10}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(**self.LABEL),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # it extracts archives with TensorFlow
        path = self.originals(self.ORIGINALS)
        return {
            split: self._generate_examples(path[f"{split}_images"], path[f"{split}_labels"])
            for split in ("train", "test")
        }

    def _generate_examples(self, images: Path, labels: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        # The position in the file is the key, as in TFDS: keys decide the order on disk.
        for key, (image, label) in enumerate(zip(read_idx(images), read_idx(labels), strict=True)):
            yield key, {"image": encode_png(image), "label": int(label)}


class FashionMnist(Mnist, skip_registration=True):
    """Fashion-MNIST: 60,000 + 10,000 images of clothes, 28x28 gray."""

    name = "fashion_mnist"
    ORIGINALS = originals(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train_images": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train_labels": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "test_images": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "test_labels": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    )
    HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
    LABEL: ClassVar[dict[str, Any]] = {
        "names": [
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ]
    }
