"""Weights in a file, whoever wrote it: safetensors, NumPy's npz, or a checkpoint of PyTorch; {name: array}."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxaccel import torch_files
from jaxaccel.errors import UserError

INSIDE = ("state_dict", "model_state_dict", "model", "net", "params", "weights")
"""Under what names training programs keep the weights, beside an optimizer's state and the like."""
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
"""What DataParallel, ``torch.compile`` and training programs put before every name."""
_COUNTERS = "num_batches_tracked"
"""PyTorch's BatchNorm counts batches, which no inference needs."""


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name, in its order. What the file is decides its content, not its suffix.

    Nothing in the file is executed. Arrays in nested dictionaries have names joined by dots. Of a PyTorch checkpoint
    that holds more than weights, the dictionary under one of `INSIDE` is taken; of `WRAPPERS`, those that
    stand before all names are left out, and so are BatchNorm's counters.

    Raises:
      UserError: the file is missing, damaged, of another kind, or holds no array.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:9] == b"{":
            arrays = _safetensors(path)
        elif start[:4] == b"PK\x03\x04" and _is_npz(path):
            arrays = _npz(path)
        else:
            arrays = _flat(_weights_in(torch_files.read(path)))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    arrays = {name: value for name, value in arrays.items() if name.rsplit(".", 1)[-1] != _COUNTERS}
    if not arrays:
        raise UserError(f"{path} holds no arrays: give a file with the weights of a model")
    return _without_shared_prefix(arrays)


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): get it again") from error


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name.replace("/", "."): archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise UserError(f"{path} is no whole npz file of numbers ({error}): get it again") from error


def _weights_in(content: Mapping[str, Any]) -> Mapping[str, Any]:
    if any(isinstance(value, np.ndarray) for value in content.values()):
        return content
    for name in INSIDE:
        if isinstance(content.get(name), dict):
            return _weights_in(content[name])
    return content


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        if isinstance(value, np.ndarray):
            found[f"{before}{name}"] = value
        elif isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
    return found


def _without_shared_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in arrays):
            return _without_shared_prefix({name[len(prefix) :]: value for name, value in arrays.items()})
    return arrays
