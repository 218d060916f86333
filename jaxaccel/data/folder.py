"""A folder of images, one subfolder a class, as a data source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxaccel.data.sources import Example, decode_image, split_ranges
from jaxaccel.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "val", "validation")
TEST_SHARE = 0.2


class ImageFile(NamedTuple):
    """An image below `FolderSource.path`: its relative path and the name of its class."""

    path: str
    class_name: str


class FolderSource:
    """A split of a folder of images, as examples ``image`` uint8 (H, W, C), ``label`` int64 and ``id``.

    Either ``FOLDER/CLASS/**/*.png`` (and .jpg, ...), of which a fifth of each class is the split ``test``,
    chosen by hash of the file names; or ``FOLDER/train/CLASS/**`` with ``test``, ``val`` or ``validation``
    beside ``train``, the first of which is the split ``test``. Classes are numbered and examples ordered
    alphabetically. Images are RGB, or grey when all are; sizes may differ. ``id`` is the relative path.

    Raises UserError when there are no images, no such split, or when an image cannot be read.
    """

    def __init__(self, name: str, split: str, path: Path) -> None:
        self.name = name
        self.split = split
        self.path = path
        splits = find_images(path)
        everything = [file for files in splits.values() for file in files]
        self._classes = sorted({file.class_name for file in everything})
        self._files = _take(name, split, splits)
        self._shape = common_shape(path, everything)

    @property
    def features(self) -> Mapping[str, Any]:
        """TFDS features; the image's height and width are None when images differ in size."""
        import tensorflow_datasets as tfds

        return {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=self._shape),
            "label": tfds.features.ClassLabel(names=self._classes),
        }

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int, /) -> Example:
        file = self._files[index]
        try:
            image = decode_image((self.path / file.path).read_bytes(), self._shape[-1])
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise _unreadable(self.path / file.path, error) from error
        return {
            "id": np.array(file.path.encode(), object),
            "image": image,
            "label": np.array(self._classes.index(file.class_name), np.int64),
        }

    def __getitems__(self, indices: Sequence[int], /) -> list[Example]:
        return [self[int(i)] for i in indices]

    def __repr__(self) -> str:
        return f"FolderSource({self.name!r}, {self.split!r}, {str(self.path)!r})"


def find_images(path: Path) -> dict[str, list[ImageFile]]:
    """The image files of each split of the folder `path`, sorted by path."""
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; a data set may be NAME or a folder of images")
    subfolders = {entry.name: entry for entry in _visible_folders(path)}
    train = next((name for name in TRAIN_FOLDERS if name in subfolders), None)
    tests = [name for name in TEST_FOLDERS if name in subfolders]
    if train is None or not tests:
        base = path if train is None else path / train
        return divide(_images_of_classes(path, base))
    splits = {"train": train, "test": tests[0]} | {name: name for name in tests[1:]}
    return {split: _images_of_classes(path, path / folder) for split, folder in splits.items()}


def divide(files: list[ImageFile]) -> dict[str, list[ImageFile]]:
    """Splits ``train`` and ``test``: of each class, `TEST_SHARE` of the files go to ``test``.

    Chosen are those whose path below the class folder has the smallest sha256: a pure function of the file
    names. A class of two files or more has at least one on each side.
    """
    test: set[ImageFile] = set()
    for class_name in sorted({file.class_name for file in files}):
        members = [file for file in files if file.class_name == class_name]
        count = min(max(round(TEST_SHARE * len(members)), 1), len(members) - 1)
        test.update(sorted(members, key=_hash)[:count])
    return {"train": [f for f in files if f not in test], "test": [f for f in files if f in test]}


def common_shape(path: Path, files: list[ImageFile]) -> tuple[int | None, int | None, int]:
    """(H, W, C) of all images, by their headers: C is 1 if all are grey, else 3; H and W None if mixed."""
    from PIL import Image

    grey = True
    size: tuple[int, int] | None = None
    mixed = False
    for file in files:
        try:
            with Image.open(path / file.path) as image:
                grey = grey and image.mode in ("1", "L")
                mixed = mixed or size not in (None, image.size)
                size = image.size
        except Exception as error:  # Pillow raises many kinds for damaged files
            raise _unreadable(path / file.path, error) from error
        if mixed and not grey:  # nothing more to learn
            break
    width, height = (None, None) if mixed or size is None else size
    return height, width, 1 if grey else 3


def _take(name: str, split: str, splits: dict[str, list[ImageFile]]) -> list[ImageFile]:
    """The files of `split`, in TFDS's slicing syntax."""
    import tensorflow_datasets as tfds

    infos = {
        key: tfds.core.SplitInfo(name=key, shard_lengths=[len(files)], num_bytes=0)
        for key, files in splits.items()
    }
    return [file for key, start, stop in split_ranges(name, split, infos) for file in splits[key][start:stop]]


def _images_of_classes(root: Path, base: Path) -> list[ImageFile]:
    """Images in the class folders of `base`, sorted; raises UserError when there are none."""
    files = sorted(
        ImageFile((Path(folder) / name).relative_to(root).as_posix(), class_folder.name)
        for class_folder in _visible_folders(base)
        for folder, _, names in os.walk(class_folder, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )
    if not files:
        raise UserError(
            f"no images found in {base}: it must hold one subfolder a class with "
            f"{', '.join(sorted(SUFFIXES))} files"
        )
    return files


def _visible_folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _hash(file: ImageFile) -> bytes:
    return hashlib.sha256(file.path.encode()).digest()


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"cannot read the image {path} ({error}): repair or remove it")
