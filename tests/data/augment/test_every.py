"""What holds for every operation: dtypes, ranges, keys, places in the batch, devices."""

import functools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import KEY, compiled, make_batch

from jaxaccel import augment
from jaxaccel.errors import UserError

TURNED = {"rotation": 20, "scale": (0.8, 1.2), "translation": 0.1}
OPTIONS = {
    "affine": TURNED,
    "auto_augment": {"policy": "cifar10"},
    "autocontrast": {},
    "alternating_flip": {},
    "augmix": {"width": 2},
    "brightness": {"strength": 0.4},
    "color_jitter": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1},
    "contrast": {"strength": 0.4},
    "cutmix": {"alpha": 1.0},
    "cutout": {"size": 3, "fill": 1},
    "elastic": {"displacement": 3, "spacing": 4},
    "equalize": {},
    "gaussian_blur": {},
    "gaussian_noise": {"strength": 0.1},
    "grayscale": {"probability": 0.5},
    "horizontal_flip": {},
    "hue": {"strength": 0.2},
    "invert": {},
    "mixup": {"alpha": 0.5},
    "mixup_or_cutmix": {},
    "pad_and_crop": {"padding": 2},
    "perspective": {},
    "posterize": {"bits": 3},
    "rand_augment": {},
    "random_erasing": {"fill": "noise"},
    "random_resized_crop": {},
    "rotate": {"rotation": 30, "method": "bicubic"},
    "saturation": {"strength": 0.5},
    "scale": {"scale": (0.7, 1.3), "fill": "reflect"},
    "sharpness": {"strength": 0.9},
    "shear": {"shear": 0.3, "fill": "edge"},
    "solarize": {},
    "three_augment": {},
    "translate": {"translation": 0.2, "method": "nearest"},
    "trivial_augment": {},
    "vertical_flip": {},
}
EVERY = {name: partial(getattr(augment, name), **options) for name, options in OPTIONS.items()}
MIX = ("mixup", "cutmix", "mixup_or_cutmix")
RGB_ONLY = ("saturation", "hue", "grayscale", "three_augment", "color_jitter")
RESHAPING = ("resize",)
"""Nothing of it is random, and the shape changes: tests/training/test_run_plan.py."""

NARROW = ("rotate", "gaussian_blur", "color_jitter", "sharpness", "mixup")
"""Run in bfloat16 and float16 too; of the others only shapes and dtypes are checked there."""

KERNELS = (
    "perspective",
    "elastic",
    "color_jitter",
    "autocontrast",
    "gaussian_blur",
    "trivial_augment",
)
"""One of each kind of arithmetic with pixels."""

ORDER = np.random.default_rng(1).permutation(12)

# In some of these a value may leave the input's range: cubic weights overshoot.
OVERSHOOT = ("rotate",)


def test_none_is_forgotten():
    types = {"Augmentation", "Batch", "chain", "example_keys"}
    of_texts = {"mask_tokens", "mix_embeddings", "swap_words", "word_dropout"}  # test_text.py
    of_sounds = {"add_noise", "change_gain", "change_speed", "reverberate", "shift_sound", "mask_spectrogram"}
    # test_sound.py
    assert EVERY.keys() == set(augment.__all__) - types - of_texts - of_sounds - {*RESHAPING}


@functools.cache
def program(names, optimized):
    """Several operations compiled at once, which takes less time than one by one."""

    def all_of_them(key, batch):
        return {name: dict(EVERY[name](key, batch)) for name in names}

    return (jax.jit if optimized else compiled)(all_of_them)


@functools.cache
def outcomes(optimized):
    """Each operation on a batch, with another key, on the batch in another order, and on the sixth example alone."""
    batch = make_batch(dtype=np.float32)
    of_all = program(tuple(name for name in EVERY if (name in KERNELS) == optimized), optimized)
    shuffled, alone = (
        {entry: value[some] for entry, value in batch.items()} for some in (ORDER, slice(5, 6))
    )
    runs = [of_all(KEY, batch), of_all(jax.random.key(6), batch), of_all(KEY, shuffled)]
    if optimized:  # compiled anew
        runs.append(of_all(KEY, alone))
    return [jax.tree.map(np.asarray, run) for run in runs]


@pytest.mark.parametrize("name", EVERY)
def test_an_example_depends_on_its_index_and_the_key_alone(name):
    batch = make_batch(dtype=np.float32)
    # The compiler does its best where arithmetic might depend on that; elsewhere its time is saved.
    whole, another, shuffled, *alone = (run[name] for run in outcomes(name in KERNELS))
    image = whole["image"]
    assert image.dtype == np.float32 and image.shape == batch["image"].shape and np.isfinite(image).all()
    if name not in OVERSHOOT:
        assert image.min() >= -1e-7 and image.max() <= 1 + 1e-7  # interpolation rounds
    for entry in ("label", "index", "mask"):
        np.testing.assert_array_equal(whole[entry], batch[entry])
    assert not np.array_equal(image, batch["image"])
    assert np.array_equal(image, another["image"]) == (name == "alternating_flip")
    if name in MIX:
        return  # the partner is the neighbor; test_mix.py
    np.testing.assert_array_equal(shuffled["image"], image[ORDER])
    for one in alone:
        np.testing.assert_array_equal(one["image"], image[5:6])


@pytest.mark.parametrize("name", EVERY)
def test_keeps_dtype_and_shape(name):
    gray = make_batch(shape=(8, 8, 1))
    if name in RGB_ONLY:
        with pytest.raises(UserError, match="RGB"):
            jax.eval_shape(EVERY[name], KEY, gray)
    raw = jax.random.PRNGKey(0)  # a raw key as well
    eight = make_batch() if name in RGB_ONLY else gray
    for key, batch in ((KEY, eight), (raw, make_batch(dtype=jnp.bfloat16))):
        out = jax.eval_shape(EVERY[name], key, batch)["image"]
        assert out.dtype == batch["image"].dtype and out.shape == batch["image"].shape
    for wrong in ({}, {"image": np.zeros((2, 8, 8), np.uint8)}, {"image": np.zeros((2, 8, 8, 3), np.int32)}):
        with pytest.raises(UserError, match="needs") as error:
            EVERY[name](KEY, {**wrong, "label": np.zeros(2), "epoch": 0})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("affine", {"scale": 1.1}),
        ("brightness", {"strength": (0.6, 1.4)}),
        ("cutout", {"size": 3, "fill": None}),
        ("elastic", {"displacement": "1"}),
        ("gaussian_blur", {"sigma": 2.0}),
        ("horizontal_flip", {"probability": "0.5"}),
        ("mixup", {"alpha": (0.1, 0.2)}),
        ("random_erasing", {"fill": None}),
        ("random_resized_crop", {"scale": 0.5}),
        ("random_resized_crop", {"size": 1.5}),
        ("random_resized_crop", {"size": None}),
        ("rotate", {"rotation": (-10, 10)}),
        ("rotate", {"rotation": 10, "method": ["nearest"]}),
        ("solarize", {"threshold": None}),
        ("three_augment", {"sigma": 1.0}),
    ],
)
def test_options_of_another_type_are_named_in_a_line(name, options):
    with pytest.raises(UserError, match=f"({name}|affine).*{[*options][-1]}") as error:
        jax.eval_shape(partial(getattr(augment, name), **options), KEY, make_batch())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_narrow_floats_stay_in_their_range(dtype):
    for name, result in program(NARROW, False)(KEY, make_batch(dtype=dtype)).items():
        image, slack = result["image"].astype(np.float32), 0.2 if name in OVERSHOOT else 0
        assert -slack <= image.min() < image.max() <= 1 + slack, name


SHARDED = """
import re, sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from references import compiled, make_batch
from test_every import EVERY
from jaxaccel.data.augment import chain

key = jax.random.key(1)
assert jax.device_count() == 8
some = lambda *names: chain(*(EVERY[name] for name in names))
one = some("affine", "horizontal_flip", "perspective", "random_resized_crop", "color_jitter", "cutout",
           "pad_and_crop", "alternating_flip")
two = some("elastic", "equalize", "gaussian_blur", "random_erasing", "cutmix")
for augmentation, axis_type, dtype, moves in [
    (one, AxisType.Explicit, np.float32, set()),
    (EVERY["augmix"], AxisType.Explicit, np.uint8, set()),
    (two, AxisType.Auto, np.uint8, {"collective-permute"}),
    (some("posterize", "mixup"), AxisType.Explicit, np.float32, {"collective-permute"}),
]:
    batch = make_batch(size=16, shape=(12, 10, 3), dtype=dtype)
    one_device = compiled(augmentation)(key, batch)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
        program = compiled(augmentation).lower(key, sharded).compile()
        out = program(key, sharded)
    found = set(re.findall(r" (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)", program.as_text()))
    assert found == moves, found
    assert out.keys() == one_device.keys()
    for entry in out:
        assert out[entry].sharding.spec[0] == "data", (entry, out[entry].sharding)
        np.testing.assert_array_equal(out[entry], one_device[entry], err_msg=f"{entry} {axis_type}")
print("same")
"""


@pytest.mark.slow
def test_eight_devices_need_no_gather_and_give_the_same_bits():
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = subprocess.run(
        [sys.executable, "-c", SHARDED, str(Path(__file__).parent)],
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "same", run.stderr[-3000:]
