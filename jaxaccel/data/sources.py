"""Data sets by name or folder, with random access to their examples; no TensorFlow, no JAX.

`open_source` finds a data set, prepares it if need be, and returns a `Source`. Examples come from prepared
ArrayRecord files of TFDS (https://www.tensorflow.org/datasets) or from a folder of images.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxaccel.bounds import check_pixels
from jaxaccel.data.builders import BUILDERS
from jaxaccel.data.features_file import check_features
from jaxaccel.errors import UserError

Example = dict[str, np.ndarray]

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w+\-.]+))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO_FILE = "dataset_info.json"
PICTURES = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Formats that are decoded; for one of Pillow's others, EPS, it would run a program."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Pillow's mode for the channels of an 8-bit image feature.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class Source(Protocol):
    """One split of a data set with random access; it can be pickled and sent to worker processes."""

    name: str
    """The data set as it was asked for, e.g. ``mnist`` or ``mnist:3.0.1``."""
    split: str
    """The split as it was asked for, e.g. ``train[:90%]``."""

    @property
    def features(self) -> Mapping[str, Any]:
        """TFDS feature of each key of an example: Image(shape), ClassLabel(num_classes, names), ..."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example:
        """Example `index` of the split.

        An image is uint8 of shape (H, W, C), a class label int64 of shape (), a text an object array of
        shape () that holds bytes. Arrays may be read-only.
        """
        ...

    def __getitems__(self, indices: Sequence[int], /) -> list[Example]:
        """The examples at `indices`, read together: faster than one by one."""
        ...


class DatasetName(NamedTuple):
    """A data set as TFDS writes it, ``NAME[/CONFIG][:VERSION]``; a version may hold ``*``."""

    name: str
    config: str | None
    version: str | None

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{self.name}{config}" + (f":{self.version}" if self.version else "")


def open_source(
    name: str,
    split: str,
    *,
    directory: str | os.PathLike[str] | None = None,
    downloads: str | os.PathLike[str] | None = None,
) -> Source:
    """Opens a split of a data set, preparing the data set first if that has not been done.

    Args:
        name: a TFDS data set as TFDS writes it (``mnist``, ``cmaterdb/bangla``, ``mnist:3.0.1``), the
            path of a prepared one, or a folder of images (``folder:PATH``, or a path with a separator).
        split: a split with TFDS's slicing, such as ``test``, ``train[:90%]`` or ``train+test``.
        directory: where prepared data sets lie; by default ``$TFDS_DATA_DIR``, else
            ``~/tensorflow_datasets``.
        downloads: a folder with the original files, to prepare without a network.

    Raises:
        UserError: the data set or split does not exist, is damaged, or cannot be prepared.
    """
    path = _as_path(name)
    if path is not None:
        if (path / _INFO_FILE).is_file():
            return PreparedSource(name, split, path)
        from jaxaccel.data.folder import FolderSource

        return FolderSource(name, split, path)
    directory = Path(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    dataset = parse_name(name)
    prepared = find_prepared(dataset, directory)
    if prepared is None:
        from jaxaccel.data.prepare import prepare

        prepared = prepare(dataset, directory, None if downloads is None else Path(downloads).expanduser())
    return PreparedSource(name, split, prepared)


def _as_path(name: str) -> Path | None:
    """The folder that `name` means, or None when it is the name of a TFDS data set."""
    if name.startswith("folder:"):
        return Path(name.removeprefix("folder:")).expanduser()
    path = Path(name).expanduser()
    if path.is_absolute() or name.startswith((".", "~")):
        return path
    # A relative path such as data/flowers reads like NAME/CONFIG: a data set goes before a folder.
    if path.is_dir() and parse_name(name, strict=False).name not in known_names():
        return path
    return None


def known_names() -> list[str]:
    """Names of the data sets that jaxaccel or TFDS can prepare."""
    import tensorflow_datasets as tfds

    return sorted({*BUILDERS, *tfds.list_builders(with_community_datasets=False)})


def parse_name(name: str, strict: bool = True) -> DatasetName:
    """Splits ``NAME[/CONFIG][:VERSION]``; raises UserError for anything else if `strict`."""
    match = _NAME.fullmatch(name)
    if match is None:
        if strict:
            raise UserError(
                f"{name!r} is neither a data set (NAME, NAME/CONFIG or NAME:VERSION) nor a folder that exists"
            )
        return DatasetName(name, None, None)
    return DatasetName(match["name"], match["config"], match["version"])


def find_prepared(dataset: DatasetName, directory: Path) -> Path | None:
    """Folder of the newest prepared version of `dataset` in `directory` that fits; None if there is none."""
    base = directory / dataset.name
    if dataset.config is not None:
        return _newest(base / dataset.config, dataset.version)
    found = _newest(base, dataset.version)
    if found is None and base.is_dir():
        configs = {p.name: p for p in sorted(base.iterdir()) if _newest(p, dataset.version)}
        if len(configs) == 1:
            return _newest(next(iter(configs.values())), dataset.version)
        if configs:
            from etils import epath
            from tensorflow_datasets.core.dataset_builder import load_default_config_name

            default = load_default_config_name(epath.Path(base))
            if default not in configs:
                choices = ", ".join(f"{dataset.name}/{config}" for config in configs)
                raise UserError(
                    f"data set {dataset.name!r} has several configurations in {directory}: {choices}"
                )
            return _newest(configs[default], dataset.version)
    return found


def _newest(base: Path, version: str | None) -> Path | None:
    """The prepared version folder below `base` with the highest number that fits `version`."""
    wanted = re.compile((version or "*.*.*").replace(".", r"\.").replace("*", r"\d+"))
    if not base.is_dir():
        return None
    folders = [
        p
        for p in base.iterdir()
        if _VERSION.fullmatch(p.name) and wanted.fullmatch(p.name) and (p / _INFO_FILE).is_file()
    ]
    return max(folders, key=lambda p: tuple(map(int, p.name.split("."))), default=None)


class PreparedSource:
    """A split of a prepared ArrayRecord data set of TFDS, read without TensorFlow."""

    def __init__(self, name: str, split: str, directory: Path) -> None:
        self.name = name
        self.split = split
        self.directory = directory
        self._features, self._records = _open_records(name, split, directory)
        self._decode = example_decoder(self._features)

    @property
    def features(self) -> Mapping[str, Any]:
        """TFDS feature of each key of an example."""
        return self._features

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Example:
        position = self._position(index)
        try:
            return self._decode(self._records[position])
        except Exception as error:  # whatever the bytes made the readers stumble on
            raise damaged(self.directory, error) from error

    def __getitems__(self, indices: Sequence[int], /) -> list[Example]:
        positions = [self._position(i) for i in indices]
        if len(positions) < 16:  # the reader starts threads to read many, half a millisecond
            return [self[i] for i in positions]
        try:
            return [self._decode(record) for record in self._records.__getitems__(positions)]
        except Exception as error:
            raise damaged(self.directory, error) from error

    def _position(self, index: int) -> int:
        size = len(self._records)
        if not -size <= index < size:
            raise IndexError(f"example {index} of {size} in split {self.split!r} of {self.name!r}")
        return int(index) % size

    def __reduce__(self) -> tuple[Callable[..., PreparedSource], tuple[str, str, Path]]:
        # Open readers cannot travel to another process: it opens the files itself.
        return PreparedSource, (self.name, self.split, self.directory)

    def __repr__(self) -> str:
        return f"PreparedSource({self.name!r}, {self.split!r}, {str(self.directory)!r})"


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keeps TFDS's account of every step out of the log; its warnings stay."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


def damaged(directory: Path, reason: object) -> UserError:
    """The error of a prepared data set that cannot be read."""
    message = " ".join(str(reason).split())
    return UserError(
        f"the prepared data set in {directory} is damaged ({message}): delete that folder, "
        "and it is prepared again"
    )


def _open_records(name: str, split: str, directory: Path) -> tuple[Any, Any]:
    """Features of the data set and a random-access reader of the raw records of its split."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader

    check_features(directory)
    try:
        with quiet_tfds():
            builder: Any = tfds.builder_from_directory(str(directory))
        info = builder.info
    except ImportError as error:
        raise UserError(
            f"data set {name!r} has features that TFDS reads only with the package {error.name!r}"
        ) from error
    except Exception as error:
        raise damaged(directory, error) from error
    if info.file_format is None or info.file_format.value != "array_record":
        form = info.file_format and info.file_format.value
        raise UserError(
            f"data set {name!r} in {directory} is stored as {form}, which has no random access: "
            "give another --data.dir, and it is prepared there as array_record"
        )
    split_ranges(name, split, info.splits)
    instructions = info.splits[split].file_instructions
    for shard in instructions:
        # A truncated or missing file has no records; found here, not in the midst of training.
        try:
            reader = ArrayRecordReader(os.fspath(shard.filename))
            found = reader.num_records()
            reader.close()
        except Exception as error:
            raise damaged(directory, error) from error
        if found != shard.examples_in_shard:
            file = Path(shard.filename).name
            raise damaged(directory, f"{file} holds {found} of its {shard.examples_in_shard} records")
    raw: Any = tfds.decode.DeserializeMethod.RAW_BYTES
    return info.features, builder.as_data_source(split, deserialize_method=raw)


def split_ranges(name: str, split: str, infos: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """What `split` means, as ``(name of the split, start, stop)`` of each part.

    `infos` maps the splits there are to their `tfds.core.SplitInfo`. Raises UserError for a split that is
    unknown, cannot be parsed or is empty.
    """
    import tensorflow_datasets as tfds

    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except Exception as error:  # TFDS raises ValueError, NotImplementedError and others
        reason = " ".join(str(error).split())
        if reason.startswith("Unknown split"):
            raise UserError(
                f"data set {name!r} has no split {split!r}; it has: {', '.join(infos)}"
            ) from error
        raise UserError(
            f"cannot read split {split!r} of data set {name!r}: write it like train, train[:90%] or "
            f"train[1000:2000]; there are: {', '.join(f'{k} ({v.num_examples})' for k, v in infos.items())}"
        ) from error
    ranges = [
        (part.splitname, part.from_ or 0, infos[part.splitname].num_examples if part.to is None else part.to)
        for part in parts
    ]
    if not any(stop > start for _, start, stop in ranges):
        raise UserError(f"split {split!r} of data set {name!r} is empty")
    return ranges


def example_decoder(features: Any) -> Callable[[bytes], Example]:
    """A function from a serialised tf.train.Example to the example.

    8-bit images are decoded by Pillow here and not by TFDS: always by the same library, in the channels the
    feature announces (TFDS leaves a grey or CMYK JPEG of an RGB data set as it is). Data sets of nothing but
    images, labels and texts are parsed here altogether, four times as fast as by TFDS; for others, TFDS
    deserialises all features but those images.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    parse: Callable[[bytes], Any] = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
    image: Any = tfds.features.Image
    channels: dict[str, int] = {
        key: feature.shape[-1]
        for key, feature in features.items()
        if type(feature) is image and feature.np_dtype == np.uint8 and len(feature.shape) == 3
    }
    labels = [k for k, f in features.items() if type(f) is tfds.features.ClassLabel]
    texts = [k for k, f in features.items() if type(f) is tfds.features.Text and f.shape == ()]

    def decode_here(record: bytes) -> Example:
        fields = parse(record).features.feature
        example = {}
        for key, count in channels.items():
            example[key] = decode_image(fields[key].bytes_list.value[0], count)
        for key in labels:
            example[key] = np.array(fields[key].int64_list.value[0], np.int64)
        for key in texts:
            example[key] = np.array(fields[key].bytes_list.value[0], object)
        return example

    skip = {key: tfds.decode.SkipDecoding() for key in channels}

    def decode_by_tfds(record: bytes) -> Example:
        example = features.deserialize_example_np(record, decoders=skip)
        for key, count in channels.items():
            example[key] = decode_image(example[key], count)
        return {key: _as_array(value, features[key]) for key, value in example.items()}

    return decode_here if len(channels) + len(labels) + len(texts) == len(features) else decode_by_tfds


def _as_array(value: Any, feature: Any) -> Any:
    """Numbers and bytes as arrays of shape (); what has a structure stays as it is."""
    if isinstance(value, bytes):
        return np.array(value, object)
    return np.array(value, feature.np_dtype) if isinstance(value, bool | int | float) else value


def decode_image(content: bytes, channels: int) -> np.ndarray:
    """Decodes PNG, JPEG, ... bytes to uint8 (H, W, channels), converting the colors if they differ.

    Raises:
      ValueError: it has more than `bounds.MOST_PIXELS`.
      Exception: whatever Pillow raises for a damaged picture, or one of another than the `PICTURES`.
    """
    from PIL import Image, PngImagePlugin

    stream = io.BytesIO(content)
    # Image.open tries one format after the other; most data sets hold PNG.
    is_png = content.startswith(_PNG_SIGNATURE)
    image = PngImagePlugin.PngImageFile(stream) if is_png else Image.open(stream, formats=PICTURES)
    check_pixels(image.size)
    mode = _MODES[channels]
    if image.mode != mode:
        image = image.convert(mode)
    width, height = image.size
    return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, channels)
