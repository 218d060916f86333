"""Archives of recordings: read into memory, checked by their content, and stored as 16-bit samples."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from jaxaccel.core.formats.bounds import Budget, check, explain_errors, open_file
from jaxaccel.data.audio import decode_audio
from jaxaccel.data.builders.original_files import OriginalBuilder, OriginalFile, candidates, download
from jaxaccel.errors import UserError, option

MAX_BYTES = 1 << 28
"""Of the members of an archive that are read; the most that is read here is 40 million."""


def sound_features(**others: Any) -> tfds.features.FeaturesDict:
    """``audio``, stored as bytes of int16 (an Audio of TFDS needs TensorFlow), its ``rate``, and the others."""
    return tfds.features.FeaturesDict(
        {
            "audio": tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes"),
            "rate": tfds.features.Scalar(dtype=np.int64),
            **others,
        }
    )


def decode_member(content: bytes, path: Path, name: str) -> dict[str, Any]:
    """``audio`` and ``rate`` of a file in an archive.

    Raises:
      UserError: it is no sound.
    """
    try:
        audio, rate = decode_audio(content)
    except UserError as error:
        raise UserError(f"{path}, {name}: {error.message}") from error
    return {"audio": audio, "rate": np.int64(rate)}


def read_members(path: Path, pattern: re.Pattern[str]) -> dict[str, bytes]:
    """{name without folders: bytes} of the files in a tar archive whose path fits; nothing is extracted to disk.

    Raises:
      UserError: the archive is damaged, holds two files of a name, or more than it should.
    """
    budget = Budget(MAX_BYTES, f"holds more than {MAX_BYTES:,} bytes, which no such archive does")
    members: dict[str, bytes] = {}
    with explain_errors(path, "is no tar archive"):
        try:
            with open_file(path) as file, tarfile.open(fileobj=file, mode="r:*") as archive:
                for member in archive:
                    if not (member.isfile() and pattern.fullmatch(member.name)):
                        continue
                    budget.spend(member.size)
                    stream = archive.extractfile(member)
                    name = PurePosixPath(member.name).name
                    check(name not in members, f"two files {name[:50]}")
                    members[name] = stream.read(member.size) if stream else b""
        except tarfile.TarError as error:
            raise ValueError(str(error)) from error
    return dict(sorted(members.items()))


def hash_members(members: Mapping[str, bytes]) -> str:
    """Hex sha256 of names and contents, in the order of names."""
    total = hashlib.sha256()
    for name, content in sorted(members.items()):
        total.update(f"{name} {len(content)}\n".encode() + content)
    return total.hexdigest()


class RecordingsBuilder(OriginalBuilder, skip_registration=True):
    """A builder of the recordings in one archive, whichever of several archives it is that holds them."""

    ARCHIVES: ClassVar[tuple[str, ...]]
    """What archives that hold them are called; the first is the one at `URL`."""
    URL: ClassVar[str]
    MEMBERS: ClassVar[re.Pattern[str]]
    """What paths of the recordings in an archive look like."""
    CONTENT: ClassVar[str]
    """`hash_members` of the recordings: archives of the same files differ in their bytes."""

    def find_archive(self) -> Path:
        """The archive that was given, or is downloaded.

        Raises:
          UserError: there is none.
        """
        found = next(candidates(self.ARCHIVES, self.name, self.downloads), None)
        if found is not None:
            return found
        if self.download_directory is None:
            raise UserError(f"{self.ARCHIVES[0]} of data set {self.name!r} not found in {self.downloads}")
        return download(OriginalFile(self.ARCHIVES[0], self.URL, ""), self.name, self.download_directory)

    def read_recordings(self, path: Path) -> dict[str, bytes]:
        """{name: file}, sorted.

        Raises:
          UserError: the archive holds other recordings.
        """
        members = read_members(path, self.MEMBERS)
        found = hash_members(members)
        if found != self.CONTENT:
            raise UserError(
                f"{path} does not hold the recordings of data set {self.name!r}: sha256 of {len(members):,} files "
                f"expected {self.CONTENT}, found {found}; get it again from {self.URL}, and name its folder with "
                f"{option('data.downloads', 'DIR')}"
            )
        return members
