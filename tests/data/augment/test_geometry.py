import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from references import (
    assert_uniform,
    compiled,
    images_after,
    matrix_places,
    recovered_homographies,
    scipy_sample,
)
from scipy import ndimage

from jaxaccel.data.augment import affine, chain, mixup, perspective, rotate, scale, shear, translate
from jaxaccel.data.augment.geometry import affine_matrix, perspective_matrix
from jaxaccel.data.augment.moves import Resampling
from jaxaccel.data.augment.resample import fraction_bits
from jaxaccel.errors import UserError

KEY = jax.random.key(5)


def apply(augmentation, batch, key=KEY, **option):
    return np.asarray(compiled(partial(augmentation, **option))(key, batch)["image"])


def make_batch(size=16, shape=(11, 14, 2), dtype: Any = np.uint8, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (size, *shape)).astype(dtype)
    return {"image": image, "index": np.arange(size, dtype=np.int32)}


def inverse_matrix(degrees, scale, shift):
    """Output to input, from 3x3 float64 matrices: counter-clockwise rotation in (row down, column right)."""
    a = np.radians(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
    return np.linalg.inv(move @ turn @ np.diag([scale, scale, 1]))[:2]


def scipy_resample(image, matrix, fill):
    """One image (H, W, C) in float64; the matrix acts on (row, column) measured from the center."""
    center = (np.array(image.shape[:2]) - 1) / 2
    offset = center + matrix[:, 2] - matrix[:, :2] @ center
    channels = [
        ndimage.affine_transform(c, matrix[:, :2], offset, order=1, mode="grid-constant", cval=fill)
        for c in np.moveaxis(image.astype(np.float64), -1, 0)
    ]
    return np.stack(channels, axis=-1)


def draw(count, seed=0, degrees=180.0, scales=(0.5, 2.0), shift=5.0):
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(-degrees, degrees, count),
        rng.uniform(scales[0], scales[1], count),
        rng.uniform(-shift, shift, (count, 2)),
    )


@functools.cache
def affine_matrices(size):
    return compiled(lambda direction, scales, shifts: affine_matrix(direction, scales, shifts, size))


def matrices_of(degrees, scales, shifts, size=64):
    radians = np.radians(degrees)
    direction = np.stack([np.cos(radians), np.sin(radians)], axis=-1)
    direction, scales, shifts = (jnp.asarray(values, jnp.float32) for values in (direction, scales, shifts))
    return affine_matrices(size)(direction, scales, shifts)


@functools.cache
def resampling(**options):
    return compiled(
        lambda images, matrix: Resampling(KEY, matrix, images.shape[1:3], **options).apply(images)
    )


def resample(images, matrix, **options):
    return resampling(**options)(images, matrix)


def test_matrix_is_the_inverse_of_rotate_scale_move():
    degrees, scales, shifts = draw(20)
    matrix = np.asarray(matrices_of(degrees, scales, shifts, 28))[:, :2]
    expected = [inverse_matrix(*parameters) for parameters in zip(degrees, scales, shifts, strict=True)]
    np.testing.assert_allclose(matrix, expected, atol=2e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(11, 14, 2), (28, 28, 1), (40, 17, 3), (1, 5, 1)])
def test_resample_equals_scipy(shape, dtype):
    images = make_batch(shape=shape, dtype=dtype)["image"]
    matrix = matrices_of(*draw(len(images)))
    out = resample(images, matrix, fill=31)
    assert out.dtype == dtype
    for result, image, inverse in zip(out, images, np.asarray(matrix)[:, :2], strict=True):
        expected = scipy_resample(image, inverse, 31)
        np.testing.assert_allclose(result, expected, rtol=0, atol=0.51 if dtype == np.uint8 else 1e-2)


@pytest.mark.parametrize("shape", [(8, 8, 1), (300, 700, 1)])
def test_no_overflow_at_the_limits_of_the_options(shape):
    images = make_batch(size=4, shape=shape, dtype=np.float32)["image"]
    height, width = shape[:2]
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    parameters = np.array([45.0, 135, -45, 180]), np.full(4, 1 / 16), signs * [height, width]
    bits = fraction_bits(height, width)
    out = resample(images, matrices_of(*parameters, size=max(height, width)))
    for result, image, degrees, factor, shift in zip(out, images, *parameters, strict=True):
        expected = scipy_resample(image, inverse_matrix(degrees, factor, shift), 0)
        # Steep places magnify the rounding of coordinates; a wrapped integer would move most pixels.
        assert (np.abs(result - expected) > 255 * 16 * 700 / 2**bits + 0.1).mean() < 0.001


def test_rotation_turns_as_pillow_does():
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.uniform(0, 255, (33, 33)), 1.5)
    image = np.clip((image - 100) * 4, 0, 255).astype(np.uint8)
    matrix = matrices_of(np.array([30.0]), np.ones(1), np.zeros((1, 2)))
    ours = resample(image[None, :, :, None], matrix)
    ours = np.asarray(ours)[0, :, :, 0].astype(int)
    pillow = np.asarray(Image.fromarray(image).rotate(30, Image.Resampling.BILINEAR)).astype(int)
    inside = np.hypot(*np.mgrid[-16:17, -16:17]) < 15
    assert np.abs(ours - pillow)[inside].max() <= 1
    assert np.abs(image.astype(int) - pillow)[inside].max() > 50


def recovered(option, size=200, height=25, width=33):
    """The float64 matrices (from the center) that ``option`` applied, read off images of their own coordinates."""
    rows, columns = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    image = np.stack([rows, columns, np.ones_like(rows)], -1).astype(np.float32)
    batch = {"image": np.tile(image, (size, 1, 1, 1)), "index": np.arange(size)}
    out = np.asarray(compiled(partial(affine, **option))(KEY, batch)["image"], np.float64)
    places = np.stack([rows, columns, np.ones_like(rows)], -1)
    matrices = []
    for result in out:
        inside = result[..., 2] > 1 - 1e-6  # no fill mixed in
        solution, residual, _, _ = np.linalg.lstsq(places[inside], result[inside][:, :2], rcond=None)
        assert residual.max(initial=0) < 1e-3
        matrices.append(solution.T)
    return np.stack(matrices)


def test_affine_draws_what_the_options_say():
    option = {"rotation": 30, "scale": (0.8, 1.4), "translation": 0.2}
    matrices = recovered(option)
    forward = np.linalg.inv(matrices[:, :, :2])
    angle = np.degrees(np.arctan2(forward[:, 1, 0], forward[:, 0, 0]))
    factor = np.hypot(forward[:, 1, 0], forward[:, 0, 0])
    shift = -np.einsum("bij,bj->bi", forward, matrices[:, :, 2]) / [25, 33]
    np.testing.assert_allclose(
        forward[:, 0, 0], forward[:, 1, 1], atol=1e-3
    )  # a similarity: no shear, no mirror
    np.testing.assert_allclose(forward[:, 1, 0], -forward[:, 0, 1], atol=1e-3)
    for values, low, high in [
        (angle, -30, 30),
        (factor, 0.8, 1.4),
        (shift[:, 0], -0.2, 0.2),
        (shift[:, 1], -0.2, 0.2),
    ]:
        uniform = (values - low) / (high - low)
        assert uniform.min() > -1e-3 and uniform.max() < 1 + 1e-3
        assert np.abs(np.histogram(uniform, 4, (0, 1))[0] / 200 - 0.25).max() < 0.125
    correlation = np.corrcoef([angle, factor, shift[:, 0], shift[:, 1]])
    assert np.abs(correlation - np.eye(4)).max() < 0.3  # drawn independently


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_no_change_asked_none_made(dtype):
    batch = make_batch(dtype=dtype)
    np.testing.assert_array_equal(compiled(affine)(KEY, batch)["image"], batch["image"])


def test_constant_images_stay_exactly_constant():
    gray = float(np.float32(77) / np.float32(255))
    batch = {"image": np.full((8, 9, 9, 1), gray, np.float32)}
    option = {"rotation": 90, "scale": (0.5, 1.5), "translation": 0.3, "fill": gray}
    np.testing.assert_array_equal(apply(affine, batch, **option), batch["image"])


def test_single_operations_are_cases_of_affine():
    batch = make_batch()
    for single, option in [
        (rotate, {"rotation": 40}),
        (scale, {"scale": (0.5, 1.5)}),
        (translate, {"translation": 0.3}),
    ]:
        named = {"single": partial(single, fill=3, **option), "affine": partial(affine, fill=3, **option)}
        result, of_affine = images_after(named, batch).values()
        np.testing.assert_array_equal(result, of_affine)
        assert not np.array_equal(result, batch["image"])


def test_the_next_operation_does_not_repeat_the_resampling_on_cpu():
    batch = {**make_batch(), "label": np.zeros(16, np.int32)}
    turn, mix = partial(rotate, rotation=20), partial(mixup, alpha=1.0)
    both = compiled(chain(turn, mix))
    if jax.default_backend() == "cpu":
        assert " conditional(" in str(both.lower(KEY, batch).compile().as_text())
    turned = compiled(turn)(jax.random.fold_in(KEY, 0), batch)
    by_hand = compiled(mix)(jax.random.fold_in(KEY, 1), turned)
    np.testing.assert_array_equal(both(KEY, batch)["image"], by_hand["image"])


def test_the_way_the_conditional_goes_does_not_matter():
    batch = make_batch()
    for bits in ([0, 7], [1, 7]):  # the branch is chosen by the first word
        key = jnp.array(bits, jnp.uint32)
        np.testing.assert_array_equal(compiled(affine)(key, batch)["image"], batch["image"])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"rotation": -1}, "rotation.*-1"),
        ({"rotation": 181}, "rotation.*181"),
        ({"scale": (1.2, 0.8)}, "scale.*1.2, 0.8"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (1.0, float("inf"))}, "scale"),
        ({"scale": (1.0,)}, "scale"),
        ({"translation": -0.1}, "translation.*-0.1"),
        ({"translation": 1.1}, "translation.*1.1"),
        ({"fill": 300}, "fill.*300"),
        ({"fill": "wrap"}, "fill.*wrap"),
        ({"method": "cubic"}, "method.*cubic"),
    ],
)
def test_bad_options_raise_one_line(option, words):
    with pytest.raises(UserError, match=words) as error:
        affine(KEY, make_batch(), **option)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="needs batch"):
        affine(KEY, {})


@pytest.mark.parametrize("fill", [31, "edge", "reflect"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_nearest_and_bilinear_with_every_fill_equal_scipy(fill, dtype):
    images = make_batch(size=4, shape=(12, 9, 3), dtype=dtype)["image"]
    matrix = matrices_of(*draw(4, scales=(0.4, 1.5), shift=9.0))
    out = resample(images, matrix, fill=fill)
    nearest = resample(images, matrix, fill=fill, method="nearest")
    for i, exact in enumerate(np.asarray(matrix, np.float64)):
        rows, columns = matrix_places(exact, (12, 9), (12, 9))
        expected = scipy_sample(images[i], rows, columns, fill)
        np.testing.assert_allclose(out[i], expected, rtol=0, atol=0.501 if dtype == np.uint8 else 2e-3)
        clear = (np.abs(rows % 1 - 0.5) > 1e-3) & (np.abs(columns % 1 - 0.5) > 1e-3)
        expected = scipy_sample(images[i], np.floor(rows + 0.5), np.floor(columns + 0.5), fill)
        np.testing.assert_array_equal(np.asarray(nearest)[i][clear], expected[clear])


def keys_cubic(distance):
    """Keys 1981, with a = -1/2."""
    x = np.abs(distance)
    inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


@pytest.mark.parametrize("fill", [31, "edge", "reflect"])
def test_bicubic_is_keys_sum_over_all_pixels(fill):
    images = make_batch(size=2, shape=(12, 9, 3))["image"]
    matrix = matrices_of(*draw(2, scales=(0.6, 1.5), shift=4.0))
    out = resample(images, matrix, fill=fill, method="bicubic")
    around, pad = ((20, 20), (20, 20), (0, 0)), np.arange(-20, 12 + 20)
    for i, exact in enumerate(np.asarray(matrix, np.float64)):
        padding: Any = {"mode": fill} if isinstance(fill, str) else {"constant_values": fill}
        padded = np.pad(images[i], around, **padding).astype(float)
        rows, columns = matrix_places(exact, (12, 9), (12, 9))
        of_rows, of_columns = keys_cubic(rows[..., None] - pad), keys_cubic(columns[..., None] - pad[:49])
        expected = np.clip(np.einsum("hwi,hwj,ijc->hwc", of_rows, of_columns, padded), 0, 255)
        np.testing.assert_allclose(out[i], expected, atol=0.502)
    same = resample(images, jnp.tile(jnp.eye(3), (2, 1, 1)), method="bicubic", fill=fill)
    np.testing.assert_array_equal(same, images)


def test_shear_draws_what_the_options_say():
    matrices = recovered_homographies(shear, shear=0.3)
    np.testing.assert_allclose(matrices[:, :2, 2], 0, atol=1e-2)
    np.testing.assert_allclose(matrices[:, 0, 0], 1, atol=1e-3)
    along_rows, along_columns = matrices[:, 1, 0], matrices[:, 0, 1]
    np.testing.assert_allclose(matrices[:, 1, 1], 1 + along_rows * along_columns, atol=1e-3)
    for slope in (along_rows, along_columns):
        assert_uniform(slope, -0.3, 0.3)
    assert abs(np.corrcoef(along_rows, along_columns)[0, 1]) < 0.35


def homography(points, images):
    """The 3x3 matrix that takes four points to four images, (row, column), in float64."""
    equations, values = [], []
    for (y, x), (v, u) in zip(points, images, strict=True):
        equations += [[y, x, 1, 0, 0, 0, -v * y, -v * x], [0, 0, 0, y, x, 1, -u * y, -u * x]]
        values += [v, u]
    return np.append(np.linalg.solve(np.array(equations), np.array(values)), 1).reshape(3, 3)


def test_perspective_shows_the_image_in_a_quadrangle():
    height, width = 14, 11
    inwards = np.random.default_rng(0).integers(0, 1600, (6, 4, 2)) / 4096
    inwards[0] = 0
    matrix_of = compiled(partial(perspective_matrix, height=height, width=width))
    matrix = np.asarray(matrix_of(inwards.astype(np.float32)), np.float64)
    edges = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * [height / 2, width / 2]
    expected = [homography(edges * (1 - 2 * corner), edges) for corner in inwards]
    np.testing.assert_allclose(matrix, expected, rtol=1e-4, atol=1e-4)
    images = make_batch(size=6, shape=(height, width, 2), dtype=np.float32)["image"]
    out = np.asarray(resample(images, jnp.asarray(matrix, jnp.float32), projective=True, fill=9))
    for result, image, exact in zip(out, images, expected, strict=True):
        rows, columns = matrix_places(exact, (height, width), (height, width))
        np.testing.assert_allclose(result, scipy_sample(image, rows, columns, 9), atol=0.5)
    np.testing.assert_array_equal(out[0], images[0])


def test_perspective_draws_corners():
    matrices = recovered_homographies(perspective, distortion=0.4, probability=0.6, count=200)
    still = np.abs(matrices - np.eye(3)).max((1, 2)) < 1e-3
    assert abs(still.mean() - 0.4) < 0.12
    forward = np.linalg.inv(matrices[~still])
    corners = np.array([[-12.5, -16.5, 1], [-12.5, 16.5, 1], [12.5, 16.5, 1], [12.5, -16.5, 1]])
    found = np.einsum("bij,nj->bni", forward, corners)
    inwards = 1 - found[..., :2] / found[..., 2:] / corners[:, :2]
    for values in inwards.reshape(-1, 8).T:
        assert_uniform(values, 0, 0.4)
    assert np.abs(np.corrcoef(inwards.reshape(-1, 8).T) - np.eye(8)).max() < 0.4
    with pytest.raises(UserError, match=r"distortion.*1.5"):
        perspective(KEY, make_batch(), distortion=1.5)
    with pytest.raises(UserError, match=r"shear.*-1"):
        shear(KEY, make_batch(), shear=-1)
    with pytest.raises(UserError, match="4x4"):
        shear(KEY, make_batch(shape=(3, 3, 1)), shear=0.1, fill="reflect", method="bicubic")
