from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from references import KEY, assert_uniform, compiled, image_after, make_batch, photograph, pil, unpil

from jaxaccel.data.augment import (
    brightness,
    chain,
    color_jitter,
    contrast,
    grayscale,
    hue,
    invert,
    saturation,
)
from jaxaccel.data.augment.color import Recoloring, mean_color
from jaxaccel.data.augment.color_matrices import blending, contrasting, gray, hue_matrices, scaling
from jaxaccel.data.augment.exact import unit_fixed_point
from jaxaccel.errors import UserError

FACTORS = np.array([0.0, 0.25, 0.75, 1.0, 1.5, 1.9], np.float32)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
def test_factors_mean_what_pillow_means(name, dtype):
    image = photograph()
    stack = np.tile(image if dtype == np.uint8 else (image / 255).astype(dtype), (len(FACTORS), 1, 1, 1))

    @compiled
    def changed(stack, factor):
        if name == "Brightness":
            matrix, mixing = scaling(factor, 3), False
        elif name == "Contrast":
            matrix, mixing = contrasting(factor, mean_color({"image": stack}, "test")), False
        else:
            matrix, mixing = blending(factor, gray(3), jnp.zeros(3)), True
        return Recoloring(KEY, matrix, mixing).apply(stack)

    ours = np.asarray(changed(stack, FACTORS), np.float64)
    for result, factor in zip(ours, FACTORS, strict=True):
        pillow = unpil(getattr(ImageEnhance, name)(pil(image)).enhance(float(factor))).astype(float)
        # Pillow cuts fractions off, and rounds the mean.
        assert np.abs(result * (1 if dtype == np.uint8 else 255) - pillow).max() <= 1.51
    np.testing.assert_array_equal(ours[3], stack[3])


def test_the_mean_is_exact():
    image = make_batch(shape=(33, 41, 3))["image"]
    mean_of = compiled(lambda image: mean_color({"image": image}, "test"))
    mean = mean_of(image)
    np.testing.assert_allclose(mean, image.mean((1, 2)) / 255, rtol=1e-6)
    mean = mean_of((image / 255).astype(np.float32))
    np.testing.assert_allclose(mean, image.mean((1, 2)) / 255, atol=1e-6)


@pytest.mark.parametrize("bits", [14, 20, 22])
def test_fixed_point_of_the_unit_interval_is_fixed_point(bits):
    values = np.append(np.random.default_rng(0).uniform(size=2000), [0, 1, 0.5, 2.0**-bits]).astype(
        np.float32
    )
    found = np.asarray(compiled(lambda values: unit_fixed_point(values, bits))(values))
    np.testing.assert_array_equal(found, np.round(values.astype(np.float64) * 2**bits))


def test_grayscale_and_invert_are_pillows_bit_by_bit():
    batch = make_batch(size=4, shape=(40, 40, 3))
    inverted = image_after(invert, batch, probability=1.0)
    np.testing.assert_array_equal(inverted, 255 - batch["image"])
    grayed = image_after(grayscale, batch, probability=1.0)
    for result, image in zip(grayed, batch["image"], strict=True):
        np.testing.assert_array_equal(result, unpil(pil(image).convert("L").convert("RGB")))
        np.testing.assert_array_equal(unpil(ImageOps.invert(Image.fromarray(image))), 255 - image)


def test_hue_keeps_luma_and_goes_around():
    matrices = hue_matrices(0.5)[:, :3, :3].astype(np.float64)
    np.testing.assert_allclose(matrices[2048], np.eye(3), atol=1e-6)
    np.testing.assert_allclose(matrices[0], matrices[-1], atol=1e-6)
    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(luma @ matrices, np.tile(luma, (4097, 1)), atol=1e-5)
    np.testing.assert_allclose(matrices.sum(2), 1, atol=1e-5)  # grays stay
    third = matrices[2048 + 4096 // 3]
    np.testing.assert_allclose(third @ third @ third, np.eye(3), atol=1e-2)
    red, green, blue = np.eye(3)
    turned = max(np.argmax(third @ color - color) for color in (red,))
    assert turned in (1, 2) and np.argmax(third @ green) != 1 and np.argmax(third @ blue) != 2


@pytest.mark.parametrize("operation", [brightness, contrast, saturation])
def test_factors_are_uniform(operation):
    image = np.zeros((1000, 1, 2, 3), np.float32)
    image[:, :, 0], image[:, :, 1] = [0.4, 0.3, 0.5], [0.1, 0.25, 0.2]
    batch = {"image": image, "index": np.arange(1000)}
    for strength, low, high in ((0.4, 0.6, 1.4), (1.5, 0.0, 2.5)):
        out = image_after(operation, batch, strength=strength).astype(np.float64)
        # A difference of two places, or of two channels, is scaled; what is clipped is left out.
        first, second = ((0, 0), (1, 0)) if operation is not saturation else ((0, 0), (0, 2))
        ratio = (out[:, 0, *first] - out[:, 0, *second]) / (image[0, 0, *first] - image[0, 0, *second])
        clipped = (out == 0) | (out == 1)
        clear = ~clipped.any((1, 2, 3)) if strength > 1 else np.ones(1000, bool)
        if strength > 1:
            assert clear.mean() > 0.3 and ratio[clear].min() >= -0.001
        else:
            assert_uniform(ratio, low, high)


def test_strong_changes_are_not_joined():
    batch = make_batch(size=200, shape=(4, 4, 3), dtype=np.float32)
    strong = [partial(contrast, strength=6.0), partial(brightness, strength=6.0)]
    once = {"image": batch["image"], "index": batch["index"]}
    for number, operation in enumerate(strong):
        once["image"] = image_after(operation, once, key=jax.random.fold_in(KEY, number))
    np.testing.assert_array_equal(image_after(chain(*strong), batch), once["image"])


def test_probabilities_and_turns():
    image = np.tile(np.array([0.6, 0.4, 0.5], np.float32), (2000, 1, 1, 1))
    batch = {"image": image, "index": np.arange(2000)}
    for operation, probability in ((grayscale, 0.3), (invert, 0.7)):
        out = image_after(operation, batch, probability=probability)
        assert abs((out != image).any((1, 2, 3)).mean() - probability) < 0.045
    out = image_after(hue, batch, strength=0.25)[:, 0, 0].astype(np.float64)
    to_iq = np.array([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    before, after = to_iq @ image[0, 0, 0], out @ to_iq.T
    turn = np.arctan2(after[:, 1], after[:, 0]) - np.arctan2(before[1], before[0])
    assert_uniform((turn + np.pi) % (2 * np.pi) - np.pi, -np.pi / 2, np.pi / 2)


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (partial(brightness, strength=-1), "strength.*-1"),
        (partial(contrast, strength=float("nan")), "strength.*nan"),
        (partial(saturation, strength=9), "strength.*9"),
        (partial(hue, strength=0.6), "strength.*0.6"),
        (partial(grayscale, probability=2), "probability.*2"),
        (partial(color_jitter, hue=0.7), "hue.*0.7"),
    ],
)
def test_bad_options_raise_one_line(augmentation, words):
    with pytest.raises(UserError, match=words) as error:
        jax.eval_shape(augmentation, KEY, make_batch())
    assert "\n" not in str(error.value)


def test_channels_are_checked():
    with pytest.raises(UserError, match="2 channels"):
        brightness(KEY, make_batch(shape=(4, 4, 2)), strength=0.1)
    batch = make_batch(shape=(4, 4, 1))
    assert image_after(color_jitter, batch, brightness=0.3, contrast=0.2).shape == (12, 4, 4, 1)
    assert jax.eval_shape(color_jitter, KEY, batch)["image"].shape == (12, 4, 4, 1)
