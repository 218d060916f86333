"""PyTorch's LSTMs and GRUs, named and summed as `jaxaccel.models.layers.recurrent` keeps them.

The order of the gates is the same: input, forget, cell, output; reset, update, new.
"""

import re
from collections.abc import Mapping

import numpy as np

_NAME = re.compile(r"(.*?)(weight|bias)_(ih|hh)(?:_l(\d+)(_reverse)?)?$")
_PARTS = {"ih": "input", "hh": "recurrent"}


def split_recurrent(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arrays, with those of PyTorch's recurrent layers under the names of `Lstm` and `Gru`.

    ``lstm.weight_ih_l0`` becomes ``lstm.forward.0.input.weight``, with ``_reverse`` ``lstm.backward.0.input.weight``; a
    cell's ``cell.weight_hh`` becomes ``cell.recurrent.weight``. The two biases of an LSTM, which are only ever added,
    become one. Layers of other kinds, or with projections, stay as they are.

    Args:
      weights: by name.
    """
    found: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        match = _NAME.fullmatch(name)
        gates = _count_gates(match, weights) if match else 0
        if match is None or gates not in (3, 4):
            found[name] = value
            continue
        before, role, part, layer, reverse = match.groups()
        place = "" if layer is None else f"{'backward' if reverse else 'forward'}.{layer}."
        if gates == 4 and role == "bias":
            ours = f"{before}{place}input.bias"
            found[ours] = found[ours] + value if ours in found else value
        else:
            found[f"{before}{place}{_PARTS[part]}.{role}"] = value
    return found


def _count_gates(match: re.Match[str], weights: Mapping[str, np.ndarray]) -> float:
    """How many gates the layer of an array has, 4 in an LSTM and 3 in a GRU; 0 where it is no such layer."""
    before, _, _, layer, reverse = match.groups()
    end = "" if layer is None else f"_l{layer}{reverse or ''}"
    enters, stays = (weights.get(f"{before}weight_{part}{end}") for part in ("ih", "hh"))
    if enters is None or stays is None or enters.ndim != 2 or stays.ndim != 2 or not stays.shape[1]:
        return 0
    return stays.shape[0] / stays.shape[1] if stays.shape[0] == enters.shape[0] else 0
