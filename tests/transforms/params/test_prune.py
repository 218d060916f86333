"""Masks: exact counts, patterns, budgets and criteria, against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model
from jaxaccel.transforms.params.prune import layer_densities, sparsity_of


def network():
    key = iter(jax.random.split(jax.random.key(0), 4))
    return {
        "conv": {"kernel": jax.random.normal(next(key), (3, 3, 8, 16))},
        "norm": {"scale": jnp.ones(16)},
        "head": {"kernel": 3 * jax.random.normal(next(key), (16, 12)), "bias": jnp.ones(12)},
    }


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.87, 0.999])
def test_each_layer_keeps_its_largest(sparsity):
    params = network()
    masks = ja.prune(params, sparsity)
    assert masks["norm"]["scale"] is None and masks["head"]["bias"] is None
    for layer in ("conv", "head"):
        w, mask = np.abs(params[layer]["kernel"]), np.asarray(masks[layer]["kernel"])
        assert mask.sum() == round(w.size * (1 - sparsity))
        assert not (~mask).any() or not mask.any() or w[mask].min() >= w[~mask].max()


def test_equal_scores_are_counted_exactly():
    masks = ja.prune({"kernel": jnp.ones((10, 10))}, 0.37)
    assert int(masks["kernel"].sum()) == 63


def test_global_takes_the_least_wherever_they_are():
    params = network()
    masks = ja.prune(params, 0.5, scope="global")
    both = np.concatenate([np.abs(params[k]["kernel"]).ravel() for k in ("conv", "head")])
    cut = np.sort(both)[both.size // 2]
    for layer in ("conv", "head"):
        np.testing.assert_array_equal(masks[layer]["kernel"], np.abs(params[layer]["kernel"]) >= cut)
    assert masks["head"]["kernel"].mean() > masks["conv"]["kernel"].mean()


def test_erdos_renyi_kernel_budgets():
    # By hand: (sum of sizes) / (product of sizes) for both, scaled so that half of all is kept.
    shapes = {"a": (3, 3, 8, 16), "b": (16, 12)}
    raw = {"a": (3 + 3 + 8 + 16) / 1152, "b": (16 + 12) / 192}
    found = layer_densities(shapes, 0.9)
    factor = 0.1 * (1152 + 192) / (raw["a"] * 1152 + raw["b"] * 192)
    assert found == pytest.approx({"a": raw["a"] * factor, "b": raw["b"] * factor})
    full = layer_densities(shapes, 0.2)  # b would need more than it has
    assert full["b"] == 1.0 and full["a"] * 1152 + 192 == pytest.approx(0.8 * 1344)
    params = network()
    masks = ja.prune(params, 0.9, scope="erk")
    kept = sum(int(m.sum()) for m in jax.tree.leaves(masks))
    assert kept == pytest.approx(0.1 * 1344, abs=2)


@pytest.mark.parametrize(("pattern", "keep", "of"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
def test_n_of_m_along_the_inputs(pattern, keep, of):
    params = network()
    for path, mask in (("conv", None), ("head", None)):
        w = np.abs(params[path]["kernel"])
        mask = np.asarray(ja.prune(params, None, pattern)[path]["kernel"])
        groups, sizes = (x.reshape(*x.shape[:-2], -1, of, x.shape[-1]) for x in (mask, w))
        assert (groups.sum(-2) == keep).all()
        least_kept = np.where(groups, sizes, np.inf).min(-2)
        assert (least_kept >= np.where(groups, -np.inf, sizes).max(-2)).all()


def test_blocks_go_whole():
    w = jax.random.normal(jax.random.key(0), (16, 12))
    mask = np.asarray(ja.prune({"kernel": w}, 0.5, "block:4x2")["kernel"])
    blocks = mask.reshape(4, 4, 6, 2).transpose(0, 2, 1, 3).reshape(24, 8)
    assert set(blocks.sum(1)) == {0, 8} and mask.mean() == 0.5
    sums = np.abs(np.asarray(w)).reshape(4, 4, 6, 2).sum((1, 3)).ravel()
    assert sums[blocks[:, 0]].min() > sums[~blocks[:, 0]].max()


def test_criteria():
    params, key = network(), jax.random.key(3)
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)
    mask = np.asarray(ja.prune(params, 0.5, criterion="taylor", grads=grads)["head"]["kernel"])
    score = np.asarray(params["head"]["kernel"] * grads["head"]["kernel"]) ** 2
    assert score[mask].min() > score[~mask].max()
    norms = {"head/kernel": jnp.arange(1.0, 17), "conv/kernel": jnp.arange(1.0, 9)}
    mask = np.asarray(ja.prune(params, 0.5, criterion="wanda", norms=norms)["conv"]["kernel"])
    score = np.abs(np.asarray(params["conv"]["kernel"])) * np.arange(1.0, 9)[:, None]
    assert score[mask].min() > score[~mask].max()
    masks = [
        ja.prune(params, 0.5, criterion="random", key=k)["head"]["kernel"]
        for k in (key, key, jax.random.key(4))
    ]
    assert (masks[0] == masks[1]).all() and not (masks[0] == masks[2]).all()


def test_the_norms_are_those_of_the_inputs():
    w1, w2 = jax.random.normal(jax.random.key(0), (3, 3, 4, 5)), jax.random.normal(jax.random.key(1), (5, 6))
    params = {"a": {"kernel": w1}, "b": {"kernel": w2}}

    def f(p, x):
        y = jax.lax.conv_general_dilated(
            x, p["a"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(y).mean((1, 2)) @ p["b"]["kernel"]

    xs = [jax.random.normal(jax.random.key(i), (2, 6, 6, 4)) for i in (2, 3)]
    norms = ja.transforms.input_norms(f, params, xs)
    np.testing.assert_allclose(
        norms["a/kernel"], np.sqrt(np.mean(np.concatenate(xs) ** 2, (0, 1, 2))), rtol=1e-5
    )
    assert norms["b/kernel"].shape == (5,)
    assert ja.prune(params, 0.5, criterion="wanda", norms=norms)["b"]["kernel"].sum() == 15


def test_wanda_of_attention():
    inputs = (jax.ShapeDtypeStruct((2, 8, 8, 1), "float32"),)
    vit = partial(models.VisionTransformer, width=8, depth=1, heads=2, mlp_ratio=2, patch_size=4)
    model = as_model(vit, {"classes": 3, "channels": 1, "image_size": 8}, inputs)
    params, state = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), inputs[0].shape)
    norms = ja.transforms.input_norms(
        lambda p, x: model.apply(p, state, x, key=jax.random.key(0), train=False)[0], params, [x]
    )
    masks = ja.prune(params, 0.5, criterion="wanda", norms=norms)["blocks"][0]["attention"]
    for name, rows in (("query", (8,)), ("out", (2, 4))):
        norm = np.asarray(norms[f"blocks/0/attention/{name}/kernel"])
        w = np.abs(params["blocks"][0]["attention"][name]["kernel"]).reshape(norm.size, -1)
        score, mask = w * norm[:, None], np.asarray(masks[name]["kernel"])
        assert mask.shape[: len(rows)] == rows and mask.sum() == 32
        np.testing.assert_array_equal(mask.reshape(score.shape), score >= np.sort(score, axis=None)[32])


def test_sparsity_may_be_traced():
    params = network()
    masks = jax.jit(lambda p, s: ja.prune(p, s))(params, 0.75)
    jax.tree.map(np.testing.assert_array_equal, masks, ja.prune(params, 0.75))


def test_masked_weights_are_zero():
    params = network()
    pruned = ja.params.masked(params, ja.prune(params, 0.8))
    assert sparsity_of(pruned) == pytest.approx(0.8, abs=1e-3)
    np.testing.assert_array_equal(pruned["norm"]["scale"], params["norm"]["scale"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 1.2}, r"must lie in \[0, 1\), got 1.2"),
        ({"sparsity": -0.1}, "must lie in"),
        ({}, "sparsity is missing"),
        ({"sparsity": 0.6, "pattern": "2:4"}, "2:4 is a sparsity of 0.5, not 0.6"),
        ({"pattern": "5:9"}, "does not divide conv/kernel with 8 inputs"),
        ({"sparsity": 0.5, "pattern": "block:5x5"}, "does not divide conv/kernel"),
        ({"pattern": "4:2"}, "pattern must be"),
        ({"sparsity": 0.5, "where": "**/kernle"}, "matches none of the .* nearest: .*kernel"),
        ({"sparsity": 0.5, "scope": "all"}, "scope must be"),
        ({"sparsity": 0.5, "criterion": "size"}, "criterion must be magnitude"),
        ({"sparsity": 0.5, "criterion": "taylor"}, "needs grads="),
        ({"sparsity": {"head/kernel": 0.5}}, "no share for conv/kernel"),
        ({"sparsity": {"head/kernel": 1.5}}, r"of head/kernel must lie in \[0, 1\), got 1.5"),
        (
            {"sparsity": {"head/kernle": 0.5}},
            "has 0.5 for head/kernle, which is none .*; nearest: head/kernel",
        ),
        (
            {"sparsity": {"head/kernel": 0.6}, "pattern": "2:4"},
            "2:4 is a sparsity of head/kernel of 0.5, not 0.6",
        ),
        (
            {"sparsity": 0.5, "criterion": "wanda", "norms": {"conv/kernel": jnp.ones(7)}},
            "norms of conv/kernel are those of 7 inputs",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_line(options, says):
    with pytest.raises(UserError, match=says):
        ja.prune(network(), **options)
