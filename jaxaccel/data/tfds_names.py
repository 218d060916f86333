"""Names of the data sets of TFDS (https://www.tensorflow.org/datasets), and where the prepared ones lie."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxaccel.data.builders import BUILDERS
from jaxaccel.errors import UserError

INFO_FILE = "dataset_info.json"
"""What a folder holds in which TFDS has prepared a data set."""

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w+\-.]+))?(:(?P<version>(\d+|\*)(\.(\d+|\*)){2}))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class DatasetName(NamedTuple):
    """A data set as TFDS writes it, ``NAME[/CONFIG][:VERSION]``; a version may hold ``*``."""

    name: str
    config: str | None
    version: str | None

    def __str__(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{self.name}{config}" + (f":{self.version}" if self.version else "")


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
        if _VERSION.fullmatch(p.name) and wanted.fullmatch(p.name) and (p / INFO_FILE).is_file()
    ]
    return max(folders, key=lambda p: tuple(map(int, p.name.split("."))), default=None)


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
