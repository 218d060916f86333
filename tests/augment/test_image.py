import os
import subprocess
import sys
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxaccel.augment import affine, chain, cutout, example_keys, horizontal_flip, mixup, pad_and_crop
from jaxaccel.errors import UserError

KEY = jax.random.key(3)
KEYED_BY_EXAMPLE = {
    "horizontal_flip": horizontal_flip,
    "pad_and_crop": partial(pad_and_crop, padding=2),
    "pad_and_crop reflect": partial(pad_and_crop, padding=2, mode="reflect"),
    "cutout": partial(cutout, size=3, fill=7),
    "affine": partial(affine, rotation=20, scale=(0.8, 1.2), translation=0.1),
    "chain": chain(horizontal_flip, partial(cutout, size=2), partial(affine, rotation=10)),
}
ALL = {**KEYED_BY_EXAMPLE, "mixup": partial(mixup, alpha=0.5)}


def make_batch(size=12, shape=(6, 9, 3), dtype: Any = np.uint8, seed=0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, *shape)).astype(np.uint8)
    return {
        "image": image if dtype == np.uint8 else (image / 255).astype(dtype),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "index": rng.permutation(10_000)[:size].astype(np.int32),
        "mask": np.ones(size, np.float32),
    }


def apply(augmentation, batch, key=KEY):
    return {name: np.asarray(value) for name, value in jax.jit(augmentation)(key, batch).items()}


def windows(image, padding, mode):
    """Every window of a padded image (H, W, C), by its offset."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    places = range(2 * padding + 1)
    return {(y, x): padded[y : y + height, x : x + width] for y in places for x in places}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in ALL for dtype in (np.uint8, np.float32)]
    + [(name, dtype) for name in ("affine", "mixup") for dtype in (np.float16, jnp.bfloat16)],
)
def test_keeps_dtype_shape_range_and_the_other_entries(name, dtype):
    batch = make_batch(dtype=dtype)
    out = apply(ALL[name], batch)
    assert out["image"].dtype == dtype
    assert out["image"].shape == batch["image"].shape
    values = out["image"].astype(np.float32)
    assert values.min() >= 0 and values.max() <= (7 if "cutout" in name and dtype != np.uint8 else 255)
    if dtype != np.uint8 and name != "cutout":
        assert values.max() <= 1
    for entry in ("label", "index", "mask"):
        np.testing.assert_array_equal(out[entry], batch[entry])


@pytest.mark.parametrize("name", ALL)
def test_same_key_same_result_and_another_key_another(name):
    batch = make_batch(dtype=np.float32)
    first, again = apply(ALL[name], batch), apply(ALL[name], batch)
    np.testing.assert_array_equal(first["image"], again["image"])
    assert not np.array_equal(first["image"], apply(ALL[name], batch, jax.random.key(4))["image"])
    assert not np.array_equal(first["image"], batch["image"])


@pytest.mark.parametrize("name", KEYED_BY_EXAMPLE)
def test_an_example_depends_on_its_index_alone(name):
    batch = make_batch(dtype=np.float32)
    whole = apply(KEYED_BY_EXAMPLE[name], batch)["image"]
    order = np.random.default_rng(1).permutation(12)
    shuffled = apply(KEYED_BY_EXAMPLE[name], {k: v[order] for k, v in batch.items()})["image"]
    np.testing.assert_array_equal(shuffled, whole[order])
    alone = apply(KEYED_BY_EXAMPLE[name], {k: v[5:6] for k, v in batch.items()})["image"]
    np.testing.assert_array_equal(alone, whole[5:6])


def test_example_keys_fold_in_the_index():
    batch = make_batch(size=3)
    expected = [jax.random.key_data(jax.random.fold_in(KEY, int(i))) for i in batch["index"]]
    np.testing.assert_array_equal(jax.random.key_data(example_keys(KEY, batch)), expected)
    unnumbered = example_keys(KEY, {"image": batch["image"]})
    numbered = example_keys(KEY, {"index": jnp.arange(3)})
    np.testing.assert_array_equal(jax.random.key_data(unnumbered), jax.random.key_data(numbered))
    assert example_keys(jax.random.PRNGKey(0), batch).shape == (3, 2)  # raw keys too


def test_chain_applies_in_order_each_with_its_own_key():
    batch = make_batch()
    first, second = partial(pad_and_crop, padding=2), partial(cutout, size=3)
    by_hand = apply(second, apply(first, batch, jax.random.fold_in(KEY, 0)), jax.random.fold_in(KEY, 1))
    np.testing.assert_array_equal(apply(chain(first, second), batch)["image"], by_hand["image"])
    assert chain()(KEY, batch) is batch
    twice = apply(chain(first, first), batch)["image"]
    with_one_key = apply(first, apply(first, batch))["image"]
    assert not np.array_equal(twice, with_one_key)


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


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_mixup_mixes_with_the_neighbour(dtype):
    batch = make_batch(dtype=dtype)
    out = apply(partial(mixup, alpha=1.0), batch)
    partner = np.roll(np.arange(12), 1)
    np.testing.assert_array_equal(out["mix_label"], batch["label"][partner])
    assert out["mix_label"].dtype == np.int32 and out["mix_weight"].dtype == np.float32
    assert np.unique(out["mix_weight"]).size > 6
    weight = out["mix_weight"].astype(np.float64)[:, None, None, None]
    expected = (1 - weight) * batch["image"] + weight * batch["image"][partner]
    np.testing.assert_allclose(out["image"], expected, rtol=0, atol=0.5001 if dtype == np.uint8 else 1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 8.0])
def test_mixup_weights_follow_the_beta_distribution(alpha):
    batch = make_batch(size=4000, shape=(1, 1, 1))
    weight = apply(partial(mixup, alpha=alpha), batch)["mix_weight"]
    assert weight.min() >= 0 and weight.max() <= 1
    # Kolmogorov-Smirnov at 0.1%, away from the ends, where float32 rounds many weights to 1.
    inner = np.linspace(0.001, 0.999, 999)
    below = np.searchsorted(np.sort(weight), inner) / 4000
    assert np.abs(below - stats.beta(alpha, alpha).cdf(inner)).max() < 1.95 / np.sqrt(4000)


def test_mixup_weight_belongs_to_the_example_not_to_its_place():
    batch = make_batch()
    order = np.random.default_rng(1).permutation(12)
    whole = apply(partial(mixup, alpha=0.4), batch)["mix_weight"]
    shuffled = apply(partial(mixup, alpha=0.4), {k: v[order] for k, v in batch.items()})["mix_weight"]
    np.testing.assert_array_equal(shuffled, whole[order])


def test_mixup_leaves_padding_out():
    batch = make_batch(size=6)
    batch["mask"][3:5] = 0
    out = apply(partial(mixup, alpha=1.0), batch)
    np.testing.assert_array_equal(out["mix_weight"] == 0, [False, False, False, True, True, True])
    np.testing.assert_array_equal(out["image"][3:], batch["image"][3:])


def test_mixup_with_alpha_zero_is_the_identity():
    batch = make_batch(dtype=np.float32)
    out = apply(partial(mixup, alpha=0), batch)
    np.testing.assert_array_equal(out["image"], batch["image"])
    np.testing.assert_array_equal(out["mix_weight"], np.zeros(12, np.float32))


def without(batch, name):
    return {key: value for key, value in batch.items() if key != name}


@pytest.mark.parametrize(
    ("augmentation", "batch", "words"),
    [
        (horizontal_flip, without(make_batch(), "image"), "needs batch\\['image'\\].* index, label, mask"),
        (horizontal_flip, {"image": np.zeros((2, 8, 8), np.uint8)}, "shape"),
        (horizontal_flip, {"image": np.zeros((2, 8, 8, 1), np.int32)}, "int32"),
        (partial(horizontal_flip, probability=1.5), make_batch(), "probability.*1.5"),
        (partial(horizontal_flip, probability=float("nan")), make_batch(), "probability.*nan"),
        (partial(pad_and_crop, padding=-1), make_batch(), "padding.*-1"),
        (partial(pad_and_crop, **{"padding": 1.5}), make_batch(), "padding.*1.5"),
        (partial(pad_and_crop, **{"padding": 1, "mode": "edge"}), make_batch(), "mode.*edge"),
        (partial(pad_and_crop, padding=6, mode="reflect"), make_batch(), "6x9"),
        (partial(cutout, size=-2), make_batch(), "size.*-2"),
        (partial(cutout, size=2, fill=256), make_batch(), "fill.*256"),
        (partial(cutout, size=2, fill=0.5), make_batch(), "fill.*0.5"),
        (partial(cutout, size=2, fill=float("inf")), make_batch(dtype=np.float32), "finite"),
        (partial(mixup, alpha=-0.1), make_batch(), "alpha.*-0.1"),
        (partial(mixup, alpha=0.1), without(make_batch(), "label"), "label"),
        (chain(partial(mixup, alpha=0.1), partial(mixup, alpha=0.1)), make_batch(), "twice"),
        (lambda key, batch: example_keys(key, batch), {}, "empty"),
    ],
)
def test_bad_options_raise_one_line(augmentation, batch, words):
    with pytest.raises(UserError, match=words) as error:
        augmentation(KEY, batch)
    assert "\n" not in str(error.value)


def test_chain_of_what_is_no_function():
    with pytest.raises(UserError, match="partial"):
        chain(horizontal_flip, "cutout")  # pyright: ignore[reportArgumentType]


SHARDED = """
import re
import jax, numpy as np
from functools import partial
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxaccel.augment import affine, chain, cutout, horizontal_flip, mixup, pad_and_crop

alone = chain(horizontal_flip, partial(pad_and_crop, padding=3), partial(cutout, size=4),
              partial(affine, rotation=15, scale=(0.9, 1.1), translation=0.1))
mixed = chain(alone, partial(mixup, alpha=0.3))
key, rng = jax.random.key(1), np.random.default_rng(0)
assert jax.device_count() == 8
for augmentation, size, dtype, axis_type in [
    (alone, 8, np.float32, AxisType.Explicit),
    (mixed, 24, np.uint8, AxisType.Auto),
    (mixed, 8, np.float32, AxisType.Explicit),
]:
    batch = {"image": rng.integers(0, 256, (size, 12, 10, 3)).astype(dtype),
             "label": np.arange(size, dtype=np.int32),
             "index": rng.permutation(1000)[:size].astype(np.int32), "mask": np.ones(size, np.float32)}
    one_device = jax.jit(augmentation)(key, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
        compiled = jax.jit(augmentation).lower(key, sharded).compile()
        out = compiled(key, sharded)
    found = set(re.findall(r" (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)", compiled.as_text()))
    assert found == ({"collective-permute"} if augmentation is mixed else set()), found
    assert out.keys() == one_device.keys()
    for name in out:
        assert out[name].sharding.spec[0] == "data", (name, out[name].sharding)
        np.testing.assert_array_equal(out[name], one_device[name], err_msg=f"{name} {size} {axis_type}")
print("same")
"""  # noqa: E501


def test_eight_devices_need_no_gather_and_give_the_same_bits():
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = subprocess.run(
        [sys.executable, "-c", SHARDED], env={**os.environ, **flags}, capture_output=True, text=True
    )
    assert run.stdout.strip() == "same", run.stderr[-3000:]
