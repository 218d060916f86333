"""Weights in a file, whoever wrote it: safetensors, NumPy's npz, or a checkpoint of PyTorch; {name: array}."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxaccel.core.formats import npz_files, safetensors_files, torch_files
from jaxaccel.core.formats.bounds import Budget, Refused, check, explain_errors, open_file, shorten
from jaxaccel.core.formats.pickles import Opaque
from jaxaccel.core.formats.torch_pickle import unread_kind

INSIDE = (
    *("state_dict", "model_state_dict", "model_state", "model_dict", "model", "module", "net", "network"),
    *("params", "weights", "student", "generator"),
    *("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "params_ema", "ema", "teacher"),
)
"""Under what names training programs keep the weights, beside an optimizer's state and the like; the first that is
there and holds arrays is taken. Averages of weights come last: where there is nothing else, or by name."""
BESIDE = ("optim", "sched", "lr_sched", "scaler", "amp", "rng", "opt_state")
"""What entries are called, or begin with, that hold arrays and are no weights."""
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
"""What DataParallel, ``torch.compile`` and training programs put before every name."""
_COUNTERS = ("num_batches_tracked", "n_averaged", "position_ids")
"""PyTorch's BatchNorm counts batches, its AveragedModel averages, and models of text their positions, which are no
weights."""
_FOREIGN = {
    b"\x89HDF": "an HDF5 file, as Keras writes it",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x93NUMPY": "a single array of numpy.save",
    b"GGUF": "a GGUF file",
}


def read(path: str | Path, inside: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file by name, in its order. What the file is decides its content, not its suffix.

    Nothing in the file is executed. Arrays in nested dictionaries have names joined by dots. Of a PyTorch checkpoint
    that holds more than weights, the dictionary under one of `INSIDE` is taken; of `WRAPPERS`, those that
    stand before all names are left out, and so are counters of BatchNorm, of averages and of positions.

    Args:
      path: of the file.
      inside: name of the dictionary to take from a PyTorch checkpoint that has several: ``model_ema``. Dots lead
        further in: ``ema.module``.

    Raises:
      UserError: the file is missing, damaged, of another kind, holds no array, has nothing under `inside`, or its
        weights are tensors of a kind that is not read (sparse, quantized).
    """
    path = Path(path)
    with explain_errors(path, "no file of weights"):
        with open_file(path) as file:
            start = file.read(9)
        if kind := next((kind for magic, kind in _FOREIGN.items() if start.startswith(magic)), None):
            raise Refused(f"is {kind}: give weights as safetensors, npz or a file of torch.save")
        if start[8:9] == b"{":
            arrays = safetensors_files.read(path)
        elif start[:4] == b"PK\x03\x04" and npz_files.is_npz(path):
            arrays = _with_dots(npz_files.read(path))
        else:
            return _of_checkpoint(path, inside)
        if inside is not None:
            raise Refused(f"is no PyTorch checkpoint: it has nothing inside {shorten(inside)}")
        return _cleaned(arrays, ": give a file with the weights of a model")


def _of_checkpoint(path: Path, inside: str | None) -> dict[str, np.ndarray]:
    content = torch_files.read(path)
    weights = _weights_in(content) if inside is None else _under(content, inside)
    # Dictionaries may hold one another twice and twice again, under names as long as a file likes.
    names = Budget(1 << 24, "names its arrays in too many ways; refused")
    return _cleaned(_flat(weights, names), _hint(content))


def _with_dots(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {name.replace("/", "."): value for name, value in arrays.items()}
    check(len(found) == len(arrays), "two arrays of one name")
    return found


def _weights_in(content: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in INSIDE:
        if isinstance(content.get(name), dict) and _has_arrays(content[name]):
            return _weights_in(content[name])
    return {name: x for name, x in content.items() if not (isinstance(x, dict) and _is_beside(name))}


def _under(content: Mapping[str, Any], inside: str) -> Mapping[str, Any]:
    """The weights in the dictionary that the names in `inside` lead to."""
    found: Any = content
    for name in inside.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not _has_arrays(found):
        names = [shorten(name, 40) for name, x in content.items() if isinstance(x, dict) and _has_arrays(x)]
        raise Refused(f"has no arrays inside {shorten(inside)}; there are: {', '.join(names[:10]) or 'none'}")
    return _weights_in(found)


def _is_beside(name: str) -> bool:
    return name.lower().startswith(BESIDE)


def _has_arrays(tree: Mapping[str, Any]) -> bool:
    """Whether an array lies in the tree; a tensor of a kind that is not read counts, so that it is told."""
    seen, left = {id(tree)}, [tree]
    while left:
        for x in left.pop().values():
            if isinstance(x, np.ndarray) or unread_kind(x) is not None:
                return True
            if isinstance(x, dict) and id(x) not in seen:
                seen.add(id(x))
                left.append(x)
    return False


def _flat(tree: Mapping[str, Any], names: Budget, before: str = "") -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        name = f"{before}{key}"
        names.spend(64 + len(name))
        if isinstance(value, np.ndarray):
            found[name] = value
        elif isinstance(value, dict):
            found |= _flat(value, names, f"{name}.")
        elif (kind := unread_kind(value)) is not None:
            raise Refused(
                f"has {shorten(name)} as a {kind} tensor, which is not read: save it dense, in float32"
            )
    return found


def _hint(content: Mapping[str, Any]) -> str:
    """What to do about a checkpoint whose model is an object."""
    for name in (*INSIDE, *content):
        if isinstance(value := content.get(name), Opaque):
            kind = shorten(value.name)
            return (
                f": its {shorten(name, 40)!r} is an object of {kind}, which is not run: save its state_dict()"
            )
    return ": give a file with the weights of a model"


def _cleaned(arrays: dict[str, np.ndarray], otherwise: str) -> dict[str, np.ndarray]:
    """Without counters and without what training programs put before every name."""
    arrays = {name: value for name, value in arrays.items() if name.rsplit(".", 1)[-1] not in _COUNTERS}
    if not arrays:
        raise Refused(f"holds no arrays{otherwise}")
    for _ in range(2 * len(WRAPPERS)):
        prefix = next((p for p in WRAPPERS if all(name.startswith(p) for name in arrays)), "")
        arrays = {name[len(prefix) :]: value for name, value in arrays.items()}
    return arrays
