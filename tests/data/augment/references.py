"""Batches, and slow references of what augmentations compute, in NumPy, SciPy and Pillow."""

from functools import partial
from typing import Any

import jax
import numpy as np
from PIL import Image
from scipy import ndimage

KEY = jax.random.key(5)


OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # the older emitters are quicker, and gone from 0.11
    OPTIONS["xla_cpu_use_fusion_emitters"] = False


def make_batch(size=12, shape=(9, 12, 3), dtype: Any = np.uint8, seed=0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, *shape)).astype(np.uint8)
    return {
        "image": image if dtype == np.uint8 else (image / 255).astype(dtype),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "index": rng.permutation(10_000)[:size].astype(np.int32),
        "mask": np.ones(size, np.float32),
        "epoch": np.full(size, 3, np.int32),
    }


def compiled(function):
    """Jitted in a third of the time, for a slower program."""
    return jax.jit(function, compiler_options=OPTIONS)


def apply(augmentation, batch, key=KEY):
    """All entries of the new batch."""
    return {name: np.asarray(value) for name, value in compiled(augmentation)(key, batch).items()}


def images_after(augmentations, batch, key=KEY):
    """The new images of several augmentations, by name: one program, since compiling is what takes the time."""
    program = compiled(lambda key, batch: {name: f(key, batch)["image"] for name, f in augmentations.items()})
    images = program(key, batch)
    return {name: np.asarray(images[name]) for name in augmentations}  # jit sorts names


def image_after(augmentation, batch, key=KEY, **options):
    return np.asarray(compiled(partial(augmentation, **options))(key, batch)["image"])


def photograph(height=40, width=48):
    """A smooth colored image, uint8 (H, W, 3)."""
    rng = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(rng.uniform(0, 255, (height, width, 3)), (2, 2, 0))
    return np.clip((noise - 127) * 5 + 127, 0, 255).astype(np.uint8)


def pil(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def unpil(picture):
    array = np.asarray(picture)
    return array if array.ndim == 3 else array[..., None]


def scipy_sample(image, rows, columns, fill: Any = 0, order=1):
    """One image (H, W, C) at float64 places (h, w), with the modes of `jaxaccel.data.augment.resample`."""
    mode = {"edge": "nearest", "reflect": "mirror"}.get(fill, "grid-constant")
    cval = 0 if isinstance(fill, str) else fill
    channels = [
        ndimage.map_coordinates(c, [rows, columns], order=order, mode=mode, cval=cval)
        for c in np.moveaxis(image.astype(np.float64), -1, 0)
    ]
    return np.stack(channels, axis=-1)


def matrix_places(matrix, shape, source):
    """Where a matrix (3, 3) from output to input, about the centers, takes each pixel: rows and columns."""
    rows, columns = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    found = np.einsum("ij,jhw->ihw", matrix, np.stack([rows, columns, np.ones_like(rows)]))
    return tuple(found[i] / found[2] + (source[i] - 1) / 2 for i in range(2))


def recovered_homographies(augmentation, count=100, height=25, width=33, **options):
    """The float64 matrices (about the center) that were applied, read off images of their own coordinates."""
    rows, columns = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    image = np.stack([rows, columns, np.ones_like(rows)], -1).astype(np.float32)
    batch = {"image": np.tile(image, (count, 1, 1, 1)), "index": np.arange(count)}
    out = np.asarray(compiled(partial(augmentation, **options))(KEY, batch)["image"], np.float64)
    new = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in out.shape[1:3]), indexing="ij")
    matrices = []
    for result in out:
        inside = result[..., 2] > 1 - 1e-6  # no fill mixed in
        y, x, v, u = (values[inside] for values in (*new, result[..., 0], result[..., 1]))
        zero, one = np.zeros_like(y), np.ones_like(y)
        equations = np.concatenate(
            [
                np.stack([y, x, one, zero, zero, zero, -v * y, -v * x], -1),
                np.stack([zero, zero, zero, y, x, one, -u * y, -u * x], -1),
            ]
        )
        solution = np.linalg.lstsq(equations, np.concatenate([v, u]), rcond=None)[0]
        assert np.abs(equations @ solution - np.concatenate([v, u])).max() < 2e-2
        matrices.append(np.append(solution, 1).reshape(3, 3))
    return np.stack(matrices)


def assert_uniform(values, low, high, slack=2e-3):
    """Kolmogorov-Smirnov at about 0.1%; the range is kept."""
    uniform = np.sort((np.asarray(values, np.float64) - low) / (high - low))
    assert uniform[0] > -slack and uniform[-1] < 1 + slack
    count = len(uniform)
    assert np.abs(uniform - (np.arange(count) + 0.5) / count).max() < 1.95 / np.sqrt(count) + 1e-3
