import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import KEY, image_after, make_batch, scipy_sample
from scipy.interpolate import BSpline

from jaxaccel.data.augment import elastic, example_keys
from jaxaccel.data.augment.elastic import spline, spline_weights
from jaxaccel.errors import UserError


def field_of(key, height, width, displacement, spacing):
    """The displacements of one example in float64, (2, height, width), by SciPy's splines."""
    points = (2, -(-height // spacing) + 3, -(-width // spacing) + 3)
    control = np.asarray(jax.random.uniform(key, points, minval=-1), np.float64) * displacement
    for axis, size in ((1, height), (2, width)):
        knots = np.arange(-3, control.shape[axis] + 1)
        curve = BSpline(knots, np.moveaxis(control, axis, 0), 3)
        control = np.moveaxis(curve(np.arange(size) / spacing), 0, axis)
    return control


@pytest.mark.parametrize("spacing", [1, 3, 8])
def test_weights_are_those_of_a_cubic_spline(spacing):
    weights = spline_weights(spacing)
    np.testing.assert_array_equal(weights.sum(1), 512)
    control = np.random.default_rng(0).integers(-1000, 1000, (1, 8)).astype(np.int32)
    ours = np.asarray(spline(jnp.asarray(control), weights, 5 * spacing, 1))[0] / 512
    expected = BSpline(np.arange(-3, 9), control[0].astype(float), 3)(np.arange(5 * spacing) / spacing)
    np.testing.assert_allclose(ours, expected, atol=4)


@pytest.mark.parametrize("fill", [0, "reflect"])
def test_elastic_equals_scipy(fill):
    batch = make_batch(size=4, shape=(20, 27, 2), dtype=np.float32)
    out = image_after(elastic, batch, displacement=4.0, spacing=6, fill=fill)
    rows, columns = np.meshgrid(np.arange(20), np.arange(27), indexing="ij")
    for result, image, key in zip(out, batch["image"], example_keys(KEY, batch), strict=True):
        down, right = field_of(key, 20, 27, 4.0, 6)
        expected = scipy_sample(image, rows + down, columns + right, fill)
        # Weights are whole 512ths: places are off by less than a hundredth of the displacement.
        assert np.abs(result - expected).max() < 0.1 and np.abs(result - expected).mean() < 0.01
        assert np.abs(down).max() < 4 and down.std() > 0.4


def test_no_displacement_no_change():
    batch = make_batch()
    np.testing.assert_array_equal(image_after(elastic, batch, displacement=0), batch["image"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"displacement": -1}, "displacement.*-1"),
        ({"displacement": 65}, "displacement.*65"),
        ({"displacement": 1, "spacing": 0}, "spacing.*0"),
        ({"displacement": 1, "spacing": 1.5}, "spacing.*1.5"),
        ({"displacement": 1, "fill": "wrap"}, "fill.*wrap"),
        ({"displacement": 1, "method": "cubic"}, "method.*cubic"),
    ],
)
def test_bad_options_raise_one_line(options, words):
    with pytest.raises(UserError, match=words) as error:
        elastic(KEY, make_batch(), **options)
    assert "\n" not in str(error.value)
