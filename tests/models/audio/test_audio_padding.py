"""A sound has the same logits, and gives the same gradients, alone and among others, however long the batch is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_sounds import SMALL, draw_sounds, fast_jit, pad_sounds, small, split

LENGTHS = (1, 2, 21, 13)


def assert_close(found, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected
    )


def find_outputs(logits, lengths, by):
    """Which of the outputs count, as tasks see it: (B, T') for speech, (B,) for words, where `by` is None."""
    if by is None:
        return np.ones(len(lengths), bool)
    return np.arange(logits.shape[1]) < -(-np.asarray(lengths)[:, None] // by)


@pytest.mark.parametrize("name", SMALL)
def test_nothing_leaks_from_the_padding(name):
    params, apply = split(small(name))
    sounds, row = draw_sounds(LENGTHS), 3
    by = SMALL[name].keywords.get("subsampling")
    run = fast_jit(apply)

    @fast_jit
    def differentiate(params, features, mask, weights):
        def loss(params):
            logits = apply(params, features, mask)
            return jnp.where(weights, jnp.sin(logits).sum(-1), 0).sum(), logits

        (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, gradients

    one = pad_sounds([sounds[row]], LENGTHS[row])
    alone, gradients = differentiate(params, *one, True)
    assert np.ptp(alone) > 1e-3 and alone.dtype == jnp.float32
    assert alone.shape == ((1, -(-LENGTHS[row] // by), 5) if by else (1, 5))
    assert all(np.isfinite(x).all() and x.any() for x in jax.tree.leaves(gradients))
    padded = pad_sounds(sounds, 40)
    counts = find_outputs(jax.eval_shape(apply, params, *padded), LENGTHS, by)
    logits, weighed = differentiate(params, *padded, (counts.T & (np.arange(len(LENGTHS)) == row)).T)
    assert_close(weighed, gradients)
    for length in (21, 23):
        found = run(params, *pad_sounds(sounds, length, seed=length))
        here = find_outputs(found, LENGTHS, by)
        assert here.sum() == counts.sum()
        assert_close(found[here], logits[counts])  # those of all other sounds too
    assert_close(logits[row][: alone.shape[1]] if by else logits[row], alone[0])


def test_statistics_of_training_see_no_padding():
    """In training BC-ResNet's norms take the mean and variance of a batch's real frames alone."""
    sounds = draw_sounds((9, 5, 16))
    graph, params, rest = nnx.split(small("bc_resnet"), nnx.Param, ...)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def train(params, features, mask):
        model = nnx.merge(graph, params, rest, copy=True)
        model.train()
        logits = model(features, mask)
        return jnp.sin(logits).sum(), (logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    before = nnx.to_pure_dict(nnx.state(small("bc_resnet"), nnx.BatchStat))
    (_, (logits, after)), gradients = fast_jit(train)(params, *pad_sounds(sounds, 16))
    (_, (other, again)), weighed = fast_jit(train)(params, *pad_sounds(sounds, 29))
    assert_close(other, logits, 1e-4)
    assert_close(again, after)
    assert_close(nnx.to_pure_dict(weighed), nnx.to_pure_dict(gradients), 1e-4)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after)
    assert min(jax.tree.leaves(moved)) > 1e-4


def test_batch_statistics_are_those_of_numpy():
    model = small("bc_resnet")
    norm = model.blocks[0].bands_norm
    assert norm.groups == 5  # 10 bands are 5 behind the stem
    norm.norm.use_running_average = False
    x = np.random.default_rng(3).standard_normal((2, 7, 5, 4)).astype(np.float32)
    mask = np.arange(7) < np.array([[4], [7]])
    found = norm(jnp.where(mask[..., None, None], x, 1e4), jnp.asarray(mask))
    frames = np.concatenate([x[0, :4], x[1]]).astype(np.float64)
    scale, bias = (np.asarray(v[...]).reshape(5, 4) for v in (norm.norm.scale, norm.norm.bias))
    expected = (x - frames.mean(0)) / np.sqrt(frames.var(0) + 1e-5) * scale + bias
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0, :4], expected[0, :4], rtol=1e-4, atol=1e-5)
