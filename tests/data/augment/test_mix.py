from functools import partial

import jax
import numpy as np
import pytest
from references import KEY, apply, compiled, make_batch
from scipy import stats

from jaxaccel.data.augment import chain, cutmix, mixup, mixup_or_cutmix
from jaxaccel.errors import UserError


def all_of(mixers):
    """Several as one program."""
    return compiled(lambda key, batch: [mixer(key, batch) for mixer in mixers])


mixed = all_of([partial(mixup, alpha=1.0), partial(cutmix, alpha=1.0), mixup_or_cutmix])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mixup_mixes_with_the_neighbor(dtype):
    batch = make_batch(dtype=dtype)
    out = apply(partial(mixup, alpha=1.0), batch)
    partner = np.roll(np.arange(12), 1)
    np.testing.assert_array_equal(out["mix_label"], batch["label"][partner])
    assert out["mix_label"].dtype == np.int32 and out["mix_weight"].dtype == np.float32
    assert np.unique(out["mix_weight"]).size > 6
    weight = out["mix_weight"].astype(np.float64)[:, None, None, None]
    expected = (1 - weight) * batch["image"] + weight * batch["image"][partner]
    np.testing.assert_allclose(out["image"], expected, rtol=0, atol=0.5001 if dtype == np.uint8 else 1e-6)


def test_mixup_weights_follow_the_beta_distribution():
    batch = make_batch(size=4000, shape=(1, 1, 1))
    alphas = (0.1, 0.2, 1.0, 8.0)
    for alpha, out in zip(alphas, all_of([partial(mixup, alpha=a) for a in alphas])(KEY, batch), strict=True):
        weight = out["mix_weight"]
        assert weight.min() >= 0 and weight.max() <= 1
        # Kolmogorov-Smirnov at 0.1%, away from the ends, where float32 rounds many weights to 1.
        inner = np.linspace(0.001, 0.999, 999)
        below = np.searchsorted(np.sort(weight), inner) / 4000
        assert np.abs(below - stats.beta(alpha, alpha).cdf(inner)).max() < 1.95 / np.sqrt(4000)


def test_the_weight_belongs_to_the_example_not_to_its_place():
    batch = make_batch(size=24)
    order = np.random.default_rng(1).permutation(24)
    whole, shuffled = (mixed(KEY, b) for b in (batch, {k: v[order] for k, v in batch.items()}))
    for before, after in zip(whole, shuffled, strict=True):
        np.testing.assert_array_equal(after["mix_weight"], before["mix_weight"][order])


def test_padding_is_left_out():
    batch = make_batch(size=24)
    batch["mask"][3:5] = 0
    for out in mixed(KEY, batch):
        assert (out["mix_weight"][3:6] == 0).all() and (out["mix_weight"] > 0).sum() > 12
        np.testing.assert_array_equal(out["image"][3:6], batch["image"][3:6])


def test_with_alpha_zero_nothing_is_mixed():
    batch = make_batch(dtype=np.float32)
    mixers = [
        partial(mixup, alpha=0),
        partial(cutmix, alpha=0),
        partial(mixup_or_cutmix, mixup_alpha=0, cutmix_alpha=0),
    ]
    for out in all_of(mixers)(KEY, batch):
        np.testing.assert_array_equal(out["image"], batch["image"])
        np.testing.assert_array_equal(out["mix_weight"], np.zeros(12, np.float32))


def test_cutmix_pastes_a_box_and_weighs_its_area():
    batch = make_batch(size=500, shape=(16, 24, 2), dtype=np.float32)
    out = apply(partial(cutmix, alpha=1.0), batch)
    partner = np.roll(np.arange(500), 1)
    pasted = (out["image"] == batch["image"][partner]).all(-1)
    rows, columns = pasted.any(2), pasted.any(1)
    np.testing.assert_array_equal(pasted, rows[:, :, None] & columns[:, None, :])
    np.testing.assert_array_equal(
        out["image"], np.where(pasted[..., None], batch["image"][partner], batch["image"])
    )
    np.testing.assert_array_equal(out["mix_label"], batch["label"][partner])
    np.testing.assert_allclose(out["mix_weight"], pasted.mean((1, 2)), rtol=1e-6)
    # Away from the border, where boxes are cut off, sides are in proportion and areas uniform (Beta(1, 1)).
    tall, broad = rows.sum(1), columns.sum(1)
    whole = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]) & (tall > 0)
    assert np.abs(broad / 24 - tall / 16)[whole].max() < 0.06
    rng = np.random.default_rng(0)  # what the definition gives, drawn independently
    side = np.sqrt(rng.uniform(size=20_000))
    shares = []
    for size, center in zip((16, 24), rng.uniform(size=(2, 20_000)), strict=True):
        first = np.floor(center * size) - np.round(side * size) // 2
        shares.append((np.minimum(first + np.round(side * size), size) - np.maximum(first, 0)) / size)
    _, chance = stats.ks_2samp(out["mix_weight"], shares[0] * shares[1])
    assert float(np.asarray(chance)) > 1e-3


def test_each_example_is_mixed_in_one_way():
    batch = make_batch(size=400, shape=(8, 8, 1), dtype=np.float32)
    batch["image"] = (
        np.random.default_rng(0).uniform(size=(400, 8, 8, 1)).astype(np.float32)
    )  # no two are equal
    partner = np.roll(batch["image"], 1, axis=0)
    out = apply(partial(mixup_or_cutmix, mixup_alpha=2.0, cutmix_alpha=1.0, cutmix_probability=0.3), batch)
    of_either = ((out["image"] == partner) | (out["image"] == batch["image"])).all((1, 2, 3))
    assert abs(of_either.mean() - 0.3) < 0.08
    share = (out["image"] == partner).mean((1, 2, 3))
    np.testing.assert_allclose(out["mix_weight"][of_either], share[of_either], atol=1e-6)
    weight = out["mix_weight"][:, None, None, None]
    blend = (1 - weight) * batch["image"] + weight * partner
    np.testing.assert_allclose(out["image"][~of_either], blend[~of_either], atol=1e-6)


def without(batch, name):
    return {key: value for key, value in batch.items() if key != name}


@pytest.mark.parametrize(
    ("augmentation", "batch", "words"),
    [
        (partial(mixup, alpha=-0.1), make_batch(), "alpha.*-0.1"),
        (partial(mixup, alpha=0.1), without(make_batch(), "label"), "label"),
        (chain(partial(mixup, alpha=0.1), partial(mixup, alpha=0.1)), make_batch(), "twice"),
        (chain(partial(mixup, alpha=0.1), cutmix), make_batch(), "mixed already"),
        (partial(cutmix, alpha=float("nan")), make_batch(), "alpha.*nan"),
        (partial(mixup_or_cutmix, cutmix_alpha=-1), make_batch(), "cutmix_alpha.*-1"),
        (partial(mixup_or_cutmix, cutmix_probability=2), make_batch(), "probability.*2"),
    ],
)
def test_bad_options_raise_one_line(augmentation, batch, words):
    with pytest.raises(UserError, match=words) as error:
        jax.eval_shape(augmentation, KEY, batch)
    assert "\n" not in str(error.value)
