from functools import partial

import jax
import numpy as np
import pytest
from references import KEY, apply, assert_uniform, image_after, make_batch
from scipy import stats

from jaxaccel.data.augment import cutout, random_erasing
from jaxaccel.errors import UserError


@pytest.mark.parametrize("size", [1, 3, 4, 20])
def test_cutout_erases_one_square_around_any_pixel(size):
    height, width = 6, 5
    batch = make_batch(size=600, shape=(height, width, 2))
    batch["image"] = np.maximum(batch["image"], 10)
    out = apply(partial(cutout, size=size, fill=9), batch)["image"]
    squares = {}
    for y in range(height):
        for x in range(width):
            erased = np.zeros((height, width), bool)
            top, left = y - size // 2, x - size // 2
            erased[max(top, 0) : top + size, max(left, 0) : left + size] = True
            squares.setdefault(erased.tobytes(), 0)
    for result, image in zip(out, batch["image"], strict=True):
        erased = (result == 9).all(-1)
        squares[erased.tobytes()] += 1  # KeyError: not a square that the definition allows
        np.testing.assert_array_equal(result, np.where(erased[..., None], 9, image))
    assert min(squares.values()) > 0
    if len(squares) == height * width:
        assert stats.chisquare(list(squares.values())).pvalue > 1e-3


def test_cutout_of_nothing_is_the_identity():
    batch = make_batch()
    np.testing.assert_array_equal(apply(partial(cutout, size=0), batch)["image"], batch["image"])


def test_random_erasing_erases_boxes():
    batch = make_batch(size=1500, shape=(30, 40, 1))
    batch["image"] = np.maximum(batch["image"], 10)
    out = image_after(random_erasing, batch, probability=0.7, scale=(0.05, 0.3), ratio=(0.5, 2.0), fill=9)
    erased = (out == 9)[..., 0]
    np.testing.assert_array_equal(out, np.where(erased[..., None], 9, batch["image"]))
    rows, columns = erased.any(2), erased.any(1)
    tall, broad = rows.sum(1), columns.sum(1)
    np.testing.assert_array_equal(erased.sum((1, 2)), tall * broad)  # a box, without holes
    some = tall > 0
    assert abs(some.mean() - 0.7) < 0.05
    area, ratio = (tall * broad / 1200)[some], (broad / np.maximum(tall, 1))[some]
    assert_uniform(area, 0.05, 0.3, slack=0.05)
    assert ratio.min() > 0.4 and ratio.max() < 2.5 and abs(np.log(ratio).mean()) < 0.06
    top = rows.argmax(1)[some]
    assert_uniform((top + 0.5) / (31 - tall[some]), 0, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_noise_is_uniform(dtype):
    batch = {"image": np.zeros((8, 30, 30, 3), dtype)}
    out = image_after(
        random_erasing, batch, probability=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0), fill="noise"
    )
    assert_uniform((out.astype(float) / (1 if dtype != np.uint8 else 255)).ravel(), -0.002, 1.002)
    assert not np.array_equal(out[0], out[1])


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (partial(cutout, size=-2), "size.*-2"),
        (partial(cutout, size=2, fill=256), "fill.*256"),
        (partial(cutout, size=2, fill=0.5), "fill.*0.5"),
        (partial(random_erasing, probability=2), "probability.*2"),
        (partial(random_erasing, scale=(0.5, 0.1)), "scale.*0.5"),
        (partial(random_erasing, **{"fill": "white"}), "fill.*white"),
        (partial(random_erasing, fill=-1), "fill.*-1"),
    ],
)
def test_bad_options_raise_one_line(augmentation, words):
    with pytest.raises(UserError, match=words) as error:
        jax.eval_shape(augmentation, KEY, make_batch())
    assert "\n" not in str(error.value)


def test_fill_of_floats_must_be_finite():
    with pytest.raises(UserError, match="finite"):
        cutout(KEY, make_batch(dtype=np.float32), size=2, fill=float("inf"))
