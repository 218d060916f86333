from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import KEY, apply, image_after, images_after, make_batch, photograph

from jaxaccel.data.augment import (
    brightness,
    chain,
    color_jitter,
    contrast,
    cutout,
    example_keys,
    grayscale,
    horizontal_flip,
    hue,
    invert,
    pad_and_crop,
    perspective,
    random_resized_crop,
    rotate,
    saturation,
    scale,
    shear,
    translate,
    vertical_flip,
)  # fmt: skip
from jaxaccel.data.augment.deferred import Deferred
from jaxaccel.errors import UserError


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


def test_chain_of_what_is_no_function():
    with pytest.raises(UserError, match="partial"):
        chain(horizontal_flip, "cutout")  # pyright: ignore[reportArgumentType]


def apart(*augmentations):
    """The same as chain, each operation carried out on its own."""

    def applied(key, batch):
        for position, augmentation in enumerate(augmentations):
            batch = augmentation(jax.random.fold_in(key, position), batch)
        return batch

    return applied


def both(augmentations, batch):
    """The images after a chain, and after each operation on its own."""
    return images_after({"chain": chain(*augmentations), "apart": apart(*augmentations)}, batch).values()


def gathers(augmentation, batch):
    jaxpr = jax.make_jaxpr(augmentation)(KEY, batch)
    return str(jaxpr).count("gather[")


def ramps(size=8, height=41, width=53):
    """Images that bilinear resampling reproduces: linear in the place."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.stack([rows / height, columns / width, (rows + columns) / (height + width)], -1)
    return {"image": np.tile(image.astype(np.float32), (size, 1, 1, 1)), "index": np.arange(size)}


def test_places_compose_into_one_resampling():
    moves = [
        partial(rotate, rotation=20, fill="edge"), horizontal_flip, partial(scale, scale=(0.9, 1.2), fill="edge"),
        partial(shear, shear=0.2, fill="edge"), partial(perspective, distortion=0.2, fill="edge"), vertical_flip,
        random_resized_crop, partial(translate, translation=0.1, fill="edge"),
    ]  # fmt: skip
    batch = ramps()
    looked_up = 3 + 2  # angles of rotate, scale and translate; sides and ratios of boxes
    assert gathers(chain(*moves), batch) == looked_up + 4
    together, alone = both(moves, batch)
    # Linear images: both agree but for what came from beyond the border.
    agree = np.abs(together - alone).max(-1) < 5e-3
    assert agree.mean() > 0.7
    nested = chain(chain(*moves[:3]), chain(*moves[3:]))
    assert gathers(nested, batch) == looked_up + 4


def test_what_disagrees_on_the_border_is_not_joined():
    batch = make_batch(dtype=np.float32)
    turn = partial(rotate, rotation=20)
    for other in (partial(rotate, rotation=20, fill=1), partial(rotate, rotation=20, method="nearest")):
        np.testing.assert_array_equal(*both([turn, other], batch))


def test_flips_alone_move_whole_pixels():
    batch = make_batch(shape=(5, 6, 1))
    flips = (horizontal_flip, vertical_flip, horizontal_flip)
    assert gathers(chain(*flips), batch) == 0
    np.testing.assert_array_equal(*both(flips, batch))


def test_colors_compose_into_one_matrix():
    changes = [
        partial(brightness, strength=0.3), partial(contrast, strength=0.4), partial(saturation, strength=0.5),
        partial(hue, strength=0.1), partial(contrast, strength=0.2), partial(grayscale, probability=0.3),
    ]  # fmt: skip
    image = (0.4 + 0.2 * make_batch(dtype=np.float32)["image"]).astype(
        np.float32
    )  # nothing is clipped on the way
    batch = {**make_batch(), "image": image}
    together, alone = both(changes, batch)
    np.testing.assert_allclose(together, alone, atol=2e-5)
    assert np.abs(together - image).max() > 0.05
    eight = {**batch, "image": np.round(image * 255).astype(np.uint8)}
    together = image_after(chain(*changes), eight).astype(int)
    assert np.abs(together - 255 * alone).max() < 1.6  # its input is rounded once and its output once


def test_clipping_happens_once():
    batch = {"image": np.full((64, 4, 4, 3), 200, np.uint8)}
    bright, back = partial(brightness, strength=1.0), partial(invert, probability=1.0)
    out = image_after(chain(bright, back, back), batch)
    np.testing.assert_array_equal(out, image_after(chain(bright), batch))


def test_color_jitter_is_a_chain():
    batch = make_batch(dtype=np.float32)
    option = {"brightness": 0.2, "contrast": 0.3, "saturation": 0.2, "hue": 0.1}
    operations = (brightness, contrast, saturation, hue)
    by_hand = chain(*(partial(f, strength=s) for f, s in zip(operations, option.values(), strict=True)))
    named = {"jitter": partial(color_jitter, **option), "chain": by_hand}
    np.testing.assert_array_equal(*images_after(named, batch).values())
    longer = chain(partial(color_jitter, **option), partial(contrast, strength=0.1))
    assert set(jax.eval_shape(longer, KEY, batch)) == set(batch)


def test_an_operation_that_knows_nothing_of_chains_sees_a_batch():
    seen = []

    @jax.jit
    def darker(key, batch):
        seen.append(type(batch))
        return {**batch, "image": batch["image"] // 2}

    batch = make_batch()
    turn = partial(rotate, rotation=30)
    assert set(jax.eval_shape(chain(turn, darker, turn), KEY, batch)) == set(batch) and seen == [dict]
    np.testing.assert_array_equal(*both([turn, darker, turn], batch))
    assert type(chain(horizontal_flip)(KEY, batch)) is dict
    waiting = horizontal_flip(KEY, Deferred(batch))
    assert isinstance(waiting, Deferred) and waiting.change is not None
    assert len(waiting) == len(batch) and waiting["label"] is batch["label"]
    first = waiting["image"]
    assert waiting.change is None and waiting["image"] is first


def test_pictures_are_not_blurred_twice():
    batch = {"image": np.tile(photograph(), (8, 1, 1, 1))}
    turns = [partial(rotate, rotation=5, fill="reflect")] * 4
    sharp, blurred = both(turns, batch)
    detail = [np.abs(np.diff(image.astype(float), axis=2)).mean() for image in (sharp, blurred)]
    assert detail[0] > detail[1]
