"""Runs a builder of TFDS itself, with TensorFlow: the child process of `jaxaccel.data.prepare`.

``python -m jaxaccel.data.builders.run_tfds NAME --directory DIR [--downloads DIR]``
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from jaxaccel.data.builders import ERROR
from jaxaccel.data.builders.original_files import sha256
from jaxaccel.data.child_processes import end_with
from jaxaccel.errors import UserError, option


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares one data set; the last line on stderr says what went wrong, and the exit code is then 2."""
    parser = argparse.ArgumentParser(prog="python -m jaxaccel.data.builders.run_tfds", description=__doc__)
    parser.add_argument("name", help="data set as TFDS writes it, NAME[/CONFIG][:VERSION]")
    parser.add_argument("--directory", type=Path, required=True, help="where prepared data sets lie")
    parser.add_argument("--downloads", type=Path, help="folder with files downloaded before")
    parser.add_argument("--parent", type=int, help="process with which this one is to end")
    options = parser.parse_args(arguments)
    if options.parent:
        end_with(options.parent)
    try:
        prepare_with_tfds(options.name, options.directory, options.downloads)
    except UserError as error:
        message = error.message
    except Exception as error:  # whatever a builder raises; the whole of it stands in the log
        traceback.print_exc()
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        message = f"TFDS cannot prepare {options.name!r} ({type(error).__name__}: {reason})"
    else:
        return 0
    print(ERROR + message, file=sys.stderr)
    return 2


def prepare_with_tfds(name: str, directory: Path, downloads: Path | None) -> None:
    """Prepares `name` in `directory` as ArrayRecord, with the files in `downloads` instead of the net.

    TFDS's download folder is ``directory/downloads/NAME``, private to the data set: TFDS reuses extracted
    files by name, and data sets with equal file names would get each other's.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    tfds.disable_progress_bar()
    asked: list[str] = []
    plain = downloader.get_downloader

    def recording(*positional: Any, **keywords: Any) -> Any:
        found = plain(*positional, **keywords)
        start = found.download

        def download(url: str, *rest: Any, **more: Any) -> Any:
            asked.append(url)
            return start(url, *rest, **more)

        found.download = download
        return found

    downloader.get_downloader = recording
    downloader.MAX_RETRIES = 4  # not the minutes of waiting that the default means without a network
    builder = tfds.builder(name, data_dir=str(directory), file_format="array_record")
    private = directory / "downloads" / builder.name
    wrong = place_downloads(builder, private / builder.name, downloads)
    manual = None
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        manual = _manual_folder(builder, downloads)
    config = tfds.download.DownloadConfig(
        manual_dir=None if manual is None else str(manual), try_download_gcs=False
    )
    try:
        builder.download_and_prepare(download_dir=str(private), download_config=config)
    except ModuleNotFoundError as error:
        raise UserError(
            f"preparing data set {name!r} needs the package {error.name!r}: pip install {error.name}"
        ) from error
    except Exception as error:
        missing = [url for url in dict.fromkeys(asked) if not _is_cached(builder, private, url)]
        if not missing:
            raise
        traceback.print_exc()
        notes = "".join(f"; {wrong[url]}" for url in missing if url in wrong)
        files = "the file" if len(missing) == 1 else f"these {len(missing)} files"
        raise UserError(
            f"cannot download {', '.join(missing)} for data set {name!r}{notes}: "
            f"put {files} into a folder and name that with {option('data.downloads', 'DIR')}"
        ) from error


def place_downloads(builder: Any, folder: Path, downloads: Path | None) -> dict[str, str]:
    """Links the files in `downloads` into `folder` under the names by which TFDS looks for them.

    A file may have its own name or TFDS's; it counts only if its sha256 is the one that TFDS recorded for
    its URL. Returns, by URL, what to say of files that have a right name and wrong content.
    """
    from tensorflow_datasets.core.download import resource

    wrong: dict[str, str] = {}
    if downloads is None:
        return wrong
    for url, info in (builder.url_infos or {}).items():
        filename = info.filename or PurePosixPath(urlparse(url).path).name
        target = folder / resource.get_dl_fname(url, info.checksum)
        for path in _found(downloads, builder.name, {filename, target.name}):
            found = sha256(path)
            if found == info.checksum:
                wrong.pop(url, None)
                _place(path, target, url, filename, builder.name)
                break
            wrong[url] = f"{path} is another file (sha256 expected {info.checksum}, found {found})"
    return wrong


def _found(downloads: Path, dataset: str, names: set[str]) -> Iterator[Path]:
    """Files of one of these names in `downloads`, or anywhere below ``downloads/dataset``."""
    for name in sorted(names):
        if (downloads / name).is_file():
            yield downloads / name
        yield from sorted(p for p in (downloads / dataset).rglob(name) if p.is_file())


def _place(path: Path, target: Path, url: str, filename: str, dataset: str) -> None:
    """Links `path` to `target`, with the .INFO file without which TFDS does not take it for downloaded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(path.resolve())
    info = {"original_fname": filename, "urls": [url], "dataset_names": [dataset]}
    Path(f"{target}.INFO").write_text(json.dumps(info))


def _is_cached(builder: Any, private: Path, url: str) -> bool:
    """Whether TFDS has the file of `url`, under its checksum's name or (if none is recorded) its URL's."""
    from tensorflow_datasets.core.download import resource

    info = (builder.url_infos or {}).get(url)
    names = {resource.get_dl_fname(url), resource.get_dl_fname(url, info and info.checksum)}
    return any((private / builder.name / name).exists() for name in names)


def _manual_folder(builder: Any, downloads: Path | None) -> Path:
    """Where the files lie that TFDS does not download itself; raises UserError without one."""
    if downloads is None:
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        raise UserError(
            f"data set {builder.name!r} must be downloaded by hand into a folder named with "
            f"{option('data.downloads', 'DIR')}; TFDS says: {instructions}"
        )
    own = downloads / builder.name
    return own if own.is_dir() else downloads


if __name__ == "__main__":
    sys.exit(main())
