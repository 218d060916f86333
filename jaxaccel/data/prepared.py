"""Data sets that TFDS has prepared as ArrayRecord files, read without TensorFlow."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxaccel.data.decode import example_decoder
from jaxaccel.data.features_file import check_features
from jaxaccel.data.source import Example
from jaxaccel.data.splits import split_ranges
from jaxaccel.data.tfds_names import quiet_tfds
from jaxaccel.errors import UserError, option


class PreparedSet:
    """A prepared ArrayRecord data set of TFDS, of which any split can be opened."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self._builder = _builder(name, directory)

    @property
    def splits(self) -> dict[str, int]:
        """{split: number of its examples}."""
        return {split: info.num_examples for split, info in self._builder.info.splits.items()}

    def open(self, split: str) -> PreparedSource:
        """The split, written as TFDS does.

        Raises:
          UserError: there is no such split, it is empty, or its files are damaged.
        """
        return PreparedSource(self.name, split, self.directory, self._builder)

    def digest(self) -> str:
        """SHA-256 of the version and the sizes of the splits."""
        return hashlib.sha256(f"{self.directory.name} {sorted(self.splits.items())}".encode()).hexdigest()


class PreparedSource:
    """A split of a prepared ArrayRecord data set of TFDS, read without TensorFlow."""

    def __init__(self, name: str, split: str, directory: Path, builder: Any = None) -> None:
        from jaxaccel.data.stored_audio import as_stored

        self.name = name
        self.split = split
        self.directory = directory
        builder = builder or _builder(name, directory)
        stored = builder.info.features
        self._records = _open_records(name, split, directory, builder)
        self._decode = example_decoder(stored)
        self._features = as_stored(stored)

    @property
    def features(self) -> Mapping[str, Any]:
        """TFDS feature of each key of an example; a sound is a Tensor of int16 (n,) here, beside its ``rate``."""
        return self._features

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Example:
        position = self._position(index)
        try:
            return self._decode(self._records[position])
        except UserError as error:  # of a sound
            raise UserError(f"example {index} of {self.split!r} of {self.name!r}: {error.message}") from error
        except Exception as error:  # whatever the bytes made the readers stumble on
            raise damaged_error(self.directory, error) from error

    def __getitems__(self, indices: Sequence[int], /) -> list[Example]:
        positions = [self._position(i) for i in indices]
        if len(positions) < 16:  # the reader starts threads to read many, half a millisecond
            return [self[i] for i in positions]
        try:
            return [self._decode(record) for record in self._records.__getitems__(positions)]
        except UserError:
            return [self[i] for i in positions]  # says which
        except Exception as error:
            raise damaged_error(self.directory, error) from error

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


def damaged_error(directory: Path, reason: object) -> UserError:
    """The error of a prepared data set that cannot be read."""
    message = " ".join(str(reason).split())
    return UserError(
        f"the prepared data set in {directory} is damaged ({message}): delete that folder, "
        "and it is prepared again"
    )


def _builder(name: str, directory: Path) -> Any:
    """TFDS's builder of the data set prepared in `directory`."""
    import tensorflow_datasets as tfds

    from jaxaccel.data.stored_audio import without_tensorflow

    check_features(directory)
    try:
        with quiet_tfds(), without_tensorflow():
            builder: Any = tfds.builder_from_directory(str(directory))
            info = builder.info
    except ImportError as error:
        raise UserError(
            f"data set {name!r} has features that TFDS reads only with the package {error.name!r}"
        ) from error
    except Exception as error:
        raise damaged_error(directory, error) from error
    if info.file_format is None or info.file_format.value != "array_record":
        form = info.file_format and info.file_format.value
        raise UserError(
            f"data set {name!r} in {directory} is stored as {form}, which has no random access: "
            f"give another {option('data.dir')}, and it is prepared there as array_record"
        )
    return builder


def _open_records(name: str, split: str, directory: Path, builder: Any) -> Any:
    """A random-access reader of the raw records of a split, whose files are all there."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordReader

    info = builder.info
    split_ranges(name, split, info.splits)
    instructions = info.splits[split].file_instructions
    for shard in instructions:
        # A truncated or missing file has no records; found here, not in the midst of training.
        try:
            reader = ArrayRecordReader(os.fspath(shard.filename))
            found = reader.num_records()
            reader.close()
        except Exception as error:
            raise damaged_error(directory, error) from error
        if found != shard.examples_in_shard:
            file = Path(shard.filename).name
            raise damaged_error(directory, f"{file} holds {found} of its {shard.examples_in_shard} records")
    raw: Any = tfds.decode.DeserializeMethod.RAW_BYTES
    return builder.as_data_source(split, deserialize_method=raw)
