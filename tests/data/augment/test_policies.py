"""Policies: each operation at each magnitude is Pillow's, and what is drawn is what the papers say."""

import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from references import KEY, compiled, image_after, images_after, make_batch, photograph, pil, unpil

from jaxaccel.data.augment import augmix, auto_augment, policies, rand_augment, three_augment, trivial_augment
from jaxaccel.data.augment.policy_tables import (
    AUGMIX,
    AUTO,
    COLUMNS,
    OPERATIONS,
    RAND,
    TRIVIAL_WIDE,
    parameters,
    subpolicies,
)  # fmt: skip
from jaxaccel.errors import UserError

SIGNED = (
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
)


@compiled
def stage(levels, rows):
    return policies.stage(KEY, levels, rows, method="nearest")


def pillow(name, magnitude, image):
    """The operation as Pillow does it."""
    picture, (height, width) = pil(image), image.shape[:2]
    if name in ("brightness", "color", "contrast", "sharpness"):
        return getattr(ImageEnhance, name.capitalize())(picture).enhance(1 + magnitude)
    if name == "rotate":
        return picture.rotate(magnitude)
    matrices = {
        "shear_x": (1, magnitude, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, magnitude, 1, 0),
        "translate_x": (1, 0, -int(magnitude), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, -int(magnitude)),
    }
    if name in matrices:
        return picture.transform((width, height), Image.Transform.AFFINE, matrices[name])
    return {
        "identity": lambda: picture,
        "posterize": lambda: ImageOps.posterize(picture, int(magnitude)),
        "solarize": lambda: ImageOps.solarize(picture, magnitude),
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "invert": lambda: ImageOps.invert(picture),
    }[name]()


def usual(translation):
    return {"shear": 0.3, "translate": translation, "rotate": 30, "posterize": (8, 4), "factor": 0.9}


SPACES = {  # at the highest magnitude; pixels of translation as a function of the size; bits at the lowest, and lost
    "auto": (AUTO, 10, usual(lambda size: size * 150 / 331)),
    "rand": (RAND, 31, usual(lambda size: size * 150 / 331)),
    "trivial": (TRIVIAL_WIDE, 31, {"shear": 0.99, "translate": lambda size: 32, "rotate": 135,
                                   "posterize": (8, 6), "factor": 0.99}),
    "augmix": (AUGMIX, 101, usual(lambda size: size / 3) | {"posterize": (4, 4)}),
}  # fmt: skip


def magnitude_of(name, level, sign, levels, highest, height, width):
    """As torchvision tabulates them."""
    share = level / (levels - 1)
    if name.startswith("translate"):
        return sign * share * highest["translate"](width if name.endswith("x") else height)
    if name == "posterize":
        kept, lost = highest["posterize"]
        return kept - round(lost * share)
    if name == "solarize":
        return 255 - 255 * share
    return sign * share * highest.get(name.removesuffix("_x").removesuffix("_y"), highest["factor"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("space", "level"), [("auto", 7), ("rand", 9), ("trivial", 25), ("augmix", 23)])
def test_every_operation_is_pillows(space, level, channels):
    image = photograph()[..., :channels]
    space, levels, highest = SPACES[space]
    table = parameters(space, *image.shape[:2])
    drawn = [(i, sign) for i in range(len(OPERATIONS)) for sign in (0, 1)]
    rows = np.stack([table[i, level, sign] for i, sign in drawn])
    out = np.asarray(stage(np.tile(image, (len(rows), 1, 1, 1)), rows)).astype(int)
    for result, (i, sign) in zip(out, drawn, strict=True):
        name = OPERATIONS[i]
        magnitude = magnitude_of(name, level, 1 - 2 * sign, levels, highest, *image.shape[:2])
        expected = unpil(pillow(name, magnitude, image)).astype(int)
        if name.startswith(("shear", "rotate")):  # the nearest of two equally near pixels is anybody's choice
            assert (result != expected).any(-1).mean() < 0.03, name
        elif name in ("brightness", "color", "contrast", "sharpness", "autocontrast"):
            assert np.abs(result - expected).max() <= 2, name
        else:
            np.testing.assert_array_equal(result, expected, err_msg=name)
        unchanged = name == "identity" or (name == "color" and channels == 1)
        assert unchanged == np.array_equal(result, image) or name in ("posterize", "autocontrast")


def test_learned_policies_are_tables_of_25_pairs():
    for policy in ("imagenet", "cifar10", "svhn"):
        table = subpolicies(policy)
        assert table.shape == (25, 2, 3)
        assert (table[..., 1] <= 10).all() and (table[..., 2] <= 9).all() and (table >= 0).all()

    # All of them equal torchvision's.
    sums = {policy: zlib.crc32(subpolicies(policy).tobytes()) for policy in ("imagenet", "cifar10", "svhn")}
    assert sums == {"imagenet": 1409335828, "cifar10": 235700807, "svhn": 2809639590}

    # Of the paper's tables 7 to 9.
    def named(pair):
        return [(OPERATIONS[name], tenths / 10, level) for name, tenths, level in pair]

    assert named(subpolicies("imagenet")[0]) == [("posterize", 0.4, 8), ("rotate", 0.6, 9)]
    assert named(subpolicies("cifar10")[1]) == [("rotate", 0.7, 2), ("translate_x", 0.3, 9)]
    assert named(subpolicies("svhn")[-1]) == [("shear_x", 0.7, 2), ("invert", 0.1, 0)]


@pytest.fixture
def drawn(monkeypatch):
    """What stages are given, by a policy for so many images: the rows of parameters, stage by stage."""

    def of(policy, size=6000, key=KEY):
        rows = []

        def record(key, levels, stage_rows, **options):
            jax.debug.callback(lambda found: rows.append(np.asarray(found)), stage_rows, ordered=True)
            return levels

        @compiled
        def drawing(key):  # images that nobody looks at are not made
            batch = {"image": jnp.zeros((size, 40, 48, 3), jnp.uint8), "index": jnp.arange(size)}
            return policy(key, batch)["image"][0, 0, 0, 0]

        monkeypatch.setattr(policies, "stage", record)
        drawing(key)
        jax.effects_barrier()
        return rows

    return of


def indices(table, rows):
    """(operation, level, sign) candidates: the share of rows that each row of the table explains."""
    flat = {row.tobytes(): i for i, row in reversed(list(enumerate(table.reshape(-1, COLUMNS))))}
    return np.array([flat[row.tobytes()] for row in rows])


def test_rand_augment_draws_operations_evenly_and_independently(drawn):
    stages = drawn(partial(rand_augment, num_ops=2, magnitude=9), key=jax.random.key(7))
    table = parameters(RAND, 40, 48)
    found = [indices(table, rows) // (2 * RAND.levels) for rows in stages]
    assert len(found) == 2
    for operations in found:
        counts = np.bincount(operations, minlength=15)
        assert counts[14] == 0 and np.abs(counts[:14] - 6000 / 14).max() < 4.5 * np.sqrt(6000 / 14)
    joint = np.histogram2d(*found, bins=[np.arange(15), np.arange(15)])[0] / 6000
    assert np.abs(joint - 1 / 196).max() < 5 * np.sqrt(1 / 196 / 6000)
    places = [indices(table, rows) for rows in stages]
    for i, name in enumerate(OPERATIONS[:14]):
        of_it = places[0][found[0] == i]
        levels, signs = of_it // 2 % RAND.levels, of_it % 2
        if name in SIGNED:
            assert (levels == 9).all() and abs(signs.mean() - 0.5) < 0.12


def test_trivial_augment_draws_every_magnitude(drawn):
    (rows,) = drawn(trivial_augment)
    place = indices(parameters(TRIVIAL_WIDE, 40, 48), rows)
    rotated = place[place // 62 == OPERATIONS.index("rotate")] // 2 % 31
    counts = np.bincount(rotated, minlength=31)
    assert (counts > 0).all() and counts[1:].max() < 4 * counts[1:].mean()


def test_auto_augment_draws_pairs_with_their_probabilities(drawn):
    stages = drawn(partial(auto_augment, policy="svhn"))
    table, pairs = parameters(AUTO, 40, 48), subpolicies("svhn")
    for stage_number, rows in enumerate(stages):
        found = np.bincount(indices(table, rows) // 20, minlength=15) / 6000
        expected = np.zeros(15)
        for name, tenths, level in pairs[:, stage_number]:
            expected[name if level or OPERATIONS[name] not in SIGNED else 0] += tenths / 250
        expected[0] += 1 - expected.sum()
        np.testing.assert_allclose(found, expected, atol=4.5 * np.sqrt(0.25 / 6000))


def test_augmix_mixes_chains_of_one_to_three(drawn):
    stages = drawn(partial(augmix, severity=3, width=2), size=300)
    assert len(stages) == 6
    table = parameters(AUGMIX, 40, 48)
    places = np.array([indices(table, rows) for rows in stages]).reshape(2, 3, 300)
    idle = (places // 202 == 0).mean(2)
    nothing = 0.05  # translations by less than a pixel
    np.testing.assert_allclose(
        idle, np.tile([nothing, (1 + 2 * nothing) / 3, (2 + nothing) / 3], (2, 1)), atol=0.12
    )
    levels = places // 2 % 101
    assert levels.max() == 30 and np.unique(levels).size > 25
    names = {OPERATIONS[i] for i in np.unique(places // 202)}
    colors = {"brightness", "color", "contrast", "sharpness"}
    assert names == {*OPERATIONS[:14]} - colors

    stages = drawn(partial(augmix, severity=10, width=1, all_ops=True), size=300)
    names = {OPERATIONS[i] for rows in stages for i in np.unique(indices(table, rows) // 202)}
    assert names == {*OPERATIONS[:14]}


def test_augmix_of_identities_is_the_image(monkeypatch):
    monkeypatch.setattr(policies, "stage", lambda key, levels, rows, **options: levels)
    batch = make_batch()
    np.testing.assert_array_equal(image_after(augmix, batch), batch["image"])
    # With other images in the chains, the result lies between both by weights that sum to one.
    monkeypatch.setattr(policies, "stage", lambda key, levels, rows, **options: jnp.full_like(levels, 200))
    dark = {"image": np.zeros((2000, 1, 1, 1), np.uint8), "index": np.arange(2000)}
    mixed = image_after(augmix, dark).ravel() / 200
    assert np.abs(np.sort(mixed) - (np.arange(2000) + 0.5) / 2000).max() < 0.05  # Beta(1, 1)


def test_augmix_of_tiny_weights_is_still_a_mixture(monkeypatch):
    monkeypatch.setattr(policies, "stage", lambda key, levels, rows, **options: levels)
    batch = {"image": np.full((500, 1, 1, 1), 100, np.uint8), "index": np.arange(500)}
    np.testing.assert_array_equal(image_after(partial(augmix, alpha=0.01), batch), batch["image"])


def test_three_augment_does_one_of_three():
    batch = make_batch(size=300, shape=(8, 8, 3))
    out = image_after(three_augment, batch)
    luma = np.stack([unpil(pil(image).convert("L").convert("RGB")) for image in batch["image"]])
    negated = np.where(batch["image"] >= 128, 255 - batch["image"], batch["image"])
    grayed, solarized = ((out == other).all((1, 2, 3)) for other in (luma, negated))
    assert not (grayed & solarized).any()
    blurred = ~grayed & ~solarized
    for share in (grayed.mean(), solarized.mean(), blurred.mean()):
        assert abs(share - 1 / 3) < 0.11
    detail = [np.abs(np.diff(images[blurred].astype(int), axis=2)).mean() for images in (batch["image"], out)]
    assert detail[1] < 0.7 * detail[0]


def test_floats_are_rounded_to_levels(monkeypatch):
    batch = make_batch(shape=(8, 9, 3))
    floats = {**batch, "image": (batch["image"] / 255).astype(np.float32)}
    np.testing.assert_allclose(
        image_after(trivial_augment, floats) * 255, image_after(trivial_augment, batch), atol=1e-3
    )

    def negated(key, levels, rows, **options):
        assert levels.dtype == np.uint8
        return 255 - levels

    monkeypatch.setattr(policies, "stage", negated)
    batch["image"][:] = 100
    floats["image"] = (batch["image"] / 255 + 0.4 / 255).astype(np.float32)
    named = {f.__name__: f for f in (auto_augment, rand_augment, trivial_augment, augmix)}
    eight, rounded = images_after(named, batch), images_after(named, floats)
    for name in named:
        np.testing.assert_allclose(rounded[name] * 255, eight[name], atol=1e-3)


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (
            partial(auto_augment, **{"policy": "mnist"}),
            "policy must be imagenet, cifar10 or svhn, got 'mnist'",
        ),
        (partial(rand_augment, num_ops=-1), "num_ops.*-1"),
        (partial(rand_augment, magnitude=31), "magnitude.*31"),
        (partial(rand_augment, fill=0.5), "fill.*0.5"),
        (partial(trivial_augment, **{"method": "cubic"}), "method.*cubic"),
        (partial(augmix, severity=0), "severity.*0"),
        (partial(augmix, width=0), "width.*0"),
        (partial(augmix, alpha=0), "alpha.*0"),
        (partial(three_augment, threshold=128), "threshold.*128"),
        (partial(three_augment, **{"sigma": (1.0,)}), "sigma"),
    ],
)
def test_bad_options_raise_one_line(augmentation, words):
    with pytest.raises(UserError, match=words) as error:
        jax.eval_shape(augmentation, KEY, make_batch())
    assert "\n" not in str(error.value)
