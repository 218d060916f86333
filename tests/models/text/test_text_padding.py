"""A text has the same logits, and gives the same gradients, alone and among others, however long the batch is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_texts import SMALL, draw_texts, fast_jit, pad_texts, small, split

LENGTHS = (1, 2, 16, 7)


def assert_close(found, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected
    )


@pytest.mark.parametrize("name", SMALL)
def test_nothing_leaks_from_the_padding(name):
    params, apply = split(small(name))
    texts, row = draw_texts(LENGTHS), 3
    run = fast_jit(apply)

    @fast_jit
    def differentiate(params, tokens, mask, weigh):
        def loss(params):
            logits = apply(params, tokens, mask)
            return (weigh * jnp.sin(logits).sum(-1)).sum(), logits

        (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, gradients

    (alone,), gradients = differentiate(params, *pad_texts([texts[row]], LENGTHS[row]), jnp.ones(1))
    assert np.ptp(alone) > 1e-3
    among = [run(params, *pad_texts(texts, length, seed=length)) for length in (16, 24)]
    logits, weighed = differentiate(params, *pad_texts(texts, 64), jax.nn.one_hot(row, len(texts)))
    for found in (*among, logits):
        assert np.isfinite(found).all()
        assert_close(found[row], alone)
        assert_close(found, logits)  # those of all other lengths too
    assert_close(weighed, gradients)
    assert any(x.any() for x in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", SMALL)
def test_mixing(name):
    params, apply = split(small(name))
    run = fast_jit(apply)
    own, others = draw_texts(LENGTHS), draw_texts((9, 5, 3, 16), seed=5)
    tokens, mask = pad_texts(own, 16)
    mixed_in = pad_texts(others, 16, seed=6)
    plain, other = run(params, tokens, mask), run(params, *mixed_in)
    assert_close(run(params, tokens, mask, (*mixed_in, jnp.zeros(4))), plain)
    assert_close(run(params, tokens, mask, (*mixed_in, jnp.ones(4))), other)
    half = run(params, tokens, mask, (*mixed_in, jnp.full(4, 0.5)))
    assert np.abs(half - plain).max() > 1e-3 and np.abs(half - other).max() > 1e-3
    assert_close(run(params, *mixed_in, (tokens, mask, jnp.full(4, 0.5))), half)
    longer = pad_texts(own, 24, seed=7), pad_texts(others, 24, seed=8)
    assert_close(fast_jit(apply)(params, *longer[0], (*longer[1], jnp.full(4, 0.5))), half)


def test_mixing_averages_embeddings():
    """Of two texts of words alone, of one length, the mean of the embeddings is that of both means."""
    model = small("fast_text")
    model.longest = 1
    (tokens, mask), (others, _) = (pad_texts(draw_texts((4, 4), seed=s), 4) for s in (1, 2))
    found = model(tokens, mask, (others, mask, jnp.asarray([0.25, 0.5])))
    table, kernel = (np.asarray(x, np.float64) for x in (model.embed.embedding[...], model.head.kernel[...]))
    for row, weight in enumerate((0.25, 0.5)):
        mean = (1 - weight) * table[tokens[row]].mean(0) + weight * table[others[row]].mean(0)
        np.testing.assert_allclose(found[row], mean @ kernel + model.head.bias[...], rtol=1e-5, atol=1e-5)
