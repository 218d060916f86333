"""Static ranges: each method against its definition on data whose answer is known."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.core import numerics
from jaxaccel.transforms.calibrate import _counts


def f(params, x):
    return jax.nn.relu(x @ params["a"]["kernel"]) @ params["b"]["kernel"]


PARAMS = {
    "a": {"kernel": jax.random.normal(jax.random.key(0), (16, 32))},
    "b": {"kernel": jax.random.normal(jax.random.key(1), (32, 8))},
}
BATCHES = [jax.random.normal(jax.random.key(k), (n, 16)) for k, n in enumerate((8, 8, 3))]


def test_absmax_is_the_largest_magnitude_of_all_batches():
    ranges = ja.calibrate(f, PARAMS, BATCHES).ranges
    assert set(ranges) == {"a/kernel", "b/kernel"}
    np.testing.assert_allclose(ranges["a/kernel"], max(float(jnp.abs(x).max()) for x in BATCHES), rtol=1e-6)
    hidden = [float((x @ PARAMS["a"]["kernel"]).max()) for x in BATCHES]
    np.testing.assert_allclose(ranges["b/kernel"], max(hidden), rtol=1e-6)


def one(x, **options):
    identity = {"kernel": jnp.eye(x.shape[-1])}
    return float(ja.calibrate(lambda p, x: x @ p["kernel"], identity, [x], **options).ranges["kernel"])


@pytest.mark.parametrize("loop", [False, True])
def test_each_factor_of_a_low_rank_weight_has_a_range(loop):
    def g(params, x):
        if not loop:
            return f(params, x)
        return jax.lax.scan(lambda c, row: (c + 1, f(params, row[None])), 0, x)[1]

    thin = ja.low_rank(PARAMS, rank=4, where="a/kernel")
    ranges = ja.calibrate(g, thin, BATCHES[:1], method="absmax").ranges
    assert set(ranges) == {"a/kernel/left", "a/kernel/right", "b/kernel"}
    x, left = BATCHES[0], thin["a"]["kernel"].left
    np.testing.assert_allclose(ranges["a/kernel/left"], abs(x).max(), rtol=1e-6)
    np.testing.assert_allclose(ranges["a/kernel/right"], abs(x @ left).max(), rtol=1e-5)
    static = ja.int8(g, calibration=ja.calibrate(g, thin, BATCHES[:1]), lowering="int8")
    want, found = g(PARAMS, x), static(ja.quantize(thin), x)
    dense = g({**PARAMS, "a": {"kernel": thin["a"]["kernel"].materialize()}}, x)
    assert found.shape == want.shape and abs(found - dense).max() < 0.05 * abs(dense).max()


def test_percentile_is_that_of_numpy():
    x = jax.random.normal(jax.random.key(0), (4000, 16))
    for share in (99.0, 99.9):
        want = np.percentile(np.abs(x), share)
        assert abs(one(x, method="percentile", percentile=share) - want) < 2 * float(jnp.abs(x).max()) / 2048


def test_mse_is_the_best_of_a_search():
    x = jax.random.laplace(jax.random.key(0), (4000, 16))

    def error(top):
        scale = jnp.float32(top / 127)
        return float(jnp.mean((numerics.to_integers(x, scale) * scale - x) ** 2))

    largest = float(jnp.abs(x).max())
    found = one(x, method="mse")
    best = min(error(largest * share) for share in np.linspace(0.1, 1, 200))
    assert found < largest and error(found) < 1.02 * best


def test_entropy_clips_rare_outliers_and_is_not_led_by_zeros():
    x = jax.random.normal(jax.random.key(0), (4000, 16))
    with_outlier = x.at[0, 0].set(100.0)
    assert 2.5 < one(with_outlier, method="entropy") < 25
    assert one(jax.nn.relu(x), method="entropy") > 2.5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_bins_are_those_of_float32_in_any_dtype(dtype, scale):
    """Half of the activations at 1, half at .5: no percentile of them is less than the larger one."""
    x = (scale * jnp.where(jnp.arange(64) % 2 == 0, 1.0, 0.5)).reshape(8, 8).astype(dtype)
    for options in ({"method": "percentile", "percentile": 99.0}, {"method": "mse"}, {"method": "entropy"}):
        np.testing.assert_allclose(one(x, **options), np.float64(x.max()), rtol=0.01)
    assert one(x, method="percentile", percentile=49.0) < 0.51 * scale


def test_each_method_chooses_its_own_range():
    """Wrong ones cannot pass for each other: on normal values with one outlier all four differ."""
    x = jax.random.normal(jax.random.key(0), (4000, 16)).at[0, 0].set(30.0)
    percentile, entropy, mse, absmax = (one(x, method=m) for m in ("percentile", "entropy", "mse", "absmax"))
    assert absmax == 30.0 and 3.7 < percentile < 4.4
    assert len({percentile, entropy, mse, absmax}) == 4 and max(entropy, mse, percentile) < absmax


def test_more_values_than_float32_counts_are_counted():
    counts = _counts({"": 1.0})(types.SimpleNamespace(name=""), jnp.ones(3))
    assert counts.dtype == jnp.int32 and int(counts[-1]) == 3


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("method", ["absmax", "percentile"])
def test_values_that_are_not_finite_are_seen_in_any_batch(place, value, method):
    batches = [x.at[1, 2].set(value) if i == place else x for i, x in enumerate(BATCHES)]
    with pytest.raises(ja.UserError, match="activations before a/kernel are not finite"):
        ja.calibrate(f, PARAMS, batches, method=method)


def test_ranges_in_loops_and_branches_are_those_of_every_turn():
    w = {"kernel": jnp.eye(4)}

    def grows(p, x):
        x = jax.lax.scan(lambda x, _: (2 * (x @ p["kernel"]), None), x, length=3)[0]
        x = jax.lax.fori_loop(0, x.shape[0], lambda i, x: x @ p["kernel"], x)
        x = jax.lax.while_loop(lambda x: x.max() < 100, lambda x: 3 * (x @ p["kernel"]), x)
        return jax.lax.cond(x.sum() > 0, lambda x: x @ p["kernel"], lambda x: x, x)

    ranges = ja.calibrate(grows, w, [jnp.ones((2, 4)), jnp.full((2, 4), 0.5)]).ranges
    assert [float(v) for v in ranges.values()] == [4.0, 8.0, 72.0, 216.0]


def test_one_batch_size_serves_another():
    ranges = ja.calibrate(f, PARAMS, BATCHES)
    g = jax.jit(ja.int8(f, calibration=ranges))
    q = ja.quantize(PARAMS)
    for n in (1, 5, 64):
        x = BATCHES[0][:1].repeat(n, 0)
        np.testing.assert_allclose(g(q, x)[:1], g(q, x[:1]), rtol=1e-5, atol=1e-4)


def test_it_is_saved_and_read(tmp_path):
    ranges = ja.calibrate(f, PARAMS, BATCHES)
    ranges.save(tmp_path / "ranges.json")
    again = ja.transforms.Calibration.load(tmp_path / "ranges.json")
    assert {k: float(v) for k, v in again.ranges.items()} == {k: float(v) for k, v in ranges.ranges.items()}
    for wrong in ("[1", '{"a/kernel": NaN}', '{"a/kernel": -1.0}'):
        (tmp_path / "ranges.json").write_text(wrong)
        with pytest.raises(ja.UserError, match="holds no calibration"):
            ja.transforms.Calibration.load(tmp_path / "ranges.json")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ja.calibrate(f, PARAMS, []), "at least one batch"),
        (lambda: ja.calibrate(f, PARAMS, BATCHES, method="max"), "absmax, percentile"),
        (lambda: ja.calibrate(lambda p, x: x, PARAMS, BATCHES), "multiplies no parameter"),
        (lambda: ja.calibrate(f, PARAMS, [jnp.full((2, 16), jnp.nan)]), "not finite"),
    ],
)
def test_mistakes_get_one_line(call, says):
    with pytest.raises(ja.UserError, match=says):
        call()


def test_a_method_that_uses_a_parameter_less_often_has_the_largest_range():
    """Tied embeddings: their product is the third use in a call that looks up twice, and the second one in a step."""
    table = {"embedding": jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)), jnp.float32)}

    def call(params, one, other):
        e = params["embedding"]
        return (e[one] + e[other]) @ e.T

    def step(params, one):
        return params["embedding"][one] @ params["embedding"].T

    ids = jnp.asarray([1, 5, 0])
    ranges = ja.calibrate(call, table, [(ids, ids)])
    assert list(ranges.ranges) == ["embedding#3"]
    for scale in (np.float32, jnp.float32):
        found = ja.transforms.Calibration({"w": scale(3), "w#2": scale(7), "wide": scale(9)})
        assert found.range_of("w#3") == 7 and found.range_of("w") == 3
    want = step(table, ids)
    found = jax.jit(ja.int8(step, calibration=ranges))(ja.quantize(table), ids)
    assert 1e-4 < np.abs(found - want).max() < 0.1 * np.abs(want).max()
    with pytest.raises(ja.UserError, match=r"no range for other; calibrate"):
        ranges.range_of("other")
