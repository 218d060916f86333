"""Prepares a data set as ArrayRecord files: without TensorFlow if a builder of ours can, else in a child.

The child is `jaxaccel.data.builders.run_tfds`: it runs TFDS's own builder, with TensorFlow, which so never enters
the process that trains.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib.util
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxaccel.data.builders import ALSO_OF_TFDS, BUILDERS, ERROR, builder_class
from jaxaccel.data.features_file import check_features
from jaxaccel.data.tfds_names import DatasetName, find_prepared, known_names, quiet_tfds
from jaxaccel.errors import UserError, option

log = logging.getLogger(__name__)

_FORMAT = "array_record"
CHILD = "jaxaccel.data.builders.run_tfds"


def prepare(dataset: DatasetName, directory: Path, downloads: Path | None = None) -> Path:
    """Prepares `dataset` below `directory` and returns its folder.

    What must be downloaded goes to ``directory/downloads/NAME``: a folder for each data set, since several
    data sets use the same file names. Processes that prepare the same data set wait for one another.

    Raises UserError: unknown data set, missing or wrong files, TensorFlow missing, folder not writable.
    """
    names = known_names()
    if dataset.name not in names:
        near = difflib.get_close_matches(dataset.name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see tensorflow.org/datasets/catalog"
        if importlib.util.find_spec("tensorflow") is None:
            hint += (
                "; TFDS knows some data sets with TensorFlow alone, which prepares them once: pip install "
                "'jaxaccel[tfds-prepare]'"
            )
        raise UserError(f"unknown data set {dataset.name!r}: {hint}")
    if downloads is not None and not downloads.is_dir():
        raise UserError(f"{option('data.downloads', downloads)} is not a folder")
    try:
        with _lock(directory, dataset.name):
            prepared = find_prepared(dataset, directory)  # by the process that held the lock
            if prepared is None:
                if _is_ours(dataset):
                    prepare_here(dataset, directory, downloads)
                else:
                    prepare_in_child(dataset, directory, downloads)
                prepared = find_prepared(dataset, directory)
    except OSError as error:
        raise UserError(_disk_message(directory, error)) from error
    if prepared is None:
        raise UserError(f"data set '{dataset}' was prepared in {directory}, but cannot be found there")
    return prepared


def _is_ours(dataset: DatasetName) -> bool:
    """Whether a builder of ours prepares that data set."""
    if dataset.name not in BUILDERS or dataset.config is not None:
        return False
    version: Any = builder_class(dataset.name).VERSION
    return dataset.name not in ALSO_OF_TFDS or not dataset.version or version.match(dataset.version)


def prepare_here(dataset: DatasetName, directory: Path, downloads: Path | None) -> None:
    """Prepares with a builder of ours, in this process and without TensorFlow."""
    import tensorflow_datasets as tfds

    cls = builder_class(dataset.name)
    version: Any = cls.VERSION
    if dataset.version and not version.match(dataset.version):
        raise UserError(
            f"data set {dataset.name!r} can be prepared in version {version} only, not {dataset.version}"
        )
    builder: Any = cls(
        data_dir=str(directory),
        file_format=_FORMAT,
        downloads=downloads,
        download_directory=directory / "downloads" / dataset.name,
    )
    log.info("preparing %s (%s examples) in %s", dataset.name, f"{cls.EXAMPLES:,}", directory)
    tfds.display_progress_bar(sys.stderr.isatty())
    with quiet_tfds(), contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what the line above says
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def prepare_in_child(dataset: DatasetName, directory: Path, downloads: Path | None) -> None:
    """Prepares with TFDS's own builder and TensorFlow, in a child process."""
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"preparing data set '{dataset}' needs TensorFlow, once: pip install 'jaxaccel[tfds-prepare]'"
        )
    for file in (directory / dataset.name).rglob("features.json"):
        check_features(file.parent)  # TFDS's builder may read what is there already
    log_file = directory / "downloads" / dataset.name / "prepare.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", CHILD, str(dataset), "--directory", str(directory)]
    command += ["--parent", str(os.getpid())]
    if downloads is not None:
        command += ["--downloads", str(downloads)]
    log.info("preparing %s in %s with TFDS (log: %s)", dataset, directory, log_file)
    # The accelerators belong to the trainer; and the child finds this very package.
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
    }
    with log_file.open("w") as output:
        code = _run(command, environment, output)
    if code:
        lines = [line.strip() for line in log_file.read_text(errors="replace").splitlines() if line.strip()]
        said = [line for line in lines if line.startswith(ERROR)] or lines or [f"exit code {code}"]
        raise UserError(f"{said[-1].removeprefix(ERROR)} (log: {log_file})")


def _run(command: list[str], environment: dict[str, str], output: IO[str]) -> int:
    """Runs the child to its end and returns its exit code; it does not outlive this process's interrupt."""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    ) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            raise


@contextlib.contextmanager
def _lock(directory: Path, name: str) -> Iterator[None]:
    """Holds the lock on preparing `name` in `directory`; the system frees it when a process dies."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f".{name}.lock").open("w") as file:
        try:
            import fcntl
        except (
            ImportError
        ):  # Windows: TFDS writes to a temporary folder and renames it, so at worst one fails
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that prepares %s in %s", name, directory)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _disk_message(directory: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left in {directory} to prepare the data set: free some, or give another {option('data.dir')}"
    return f"cannot prepare the data set in {directory} ({error}): give another {option('data.dir')}"
