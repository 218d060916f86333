"""A layer of a stack that a loop runs over is compressed like one that stands alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxaccel as ja
from jaxaccel.core.interpret import is_compressed
from jaxaccel.optim import Sparse, sparse
from jaxaccel.transforms.params import trainable, with_trained
from jaxaccel.transforms.params.low_rank import spectra

LAYERS = 3
SIZES = jnp.asarray([1.0, 0.01, 30.0])[:, None, None]  # one budget for all would empty the second layer
STACK = {"stacked": {"kernel": SIZES * jax.random.normal(jax.random.key(0), (LAYERS, 16, 8))}}
EACH = {str(i): {"kernel": STACK["stacked"]["kernel"][i]} for i in range(LAYERS)}
HEAD = {"head": {"kernel": jax.random.normal(jax.random.key(1), (8, 4))}}
X = jax.random.normal(jax.random.key(2), (4, 16))


def each_of(stack):
    return {str(i): {"kernel": stack["stacked"]["kernel"][i]} for i in range(LAYERS)}


def dense(params):
    return jax.tree.map(lambda x: x.materialize(), params, is_leaf=is_compressed)


def loop(p, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w) @ w.T, None), x, p["stacked"]["kernel"])[0]


def unrolled(p, x):
    for i in range(LAYERS):
        x = jnp.tanh(x @ p[str(i)]["kernel"]) @ p[str(i)]["kernel"].T
    return x


GRADS = jax.tree.map(lambda x: 1 / (1 + x**2), STACK | HEAD)
NORMS = {"head/kernel": jnp.arange(1.0, 9)}
NORMS |= dict.fromkeys(("stacked/kernel", *(f"{i}/kernel" for i in range(LAYERS))), jnp.arange(1.0, 17))


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.7},
        {"sparsity": 0.7, "scope": "erk"},
        {"sparsity": 0.7, "scope": "global"},
        {"sparsity": 0.5, "pattern": "block:4x2"},
        {"pattern": "2:4"},
        {"sparsity": 0.7, "criterion": "wanda", "norms": NORMS},
        {"sparsity": 0.7, "criterion": "taylor", "grads": GRADS},
    ],
)
def test_masks(options):
    found = ja.prune(STACK | HEAD, **options)
    if "grads" in options:
        options = {**options, "grads": each_of(GRADS) | {"head": GRADS["head"]}}
    want = ja.prune(EACH | HEAD, **options)
    jax.tree.map(np.testing.assert_array_equal, each_of(found) | {"head": found["head"]}, want)


def test_which_leaves_are_stacks_can_be_said():
    counts = lambda **more: np.asarray(ja.prune(STACK, 0.7, **more)["stacked"]["kernel"]).sum((1, 2))  # noqa: E731
    assert list(counts()) == [38] * LAYERS
    assert counts(stacked=())[1] == 0 and counts(stacked=()).sum() == 115
    named = {"layers": STACK["stacked"]["kernel"]}
    masks = ja.prune(named, 0.7, where="layers", stacked="layers")["layers"]
    np.testing.assert_array_equal(masks, ja.prune(STACK, 0.7)["stacked"]["kernel"])


@pytest.mark.parametrize("method", ["gradual", "rigl"])
def test_training_prunes_each_layer(method):
    how = Sparse(0.7, method, begin=0.0, end=1.0, every=1, scope="erk")
    tx = sparse(optax.sgd(0.1), how, 4)

    def after(params, grads):
        state = tx.init(params)
        state = state._replace(masks=jax.tree.map(lambda x: x > 0, params)) if method == "rigl" else state
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state.masks

    found, want = after(STACK, {"stacked": GRADS["stacked"]}), after(EACH, each_of(GRADS))
    for a, b in zip(found, want, strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), each_of(a), b)


def test_shared_values():
    params = jax.tree.map(lambda x: jnp.where(jnp.abs(x) < 0.003, 0.0, x), STACK)
    stack, each = ja.params.share(params, 3), ja.params.share(each_of(params), 3)
    assert stack["stacked"]["kernel"].codebook.shape == (LAYERS, 8)
    jax.tree.map(np.testing.assert_array_equal, each_of(dense(stack)), dense(each))
    np.testing.assert_array_equal(
        ja.transforms.compressed(loop)(stack, X), ja.transforms.compressed(unrolled)(each, X)
    )
    moved = with_trained(stack, jax.tree.map(lambda x: x + 1, trainable(stack)))["stacked"]["kernel"]
    zeros = params["stacked"]["kernel"] == 0
    assert zeros.sum((1, 2))[1] and not zeros.sum((1, 2))[2]
    np.testing.assert_allclose(
        moved.materialize()[~zeros], (stack["stacked"]["kernel"].materialize() + 1)[~zeros]
    )
    np.testing.assert_array_equal(moved.materialize() == 0, zeros)


def test_layers_with_fewer_values_than_others():
    w = STACK["stacked"]["kernel"].at[1].set(jnp.where(STACK["stacked"]["kernel"][1] > 0, 2.0, -1.0))
    found = ja.params.share({"stacked": {"kernel": w}}, 4)["stacked"]["kernel"]
    assert found.codebook.shape == (LAYERS, 16)
    np.testing.assert_array_equal(found.materialize()[1], w[1])


def test_factors():
    stack, each = ja.low_rank(STACK, rank=2), ja.low_rank(EACH, rank=2)
    array = stack["stacked"]["kernel"]
    assert array.left.shape == (LAYERS, 16, 2) and array.right.shape == (LAYERS, 2, 8)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), each_of(dense(stack)), dense(each))
    np.testing.assert_allclose(
        ja.transforms.compressed(loop)(stack, X), ja.transforms.compressed(unrolled)(each, X), atol=1e-4
    )
    explained = ja.explain(ja.transforms.compressed(loop), stack, X)
    assert "materialized" not in str(explained)  # no layer becomes dense
    work = ja.params.count_multiply_adds(loop, stack, X)["stacked/kernel"]
    assert work == LAYERS * 2 * 4 * 2 * (16 + 8)
    eight = ja.quantize(stack)["stacked"]["kernel"]
    assert eight.left.scale.shape == (LAYERS, 1, 2)
    found = ja.int8(loop)({"stacked": {"kernel": eight}}, X)
    want = ja.int8(unrolled)(ja.quantize(each), X)
    np.testing.assert_allclose(found, want, atol=1e-3 * np.abs(want).max())


def test_the_rank_is_that_of_the_worst_layer():
    thin = STACK["stacked"]["kernel"].at[0].set(jnp.outer(jnp.arange(16.0), jnp.arange(8.0)))
    params = {"stacked": {"kernel": thin}}
    found = ja.low_rank(params, energy=0.8)["stacked"]["kernel"]
    ranks = [ja.low_rank({"kernel": w}, energy=0.8)["kernel"].rank for w in thin]
    assert ranks[0] == 1 and found.rank == max(ranks)
    lost = np.sum((np.asarray(found.materialize()) - thin) ** 2, (1, 2)) / np.sum(np.square(thin), (1, 2))
    assert (lost < 0.2).all()
    (spectrum,) = spectra(params)
    assert spectrum.shape == (LAYERS, 16, 8) and spectrum.rank_of(0.8) == found.rank


@pytest.mark.parametrize("flops", [0.3, 0.45, 0.6, 0.75])
def test_a_stack_weighs_as_much_as_its_layers(flops):
    w, head = (
        STACK["stacked"]["kernel"][0],
        {"head": {"kernel": jax.random.normal(jax.random.key(5), (32, 24))}},
    )
    stack = ja.low_rank({"stacked": {"kernel": jnp.stack([w] * LAYERS)}} | head, flops=flops)
    each = ja.low_rank({str(i): {"kernel": w} for i in range(LAYERS)} | head, flops=flops)
    ranks = {name: getattr(layer["kernel"], "rank", None) for name, layer in (stack | each).items()}
    assert ranks["stacked"] == ranks["0"] and stack["head"]["kernel"].shape == (32, 24)
    assert ranks["head"] == getattr(stack["head"]["kernel"], "rank", None)


@pytest.mark.parametrize("form", ["channel", "spatial"])
def test_kernels(form):
    kernels = jax.random.normal(jax.random.key(3), (LAYERS, 3, 3, 4, 4))
    found = ja.low_rank({"stacked": {"kernel": kernels}}, rank=2, form=form)["stacked"]["kernel"]
    assert found.shape == kernels.shape

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def scanned(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(convolve(x, w)), None), x, p["stacked"]["kernel"])[0]

    x = jax.random.normal(jax.random.key(4), (2, 6, 6, 4))
    params = {"stacked": {"kernel": found}}
    np.testing.assert_allclose(
        ja.transforms.compressed(scanned)(params, x), scanned(dense(params), x), atol=1e-4
    )
    assert "materialized" not in str(ja.explain(ja.transforms.compressed(scanned), params, x))
    for w, layer in zip(kernels, found.materialize(), strict=True):
        alone = ja.low_rank({"kernel": w}, rank=2, form=form)["kernel"]
        np.testing.assert_allclose(layer, alone.materialize(), atol=1e-4)


def test_files_keep_them(tmp_path):
    params = {
        "a": ja.params.share(STACK, 3),
        "b": ja.low_rank(STACK, rank=2),
        "c": ja.params.share(ja.low_rank(STACK, rank=2), 2),
    }
    ja.params.save(params, tmp_path / "a.packed")
    found = ja.params.load(tmp_path / "a.packed")
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_layers_that_leave_their_loop_are_right():
    """What moves the axis of layers makes them dense."""
    for params in (ja.params.share(STACK, 3), ja.low_rank(STACK, rank=2)):
        f = lambda p: (p["stacked"]["kernel"].transpose(1, 0, 2)[:, 1], p["stacked"]["kernel"][2].reshape(-1))  # noqa: E731
        for a, b in zip(ja.transforms.compressed(f)(params), f(dense(params)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
