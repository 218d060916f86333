"""UCI handwritten digits (Alpaydin & Kaynak 1998), the 1,797 images that scikit-learn ships, 8x8 gray."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxaccel.data.builders.original_files import OriginalBuilder
from jaxaccel.data.builders.png import encode_png

TEST_SIZE = 450  # a quarter of 1,797, rounded up


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (1797, 8, 8) with values 0..16, and labels uint8 (1797,), in scikit-learn's order."""
    with np.load(Path(__file__).with_name("digits.npz")) as arrays:
        return arrays["image"], arrays["label"]


def choose_test(labels: np.ndarray, size: int = TEST_SIZE) -> np.ndarray:
    """Sorted positions of the test examples: a fixed stratified choice of `size` of them.

    Each class gives its share of `size`, rounded by largest remainder (ties to the smaller label); within
    a class, the positions with the smallest sha256 of ``digits/POSITION`` are taken. It depends on nothing
    but the labels: no random generator whose stream may change.
    """
    classes, counts = np.unique(labels, return_counts=True)
    whole, remainder = np.divmod(counts * size, len(labels))
    extra = np.argsort(-remainder, kind="stable")[: size - whole.sum()]
    whole[extra] += 1
    chosen: list[int] = []
    for label, count in zip(classes, whole, strict=True):
        positions = np.flatnonzero(labels == label).tolist()
        chosen += sorted(positions, key=lambda p: hashlib.sha256(f"digits/{p}".encode()).digest())[:count]
    return np.array(sorted(chosen))


class Builder(OriginalBuilder, skip_registration=True):
    """UCI handwritten digits: 1,347 training and 450 test images, 8x8 gray, stratified fixed split.

    The originals count the dark pixels of 4x4 blocks, 0..16; they are stored scaled to 0..255 (value * 255 /
    16, rounded), so that they are images like any other.
    """

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")
    EXAMPLES = 1_797

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing to download
        _, labels = load_digits()
        test = choose_test(labels)
        train = np.setdiff1d(np.arange(len(labels)), test)
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, positions: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = load_digits()
        scaled = ((images.astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)
        for position in positions.tolist():
            yield position, {"image": encode_png(scaled[position]), "label": int(labels[position])}
