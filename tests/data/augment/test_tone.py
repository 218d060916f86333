from functools import partial

import jax
import numpy as np
import pytest
from PIL import ImageOps
from references import KEY, compiled, image_after, make_batch, photograph, pil, unpil

from jaxaccel.data.augment import autocontrast, equalize, posterize, solarize
from jaxaccel.data.augment.tone import counted_by_products, counted_one_by_one
from jaxaccel.errors import UserError


def pictures():
    """Full and narrow ranges, few levels, one level, and noise: (6, 40, 48, 3) uint8."""
    image = photograph()
    narrow = image // 5 + np.array([40, 90, 170], np.uint8)
    return np.stack(
        [
            image,
            narrow,
            image // 64 * 64,
            np.full_like(image, 77),
            np.random.default_rng(2).integers(0, 256, image.shape).astype(np.uint8),
            np.where(image > 127, 255, 3).astype(np.uint8),
        ]
    )


CASES = {
    "posterize": (partial(posterize, bits=3), lambda picture: ImageOps.posterize(picture, 3)),
    "posterize to one bit": (partial(posterize, bits=1), lambda picture: ImageOps.posterize(picture, 1)),
    "solarize": (solarize, ImageOps.solarize),
    "solarize from 256": (partial(solarize, threshold=1.0), partial(ImageOps.solarize, threshold=256)),
    "solarize from 64": (
        partial(solarize, threshold=0.25),
        lambda picture: ImageOps.solarize(picture, 64),
    ),
    "equalize": (equalize, ImageOps.equalize),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_equal_to_pillow_bit_by_bit(name, channels):
    ours, pillows = CASES[name]
    images = pictures()[..., :channels]
    out = image_after(ours, {"image": images}, probability=1.0)
    for result, image in zip(out, images, strict=True):
        np.testing.assert_array_equal(result, unpil(pillows(pil(image))))
    if channels == 3:  # floating-point images are those levels
        floats = {"image": (images / 255).astype(np.float32)}
        np.testing.assert_allclose(image_after(ours, floats, probability=1.0) * 255, out, atol=1e-3)


def test_autocontrast_is_exact_and_pillow_at_most_one_lower():
    images = pictures().astype(np.int64)
    out = image_after(autocontrast, {"image": images.astype(np.uint8)}, probability=1.0)
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    exact = np.where(high > low, (images - low) * 255 // np.maximum(high - low, 1), images)
    np.testing.assert_array_equal(out, exact)
    for result, image, span in zip(out, images, high - low, strict=True):
        pillow = unpil(ImageOps.autocontrast(pil(image.astype(np.uint8)))).astype(int)
        lower = result - pillow
        whole = (image - image.min((0, 1))) * 255 % np.maximum(span, 1) == 0
        assert set(np.unique(lower)) <= {0, 1} and (lower[~whole] == 0).all()
    floats = image_after(autocontrast, {"image": (images / 255).astype(np.float32)}, probability=1.0)
    stretched = np.where(high > low, (images - low) / np.maximum(high - low, 1), images / 255)
    np.testing.assert_allclose(floats, stretched, atol=1e-6)


@pytest.mark.parametrize("histogram", [counted_one_by_one, counted_by_products])
def test_histograms_count_levels(histogram):
    images = pictures()
    counts = np.asarray(compiled(histogram)(images))
    for image, count in zip(images, counts, strict=True):
        expected = [np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)]
        np.testing.assert_array_equal(count, np.stack(expected, -1))


@pytest.mark.parametrize("operation", [partial(posterize, bits=1), solarize, equalize, autocontrast])
def test_probability(operation):
    image = np.tile(np.array([[[20], [200]]], np.uint8), (2000, 1, 1, 1))
    out = image_after(operation, {"image": image, "index": np.arange(2000)}, probability=0.3)
    changed = (out != image).any((1, 2, 3))
    # Two pixels are too few for Pillow's equalize to change anything.
    assert changed.mean() == 0 if operation is equalize else abs(changed.mean() - 0.3) < 0.045


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (partial(posterize, bits=9), "bits.*9"),
        (partial(posterize, bits=0), "bits.*0"),
        (partial(posterize, **{"bits": 1.5}), "bits.*1.5"),
        (partial(posterize, bits=1, probability=2), "probability.*2"),
        (partial(solarize, threshold=128), "threshold.*128"),
        (partial(equalize, probability=-1), "probability.*-1"),
        (partial(autocontrast, probability=float("nan")), "probability.*nan"),
    ],
)
def test_bad_options_raise_one_line(augmentation, words):
    with pytest.raises(UserError, match=words) as error:
        jax.eval_shape(augmentation, KEY, make_batch())
    assert "\n" not in str(error.value)
