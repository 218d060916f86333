"""The published policies as data: operations, the ranges of their magnitudes, AutoAugment's learned sub-policies.

Magnitudes are torchvision's, with which the papers' results are reproduced. The authors' own code has others for some:
AutoAugment's factors there run from 0.1 to 1.9 without a sign, and its translations to a fixed number of pixels.
"""

import dataclasses

import numpy as np

from jaxaccel.core.options import Options

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize", "invert",
)  # fmt: skip
"""All that a policy may do to an image; RandAugment and TrivialAugment draw from all but the last."""

ENHANCERS = ("brightness", "color", "contrast", "sharpness")
"""Those of a factor, as in Pillow's ImageEnhance."""


@dataclasses.dataclass(frozen=True)
class Magnitudes(Options):
    """What the highest of evenly spaced magnitudes means; the lowest means no change, but for solarize (255 is
    negated) and AugMix's posterize."""

    levels: int
    """How many magnitudes there are."""
    shear: float = 0.3
    """Pixels a pixel."""
    shift: float = 150 / 331
    """Translation: a share of the size, or pixels where it is above 1."""
    rotation: float = 30.0
    """Degrees."""
    factor: float = 0.9
    """Brightness, color, contrast and sharpness: the factor is one plus or minus this."""
    kept_bits: int = 8
    """Posterize at the lowest magnitude."""
    lost_bits: int = 4
    """Posterize: as many fewer at the highest."""


AUTO = Magnitudes(levels=10)
"""Cubuk et al. 2019, arXiv:1805.09501."""

RAND = Magnitudes(levels=31)
"""Cubuk et al. 2020, arXiv:1909.13719."""

TRIVIAL_WIDE = Magnitudes(levels=31, shear=0.99, shift=32.0, rotation=135.0, factor=0.99, lost_bits=6)
"""Müller & Hutter 2021, arXiv:2103.10158, the wide space."""

AUGMIX = Magnitudes(levels=101, shift=1 / 3, kept_bits=4)
"""Hendrycks et al. 2020, arXiv:1912.02781; their ten levels, in tenths."""

COLUMNS = 18
"""Entries of a row of `parameters`: a matrix of 9, then what `CURVES` and `BLENDS` say."""

CURVES = {"bits": 9, "threshold": 10, "autocontrast": 11, "equalize": 12}
"""Columns of tone curves."""

BLENDS = {"factor": 13, "color": 14, "contrast": 15, "sharpness": 16}
"""Columns of what is blended with the image by a factor: black where none of the flags is set."""

INVERT = 17
"""Column of the flag."""


def parameters(magnitudes: Magnitudes, height: int, width: int) -> np.ndarray:
    """What each operation does at each magnitude and sign, (operations, levels, 2, COLUMNS) float32."""
    table = np.zeros((len(OPERATIONS), magnitudes.levels, 2, COLUMNS))
    table[..., :9] = np.eye(3).ravel()
    table[..., CURVES["bits"]], table[..., CURVES["threshold"]], table[..., BLENDS["factor"]] = 8, 256, 1
    row = {name: table[i] for i, name in enumerate(OPERATIONS)}
    share = np.linspace(0, 1, magnitudes.levels)
    signed = share[:, None] * [1, -1]
    # Matrices lead from output to input, rows before columns. Shears keep the top left corner where it is.
    slope = magnitudes.shear * signed
    row["shear_x"][..., 3], row["shear_x"][..., 5] = slope, slope * height / 2
    row["shear_y"][..., 1], row["shear_y"][..., 2] = slope, slope * width / 2
    for name, place, size in (("translate_x", 5, width), ("translate_y", 2, height)):
        pixels = magnitudes.shift * (size if magnitudes.shift <= 1 else 1)
        row[name][..., place] = -np.trunc(pixels * signed)
    angle = np.radians(magnitudes.rotation * signed)
    row["rotate"][..., 0] = row["rotate"][..., 4] = np.cos(angle)
    row["rotate"][..., 1], row["rotate"][..., 3] = np.sin(angle), -np.sin(angle)
    factor = np.round((1 + magnitudes.factor * signed) * 4096) / 4096
    for name in ENHANCERS:
        row[name][..., BLENDS["factor"]] = factor
        if name in BLENDS:
            row[name][..., BLENDS[name]] = 1
    bits = magnitudes.kept_bits - np.round(magnitudes.lost_bits * share)
    row["posterize"][..., CURVES["bits"]] = bits[:, None]
    row["solarize"][..., CURVES["threshold"]] = np.ceil(255 * (1 - share))[:, None]
    for name in ("autocontrast", "equalize"):
        row[name][..., CURVES[name]] = 1
    row["invert"][..., INVERT] = 1
    return table.astype(np.float32)


_SUBPOLICIES = {
    "imagenet": """
        posterize 4 8, rotate 6 9;        solarize 6 5, autocontrast 6 0;   equalize 8 0, equalize 6 0
        posterize 6 7, posterize 6 6;     equalize 4 0, solarize 2 4;       equalize 4 0, rotate 8 8
        solarize 6 3, equalize 6 0;       posterize 8 5, equalize 10 0;     rotate 2 3, solarize 6 8
        equalize 6 0, posterize 4 6;      rotate 8 8, color 4 0;            rotate 4 9, equalize 6 0
        equalize 0 0, equalize 8 0;       invert 6 0, equalize 10 0;        color 6 4, contrast 10 8
        rotate 8 8, color 10 2;           color 8 8, solarize 8 7;          sharpness 4 7, invert 6 0
        shear_x 6 5, equalize 10 0;       color 4 0, equalize 6 0;          equalize 4 0, solarize 2 4
        solarize 6 5, autocontrast 6 0;   invert 6 0, equalize 10 0;        color 6 4, contrast 10 8
        equalize 8 0, equalize 6 0
    """,
    "cifar10": """
        invert 1 0, contrast 2 6;         rotate 7 2, translate_x 3 9;      sharpness 8 1, sharpness 9 3
        shear_y 5 8, translate_y 7 9;     autocontrast 5 0, equalize 9 0;   shear_y 2 7, posterize 3 7
        color 4 3, brightness 6 7;        sharpness 3 9, brightness 7 9;    equalize 6 0, equalize 5 0
        contrast 6 7, sharpness 6 5;      color 7 7, translate_x 5 8;       equalize 3 0, autocontrast 4 0
        translate_y 4 3, sharpness 2 6;   brightness 9 6, color 2 8;        solarize 5 2, invert 0 0
        equalize 2 0, autocontrast 6 0;   equalize 2 0, equalize 6 0;       color 9 9, equalize 6 0
        autocontrast 8 0, solarize 2 8;   brightness 1 3, color 7 0;        solarize 4 5, autocontrast 9 0
        translate_y 9 9, translate_y 7 9; autocontrast 9 0, solarize 8 3;   equalize 8 0, invert 1 0
        translate_y 7 9, autocontrast 9 0
    """,
    "svhn": """
        shear_x 9 4, invert 2 0;          shear_y 9 8, invert 7 0;          equalize 6 0, solarize 6 6
        invert 9 0, equalize 6 0;         equalize 6 0, rotate 9 3;         shear_x 9 4, autocontrast 8 0
        shear_y 9 8, invert 4 0;          shear_y 9 5, solarize 2 6;        invert 9 0, autocontrast 8 0
        equalize 6 0, rotate 9 3;         shear_x 9 4, solarize 3 3;        shear_y 8 8, invert 7 0
        equalize 9 0, translate_y 6 6;    invert 9 0, equalize 6 0;         contrast 3 3, rotate 8 4
        invert 8 0, translate_y 0 2;      shear_y 7 6, solarize 4 8;        invert 6 0, rotate 8 4
        shear_y 3 7, translate_x 9 3;     shear_x 1 6, invert 6 0;          solarize 7 2, translate_y 6 7
        shear_y 8 4, invert 8 0;          shear_x 7 9, translate_y 8 3;     shear_y 8 5, autocontrast 7 0
        shear_x 7 2, invert 1 0
    """,
}
"""Operation, probability in tenths, magnitude; the appendix of arXiv:1805.09501."""


def subpolicies(policy: str) -> np.ndarray:
    """A learned policy as (25, 2, 3) int32: number in `OPERATIONS`, probability in tenths, magnitude."""
    pairs = _SUBPOLICIES[policy].replace("\n", ";").split(";")
    steps = [[step.split() for step in pair.split(",")] for pair in pairs if pair.strip()]
    rows = [[[OPERATIONS.index(name), int(p), int(m)] for name, p, m in pair] for pair in steps]
    return np.array(rows, np.int32)


POLICIES = tuple(_SUBPOLICIES)
"""Data sets on which AutoAugment's policies were learned."""
