"""A folder of images, one subfolder a class, as a data set."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxaccel.data.image_files import ImageFile, list_images
from jaxaccel.data.images import decode_image, read_header
from jaxaccel.data.source import Example
from jaxaccel.data.splits import divide, take
from jaxaccel.errors import UserError

log = logging.getLogger(__name__)
_MAX_QUIET_FILES = 20_000


class FolderSet:
    """A folder of images, of which any split can be opened.

    Either ``FOLDER/CLASS/**/*.png`` (and .jpg, ...), of which a fifth of each class is the split ``test``, chosen by
    hash of the file names; or ``FOLDER/train/CLASS/**`` with ``test`` or ``validation`` or both beside ``train``
    (or other `splits.NAMES`). Classes are numbered and examples ordered alphabetically.

    Raises UserError when there are no images, or one that cannot be read.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        listing = list_images(path)
        self.classes = listing.classes
        self._files = [file for files in listing.splits.values() for file in files]
        self.shape = find_common_shape(path, self._files)
        if "" in listing.splits:
            names = [os.fsencode(file.path) for file in self._files]
            self._positions = divide([file.class_name for file in self._files], names)
        else:
            ends = np.cumsum([0, *(len(files) for files in listing.splits.values())]).tolist()
            parts = zip(listing.splits, ends[:-1], ends[1:], strict=True)
            self._positions = {split: list(range(start, stop)) for split, start, stop in parts}

    @property
    def splits(self) -> dict[str, int]:
        """{split: number of its examples}."""
        return {split: len(positions) for split, positions in self._positions.items()}

    def open(self, split: str) -> FolderSource:
        """The split, written as TFDS does.

        Raises:
          UserError: there is no such split, or it is empty.
        """
        files = [self._files[i] for i in take(self.name, split, self._positions)]
        return FolderSource(self.name, split, self.path, files, self.classes, self.shape)

    def digest(self) -> str:
        """SHA-256 of the names and sizes of all files."""
        total = hashlib.sha256()
        for file in self._files:
            total.update(os.fsencode(file.path) + f" {(self.path / file.path).stat().st_size}\n".encode())
        return total.hexdigest()


class FolderSource:
    """A split of a folder of images, as examples ``image`` uint8 (H, W, C), ``label`` int64 and ``id``.

    Images are upright (EXIF), and RGB, or gray when all are; sizes may differ. ``id`` is the relative path.

    Raises UserError when an image cannot be read.
    """

    def __init__(
        self,
        name: str,
        split: str,
        path: Path,
        files: Sequence[ImageFile],
        classes: Sequence[str],
        shape: tuple[int | None, int | None, int],
    ) -> None:
        self.name = name
        self.split = split
        self.path = path
        self._files = files
        self._labels = {class_name: i for i, class_name in enumerate(classes)}
        self._shape = shape

    @property
    def features(self) -> Mapping[str, Any]:
        """TFDS features; the image's height and width are None when images differ in size."""
        import tensorflow_datasets as tfds

        return {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=self._shape),
            "label": tfds.features.ClassLabel(names=list(self._labels)),
        }

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int, /) -> Example:
        file = self._files[index]
        try:
            image = decode_image((self.path / file.path).read_bytes(), self._shape[-1], upright=True)
            if self._shape[0] is not None and image.shape != self._shape:
                raise ValueError(f"it is {image.shape}, by its header {self._shape}")
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise _unreadable(self.path / file.path, error) from error
        return {
            "id": np.array(os.fsencode(file.path), object),
            "image": image,
            "label": np.array(self._labels[file.class_name], np.int64),
        }

    def __getitems__(self, indices: Sequence[int], /) -> list[Example]:
        return [self[int(i)] for i in indices]

    def __repr__(self) -> str:
        return f"FolderSource({self.name!r}, {self.split!r}, {str(self.path)!r})"


def find_common_shape(path: Path, files: Sequence[ImageFile]) -> tuple[int | None, int | None, int]:
    """(H, W, C) of all images, by their headers: C is 1 if all are gray, else 3; H and W None if mixed."""
    if len(files) > _MAX_QUIET_FILES:
        log.info("reading the headers of %s pictures", f"{len(files):,}")
    gray = True
    sizes: set[tuple[int, int]] = set()
    for file in files:
        try:
            header = read_header(path / file.path)
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise _unreadable(path / file.path, error) from error
        gray = gray and header.gray
        sizes.add((header.height, header.width))
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    return height, width, 1 if gray else 3


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"cannot read the image {path} ({reason}): repair or remove it")
