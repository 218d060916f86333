from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import ImageEnhance, ImageFilter
from references import KEY, assert_uniform, compiled, image_after, make_batch, photograph, pil, unpil
from scipy import ndimage, stats

from jaxaccel.data.augment import gaussian_blur, gaussian_noise, sharpness
from jaxaccel.data.augment.filters import blurred, gaussian_weights, sharpened, smoothed
from jaxaccel.errors import UserError


def test_smoothing_and_sharpening_are_pillows():
    image = photograph()
    smooth = np.asarray(compiled(smoothed)(image[None]))[0]
    np.testing.assert_array_equal(smooth, unpil(pil(image).filter(ImageFilter.SMOOTH)))
    factors = np.array([0.0, 0.5, 1.0, 1.9], np.float32)
    ours = np.asarray(compiled(sharpened)(np.tile(image, (4, 1, 1, 1)), factors)).astype(int)
    for result, factor in zip(ours, factors, strict=True):
        pillow = unpil(ImageEnhance.Sharpness(pil(image)).enhance(float(factor))).astype(int)
        assert np.abs(result - pillow).max() <= 1  # Pillow cuts fractions off
    floats = np.asarray(compiled(sharpened)(np.tile(image / np.float32(255), (4, 1, 1, 1)), factors))
    assert np.abs(floats * 255 - ours).max() <= 1.6
    np.testing.assert_array_equal(ours[2], image)
    tiny = make_batch(shape=(2, 5, 3))["image"]
    np.testing.assert_array_equal(sharpened(jnp.asarray(tiny), jnp.full(12, 0.5)), tiny)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_blur_equals_scipy(dtype):
    images = make_batch(size=3, shape=(15, 20, 2), dtype=dtype)["image"]
    sigmas = np.array([0.0, 0.8, 2.0])
    weights = np.concatenate([gaussian_weights((s, s), 6)[:1] for s in sigmas])
    ours = np.asarray(compiled(blurred)(KEY, images, weights))
    for result, image, sigma in zip(ours, images, sigmas, strict=True):
        expected = ndimage.gaussian_filter(
            image.astype(np.float64), (sigma, sigma, 0), mode="reflect", radius=(6, 6, 0)
        ) if sigma else image  # fmt: skip
        np.testing.assert_allclose(result, expected, atol=0.501 if dtype == np.uint8 else 1e-5)


def test_widths_of_blurs_are_uniform():
    image = np.zeros((800, 21, 21, 1), np.float32)
    image[:, 10, 10] = 1
    out = image_after(
        gaussian_blur, {"image": image, "index": np.arange(800)}, sigma=(0.5, 2.0), probability=0.5
    )
    center = out[:, 10, 10, 0].astype(np.float64)
    assert abs((center < 1).mean() - 0.5) < 0.07
    table = gaussian_weights((0.5, 2.0), 6)[:, 0].astype(np.float64) ** 2
    sigma = np.interp(-center[center < 1], -table, np.linspace(0.5, 2.0, len(table)))
    assert_uniform(sigma, 0.5, 2.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_noise_is_normal_and_independent(dtype):
    level = 128 if dtype == np.uint8 else 0.5
    out = image_after(gaussian_noise, {"image": np.full((4, 40, 40, 3), level, dtype)}, strength=0.05)
    noise = (out.astype(np.float64) - level) / (255 if dtype == np.uint8 else 1) / 0.05
    if dtype == np.float32:
        assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.06
    assert abs(np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1]) < 0.04


def test_strengths_of_sharpening_are_uniform():
    image = np.full((600, 5, 5, 1), 0.5, np.float32)
    image[:, 2, 2] = 0.6
    out = image_after(sharpness, {"image": image, "index": np.arange(600)}, strength=0.8)[:, 2, 2, 0]
    smooth = 0.5 + 0.1 * 5 / 13
    assert_uniform((out.astype(np.float64) - smooth) / (0.6 - smooth), 0.2, 1.8)


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (partial(sharpness, strength=-1), "strength.*-1"),
        (partial(gaussian_blur, sigma=(2.0, 1.0)), "sigma.*2.0"),
        (partial(gaussian_blur, sigma=(-1.0, 1.0)), "sigma.*-1.0"),
        (partial(gaussian_blur, probability=3), "probability.*3"),
        (partial(gaussian_noise, strength=20), "strength.*20"),
        (partial(gaussian_noise, strength=0.1, probability=3), "probability.*3"),
    ],
)
def test_bad_options_raise_one_line(augmentation, words):
    with pytest.raises(UserError, match=words) as error:
        jax.eval_shape(augmentation, KEY, make_batch())
    assert "\n" not in str(error.value)
