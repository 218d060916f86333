from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import KEY, apply, assert_uniform, compiled, image_after, make_batch, recovered_homographies
from scipy import stats

from jaxaccel.data.augment import (
    alternating_flip,
    horizontal_flip,
    pad_and_crop,
    random_resized_crop,
    vertical_flip,
)
from jaxaccel.data.augment.crop import random_boxes
from jaxaccel.errors import UserError


def windows(image, padding, mode):
    """Every window of a padded image (H, W, C), by its offset."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    places = range(2 * padding + 1)
    return {(y, x): padded[y : y + height, x : x + width] for y in places for x in places}


def test_horizontal_flip_mirrors_the_width_of_half_the_images():
    batch = make_batch(size=2000, shape=(2, 3, 1))
    batch["image"][:, 0, 0] = 0
    batch["image"][:, 0, 2] = 255  # no image is its own mirror
    out = apply(horizontal_flip, batch)["image"]
    flipped = np.array([np.array_equal(o, i[:, ::-1]) for o, i in zip(out, batch["image"], strict=True)])
    same = np.array([np.array_equal(o, i) for o, i in zip(out, batch["image"], strict=True)])
    assert (flipped ^ same).all()
    assert abs(flipped.mean() - 0.5) < 0.045  # four standard deviations
    rare = apply(partial(horizontal_flip, probability=0.1), batch)["image"]
    assert abs((rare != batch["image"]).any((1, 2, 3)).mean() - 0.1) < 0.027


def test_horizontal_flip_always_and_never():
    batch = make_batch()
    never, always = (apply(partial(horizontal_flip, probability=p), batch)["image"] for p in (0, 1))
    np.testing.assert_array_equal(never, batch["image"])
    np.testing.assert_array_equal(always, batch["image"][:, :, ::-1])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_pad_and_crop_cuts_windows_of_the_padded_image(mode, dtype):
    batch = make_batch(size=1000, shape=(5, 4, 2), dtype=dtype)
    out = apply(partial(pad_and_crop, padding=2, mode=mode), batch)["image"]
    count = dict.fromkeys(windows(batch["image"][0], 2, mode), 0)
    for cropped, image in zip(out, batch["image"], strict=True):
        found = [o for o, w in windows(image, 2, mode).items() if np.array_equal(w, cropped)]
        assert len(found) == 1
        count[found[0]] += 1
    assert stats.chisquare(list(count.values())).pvalue > 1e-3  # all 25 places, equally often


def test_pad_and_crop_without_padding_is_the_identity():
    batch = make_batch()
    np.testing.assert_array_equal(apply(partial(pad_and_crop, padding=0), batch)["image"], batch["image"])


def test_vertical_flip_is_a_horizontal_one_of_rows_and_columns():
    batch = make_batch(shape=(8, 8, 3))
    turned = {**batch, "image": batch["image"].swapaxes(1, 2)}
    np.testing.assert_array_equal(
        image_after(vertical_flip, batch), image_after(horizontal_flip, turned).swapaxes(1, 2)
    )


def test_alternating_flip_shows_both_sides_in_two_epochs():
    batch = make_batch(size=1000, shape=(1, 2, 1))
    batch["image"][:] = np.array([0, 255])[:, None]
    sides = []
    for epoch in range(4):
        for key in (KEY, jax.random.key(9)):  # the key plays no part
            image = image_after(alternating_flip, {**batch, "epoch": np.int32(epoch)}, key)
            sides.append(image[:, 0, 0, 0] > 0)
    sides = np.array(sides)
    np.testing.assert_array_equal(sides[::2], sides[1::2])
    np.testing.assert_array_equal(sides[0], ~sides[2])
    np.testing.assert_array_equal(sides[0], sides[4])
    assert abs(sides[0].mean() - 0.5) < 0.07
    each = image_after(alternating_flip, {**batch, "epoch": np.arange(1000, dtype=np.int32)})[:, 0, 0, 0] > 0
    np.testing.assert_array_equal(each, sides[0] ^ (np.arange(1000) % 2 == 1))
    other = image_after(alternating_flip, {**batch, "epoch": np.int32(0)}, seed=1)[:, 0, 0, 0] > 0
    assert 0.4 < (other ^ sides[0]).mean() < 0.6
    with pytest.raises(UserError, match="epoch"):
        alternating_flip(KEY, {"image": batch["image"]})


def test_random_boxes_are_uniform_in_area_log_ratio_and_place():
    draws = np.random.default_rng(0).uniform(size=(4000, 4)).astype(np.float32)
    parts = compiled(partial(random_boxes, height=400, width=500, area=(0.1, 0.3), ratio=(0.5, 2.0)))(draws)
    top, left, tall, broad, fits = (np.asarray(part) for part in parts)
    assert fits.all()
    assert_uniform(tall * broad / 2e5, 0.1, 0.3, slack=0.01)
    assert_uniform(np.log(broad / tall), np.log(0.5), np.log(2), slack=0.01)
    assert (
        (top >= 0).all() and (top + tall <= 400).all() and (left >= 0).all() and (left + broad <= 500).all()
    )
    assert_uniform((top + 0.5) / (401 - tall), 0, 1)
    assert_uniform((left + 0.5) / (501 - broad), 0, 1)
    wide = random_boxes(jnp.asarray(draws), 400, 500, (0.8, 1.0), (0.5, 2.0))
    assert 0.1 < np.asarray(wide[-1]).mean() < 0.9


def test_random_resized_crop_resizes_boxes_of_whole_pixels():
    matrices = recovered_homographies(
        random_resized_crop, height=24, width=30, size=(20, 16), fill=0, scale=(0.2, 0.9), ratio=(0.7, 1.4)
    )
    tall, broad = matrices[:, 0, 0] * 20, matrices[:, 1, 1] * 16
    top, left = matrices[:, 0, 2] + 12 - tall / 2, matrices[:, 1, 2] + 15 - broad / 2
    for values in (tall, broad, top, left):
        np.testing.assert_allclose(values, np.round(values), atol=2e-2)
    area, ratio = tall * broad / 720, broad / tall
    assert area.min() > 0.16 and area.max() < 0.95 and np.ptp(area) > 0.5
    assert ratio.min() > 0.6 and ratio.max() < 1.6 and np.ptp(np.log(ratio)) > 0.5
    np.testing.assert_allclose(matrices[:, [0, 1], [1, 0]], 0, atol=1e-3)


def test_random_resized_crop_of_all_and_of_what_cannot_fit():
    batch = make_batch(shape=(10, 40, 3))
    everything = image_after(random_resized_crop, batch, scale=(1.0, 1.0), ratio=(4.0, 4.0))
    np.testing.assert_array_equal(everything, batch["image"])
    square = image_after(random_resized_crop, batch, scale=(1.0, 1.0), ratio=(1.0, 1.0), size=10)
    np.testing.assert_array_equal(square, batch["image"][:, :, 15:25])  # none fits: the center


def test_random_resized_crop_shrinks_to_a_sixteenth():
    rows = np.broadcast_to(np.arange(320, dtype=np.float32)[:, None, None], (320, 320, 1))
    batch = {"image": rows[None], "index": np.zeros(1, np.int32)}
    for size in (160, 20):
        out = image_after(random_resized_crop, batch, scale=(1.0, 1.0), ratio=(1.0, 1.0), size=np.int64(size))
        step = 320 / size
        np.testing.assert_allclose(out[0, :, 0, 0], step * np.arange(size) + (step - 1) / 2, atol=1e-3)
    with pytest.raises(UserError, match="less than a sixteenth"):
        random_resized_crop(KEY, batch, size=19)


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (partial(horizontal_flip, probability=1.5), "probability.*1.5"),
        (partial(horizontal_flip, probability=float("nan")), "probability.*nan"),
        (partial(vertical_flip, probability=-1), "probability.*-1"),
        (partial(alternating_flip, seed=-1), "seed.*-1"),
        (partial(pad_and_crop, padding=-1), "padding.*-1"),
        (partial(pad_and_crop, **{"padding": 1.5}), "padding.*1.5"),
        (partial(pad_and_crop, **{"padding": 1, "mode": "edge"}), "mode.*edge"),
        (partial(pad_and_crop, padding=9, mode="reflect"), "9x12"),
        (partial(random_resized_crop, scale=(0.5, 2.0)), "scale.*2.0"),
        (partial(random_resized_crop, ratio=(0.0, 2.0)), "ratio.*0.0"),
        (partial(random_resized_crop, size=-3), "size.*-3"),
    ],
)
def test_bad_options_raise_one_line(augmentation, words):
    with pytest.raises(UserError, match=words) as error:
        jax.eval_shape(augmentation, KEY, make_batch())
    assert "\n" not in str(error.value)
