"""Original files of a data set: found in a folder or downloaded, and always checked by sha256."""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import tensorflow_datasets as tfds

from jaxaccel.errors import UserError, option

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 20  # bytes


class OriginalFile(NamedTuple):
    """One file as its authors publish it: its usual name, where it lies, and the sha256 of its bytes.

    The sha256 is "" where the bytes are not the same each time, and whoever reads the file checks its content.
    """

    filename: str
    url: str
    sha256: str

    @property
    def tfds_filename(self) -> str:
        """The name under which TFDS keeps this file in a download directory."""
        from tensorflow_datasets.core.download import resource

        return resource.get_dl_fname(self.url, self.sha256)


class OriginalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder that reads original files itself: no TensorFlow, nothing extracted to disk.

    Args (beside TFDS's own): `downloads`, a folder with files downloaded before, searched first; and
    `download_directory`, where files that are not there are downloaded to.
    """

    EXAMPLES: ClassVar[int]
    """Number of examples of all splits together."""
    ORIGINALS: ClassVar[Mapping[str, OriginalFile]] = {}

    def __init__(
        self, *, downloads: Path | None = None, download_directory: Path | None = None, **arguments: Any
    ) -> None:
        self.downloads = downloads
        self.download_directory = download_directory
        super().__init__(**arguments)

    def originals(self, files: Mapping[str, OriginalFile]) -> dict[str, Path]:
        """Paths of original files, downloaded if need be; raises UserError when they cannot be had."""
        found = {key: locate(file, self.name, self.downloads) for key, file in files.items()}
        missing = [files[key] for key, path in found.items() if path is None]
        folder = self.download_directory
        if missing and folder is None:
            names = ", ".join(file.filename for file in missing)
            raise UserError(f"{names} of data set {self.name!r} not found in {self.downloads}")
        return {
            key: path if path is not None else download(files[key], self.name, folder or Path(), missing)
            for key, path in found.items()
        }


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def candidates(names: Iterable[str], dataset: str, downloads: Path | None) -> Iterator[Path]:
    """Files called one of `names` in `downloads/dataset` or in `downloads` itself, in that order."""
    if downloads is None:
        return
    names = tuple(names)  # iterated once per folder
    for folder in (downloads / dataset, downloads):
        yield from (folder / name for name in names if (folder / name).is_file())


def locate(file: OriginalFile, dataset: str, downloads: Path | None) -> Path | None:
    """Where `file` lies in `downloads`, under its own name or TFDS's; None if it is not there.

    Several data sets use the same file names (mnist, fashion_mnist), so a file whose sha256 differs is
    passed over as long as another one fits. Raises UserError when files were found and none fits.
    """
    wrong: tuple[Path, str] | None = None
    for path in candidates((file.filename, file.tfds_filename), dataset, downloads):
        found = sha256(path)
        if found == file.sha256:
            return path
        wrong = wrong or (path, found)
    if wrong is not None:
        raise UserError(
            f"{wrong[0]} is not the {file.filename} of data set {dataset!r}: "
            f"sha256 expected {file.sha256}, found {wrong[1]}; download it again from {file.url}"
        )
    return None


def download(file: OriginalFile, dataset: str, directory: Path, missing: Sequence[OriginalFile] = ()) -> Path:
    """Downloads `file` into `directory` unless it is there already, and returns its path.

    Raises UserError when it cannot be had, naming the URLs of all that is `missing`, or when its sha256 is
    not the expected one.
    """
    path = directory / file.filename
    if path.is_file() and file.sha256 in ("", sha256(path)):
        return path
    directory.mkdir(parents=True, exist_ok=True)
    log.info("downloading %s", file.url)
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as stream:
            for block in _blocks(file, dataset, missing or [file]):
                stream.write(block)
        found = sha256(partial)
        if file.sha256 not in ("", found):
            raise UserError(
                f"{file.url} did not give the {file.filename} of data set {dataset!r}: sha256 expected "
                f"{file.sha256}, found {found}; get the file elsewhere and name its folder with "
                f"{option('data.downloads', 'DIR')}"
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _blocks(file: OriginalFile, dataset: str, missing: Sequence[OriginalFile]) -> Iterator[bytes]:
    """The bytes of `file.url`; what goes wrong on the net is one UserError, unlike errors of the disk."""
    try:
        with urllib.request.urlopen(file.url, timeout=DOWNLOAD_TIMEOUT) as response:
            while block := response.read(_BLOCK):
                yield block
    except (OSError, http.client.HTTPException) as error:
        urls = ", ".join(other.url for other in missing)
        files = "the file" if len(missing) == 1 else f"these {len(missing)} files"
        raise UserError(
            f"cannot download {urls} for data set {dataset!r} ({getattr(error, 'reason', error)}): "
            f"put {files} into a folder and name that with {option('data.downloads', 'DIR')}"
        ) from error
