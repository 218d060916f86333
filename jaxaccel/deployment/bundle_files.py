"""The files of a bundle, in a directory or in one zip, read as bytes: nothing in them is executed."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from jaxaccel.errors import UserError


class Files(Protocol):
    """Files by their names: parts joined by ``/``, without a root."""

    def list_names(self) -> list[str]:
        """Lists all there are, sorted."""
        ...

    def read(self, name: str) -> bytes:
        """Reads one.

        Raises:
          UserError: it is not there, or cannot be read.
        """
        ...


class Directory:
    """The files in a directory and below it. Links that lead out of it are refused."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def list_names(self) -> list[str]:
        """Lists all there are, sorted."""
        found = [path for path in self._root.rglob("*") if not path.is_dir()]
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def read(self, name: str) -> bytes:
        """Reads one.

        Raises:
          UserError: it is not there, cannot be read, or lies elsewhere.
        """
        path = self._root / name
        try:
            if not path.resolve(strict=True).is_relative_to(self._root.resolve()):
                raise UserError(f"{path} leads out of the bundle: it is not read")
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


class Archive:
    """The files in a zip, which are stored as they are: what is compressed may grow without bounds, and is refused."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def list_names(self) -> list[str]:
        """Lists all there are, sorted.

        Raises:
          UserError: it is no zip.
        """
        with self._open() as opened:
            return sorted(info.filename for info in opened.infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        """Reads one.

        Raises:
          UserError: it is not there, is damaged, or is compressed.
        """
        with self._open() as opened:
            try:
                info = opened.getinfo(name)
                if info.compress_type != zipfile.ZIP_STORED:
                    raise UserError(f"{name} in {self._file} is compressed: zip it with -0")
                return opened.read(info)
            except KeyError:
                raise UserError(f"{self._file} has no {name}") from None
            except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError) as error:
                raise UserError(f"{name} in {self._file} is damaged: {error}") from error

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise UserError(f"{self._file} is no whole zip: {error}") from error


def open_files(place: Path) -> Files:
    """Opens a directory or a zip.

    Raises:
      UserError: it is not there.
    """
    if place.is_dir():
        return Directory(place)
    if place.is_file():
        return Archive(place)
    raise UserError(f"the bundle {place} is not there")


def digest_files(contents: Mapping[str, bytes]) -> dict[str, dict[str, str | int]]:
    """Gives the size in bytes and the SHA-256 of each of some files, by name."""
    return {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(contents.items())
    }


def write_archive(source: Path, file: Path) -> None:
    """Writes all files of a directory into a zip, stored as they are; the same files give the same bytes."""
    draft = file.with_name(file.name + ".draft")
    files = Directory(source)
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as opened:
        for name in files.list_names():
            opened.writestr(zipfile.ZipInfo(name), files.read(name))
    draft.replace(file)
