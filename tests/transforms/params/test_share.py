"""Shared values, against scikit-learn-like k-means by hand, and their fine-tuning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.errors import UserError
from jaxaccel.transforms.params import trainable, with_trained


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_every_weight_has_the_nearest_value(bits):
    w = random(40, 30)
    found = ja.params.share({"kernel": w}, bits)["kernel"]
    book = np.asarray(found.codebook)
    assert book.size <= 2**bits and found.indices.dtype == jnp.uint8 and (np.diff(book) > 0).all()
    nearest = np.abs(np.asarray(w)[..., None] - book).argmin(-1)
    np.testing.assert_allclose(found.materialize(), book[nearest], atol=1e-6)
    # Lloyd's rounds have ended: each value is the mean of its weights.
    for value, members in ((v, np.asarray(w)[nearest == i]) for i, v in enumerate(book)):
        assert members.size == 0 or abs(members.mean() - value) < 2e-3


def test_zeros_stay_zeros():
    w = ja.params.masked({"kernel": random(40, 30)}, ja.prune({"kernel": random(40, 30)}, 0.8))
    found = ja.params.share(w, 3)["kernel"]
    assert found.codebook[0] == 0 and found.codebook.size <= 8
    np.testing.assert_array_equal(found.materialize() == 0, w["kernel"] == 0)


def test_few_values_are_kept_as_they_are():
    w = jnp.asarray([[1.0, -2.0], [0.5, 1.0]])
    np.testing.assert_array_equal(ja.params.share({"kernel": w}, 4)["kernel"].materialize(), w)


def test_layouts_reach_the_indices():
    params, x = ja.params.share({"kernel": random(6, 8)}, 4), random(3, 8)
    f = lambda p, x: x @ p["kernel"].T.reshape(8, 6)[:, :4]  # noqa: E731
    np.testing.assert_allclose(
        ja.transforms.compressed(f)(params, x), f({"kernel": params["kernel"].materialize()}, x), rtol=1e-5
    )


def test_fine_tuning_changes_values_and_not_who_shares_them():
    target, x = random(12, 6), random(64, 12, seed=1)
    w = ja.params.masked({"kernel": random(12, 6, seed=2)}, ja.prune({"kernel": random(12, 6, seed=2)}, 0.5))
    params = {"layer": ja.params.share(w, 3), "bias": jnp.zeros(6)}

    def loss(trained):
        p = with_trained(params, trained)
        f = ja.transforms.compressed(
            lambda p: jnp.mean((x @ p["layer"]["kernel"] + p["bias"] - x @ target) ** 2)
        )
        return f(p)

    trained = trainable(params)
    before = loss(trained)
    for _ in range(50):
        trained = jax.tree.map(lambda p, g: p - 0.1 * g, trained, jax.grad(loss)(trained))
    after = with_trained(params, trained)
    assert loss(trained) < 0.9 * before
    kernel = after["layer"]["kernel"]
    np.testing.assert_array_equal(kernel.indices, params["layer"]["kernel"].indices)
    np.testing.assert_array_equal(kernel.materialize() == 0, w["kernel"] == 0)


def lloyd(values, count, starts=10):
    """The least sum of squares that scikit-learn's way finds: k-means++ and Lloyd's rounds, all distances at once."""
    rng, best = np.random.default_rng(7), np.inf
    for _ in range(starts):
        centers = [values[rng.integers(values.size)]]
        while len(centers) < count:
            near = np.min((values[:, None] - np.array(centers)) ** 2, 1)
            centers.append(rng.choice(values, p=near / near.sum()))
        centers = np.array(centers)
        for _ in range(100):
            owner = np.abs(values[:, None] - centers).argmin(1)
            centers = np.array(
                [values[owner == i].mean() if (owner == i).any() else c for i, c in enumerate(centers)]
            )
        best = min(best, np.min((values[:, None] - centers) ** 2, 1).sum())
    return best


@pytest.mark.parametrize("tail", ["normal", "heavy", "one outlier", "two groups"])
@pytest.mark.parametrize("bits", [2, 4])
def test_it_is_as_good_as_many_starts_of_k_means(tail, bits):
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.normal(size=600),
        "heavy": rng.standard_t(2, 600),
        "one outlier": np.append(rng.normal(size=599), 100.0),
        "two groups": np.concatenate([rng.normal(-5, 0.01, 400), rng.normal(3, 1, 200)]),
    }[tail].astype(np.float32)
    found = ja.params.share({"kernel": jnp.asarray(values.reshape(20, 30))}, bits)["kernel"]
    error = np.sum((np.float64(found.materialize()).ravel() - values) ** 2)
    assert error < 1.01 * lloyd(np.float64(values), 2**bits)
    assert np.unique(found.indices).size == found.codebook.size == 2**bits  # none is empty
    again = ja.params.share({"kernel": jnp.asarray(values.reshape(20, 30))}, bits)["kernel"]
    np.testing.assert_array_equal(again.codebook, found.codebook)


def test_an_outlier_takes_one_value():
    w = random(64, 64).at[0, 0].set(1000.0)
    book = np.asarray(ja.params.share({"kernel": w}, 4)["kernel"].codebook)
    assert (np.abs(book) > 10).sum() == 1


@pytest.mark.parametrize("broken", [jnp.nan, jnp.inf])
def test_weights_that_are_not_finite_are_refused(broken):
    with pytest.raises(UserError, match="layer/kernel has weights that are NaN or infinite"):
        ja.params.share({"layer": {"kernel": random(4, 4).at[1, 1].set(broken)}})


def test_what_cannot_be_is_said_in_a_line():
    with pytest.raises(UserError, match="bits must be 1 to 8, got 9"):
        ja.params.share({"kernel": random(2, 2)}, 9)
    with pytest.raises(UserError, match="matches none"):
        ja.params.share({"kernel": random(2, 2)}, where="weight")
