"""The CTC loss against the enumeration of all paths, and where there is none."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxaccel.tasks import ctc

compute_ctc = jax.jit(ctc.compute_ctc)


def reference(logits, labels):
    """-log of the sum over all paths, in float64."""
    probabilities = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    total = -np.inf
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        if [c for c, _ in itertools.groupby(path) if c] == list(labels):
            total = np.logaddexp(total, sum(probabilities[t, c] for t, c in enumerate(path)))
    return -total


LOGITS = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
LABELS = np.array([[1, 2, 0], [1, 1, 0], [2, 0, 0], [0, 0, 0], [1, 2, 1], [2, 2, 0]], np.int32)
COUNTS = np.array([2, 2, 1, 0, 3, 2], np.int32)
OUTPUTS = np.array([4, 3, 2, 4, 3, 4], np.int32)


def test_the_sum_over_all_alignments():
    found = compute_ctc(LOGITS, OUTPUTS, LABELS, COUNTS)
    assert found.feasible.all()
    want = [
        reference(x[:n].astype(np.float64), y[:c])
        for x, n, y, c in zip(LOGITS, OUTPUTS, LABELS, COUNTS, strict=True)
    ]
    np.testing.assert_allclose(found.values, want, rtol=2e-5)
    check_grads(
        lambda x: compute_ctc(x, OUTPUTS, LABELS, COUNTS).values.sum(),
        (LOGITS,),
        1,
        ["rev"],
        rtol=2e-2,
        atol=2e-2,
    )


@pytest.mark.parametrize(
    ("labels", "count", "outputs"),
    [
        ([1, 2, 1], 3, 2),  # more labels than outputs
        ([1, 1, 1], 3, 4),  # no room for the blanks between equal ones
        ([1, 2, 1], 4, 4),  # more than the array holds
        ([1, 2, 1], -1, 4),  # unknown
        ([1, 0, 0], 1, 0),  # no output at all
    ],
)
def test_what_cannot_be_aligned_has_no_loss_and_no_gradient(labels, count, outputs):
    def total(logits):
        return compute_ctc(
            logits, np.array([4, outputs]), np.array([[1, 2, 0], labels]), np.array([2, count])
        ).values.sum()

    found = compute_ctc(
        LOGITS[:2], np.array([4, outputs]), np.array([[1, 2, 0], labels]), np.array([2, count])
    )
    assert found.feasible.tolist() == [True, False] and found.values[1] == 0
    gradient = jax.grad(total)(LOGITS[:2])
    alone = jax.grad(lambda x: compute_ctc(x, OUTPUTS[:1], LABELS[:1], COUNTS[:1]).values.sum())(LOGITS[:1])
    assert (gradient[1] == 0).all()
    np.testing.assert_allclose(gradient[0], alone[0], atol=1e-6)


def test_classes_that_are_ruled_out_cost_much_and_give_numbers():
    logits = LOGITS.copy()
    logits[0, :, 2], logits[1, 1] = -np.inf, [np.inf, 0, 0]

    def total(logits):
        return compute_ctc(logits, OUTPUTS, LABELS, COUNTS).values.sum()

    assert np.isfinite(total(logits)) and np.isfinite(jax.grad(total)(logits)).all()
    assert compute_ctc(logits, OUTPUTS, LABELS, COUNTS).values[0] > 5_000


def test_a_model_that_diverged_is_seen():
    logits = LOGITS.copy()
    logits[2, 0, 0] = np.nan
    found = compute_ctc(logits, OUTPUTS, LABELS, COUNTS).values
    assert np.isnan(found[2]) and np.isfinite(np.delete(np.asarray(found), 2)).all()


def test_a_sure_model_has_no_negative_loss():
    logits = jnp.full((1, 6, 3), -40.0).at[0, :3, 1].set(40.0).at[0, 3:, 2].set(40.0)
    found = compute_ctc(logits.astype(jnp.bfloat16), np.array([6]), np.array([[1, 2]]), np.array([2]))
    assert 0 <= found.values[0] < 1e-5


@pytest.mark.parametrize("length", [4, 7])
@pytest.mark.parametrize("room", [3, 6])
def test_padding_changes_nothing(length, room):
    logits = np.pad(LOGITS, ((0, 0), (0, length - 4), (0, 0)), constant_values=7.0)
    labels = np.pad(LABELS, ((0, 0), (0, room - 3)), constant_values=2)
    found = compute_ctc(logits, OUTPUTS, labels, COUNTS).values
    np.testing.assert_allclose(found, compute_ctc(LOGITS, OUTPUTS, LABELS, COUNTS).values, rtol=1e-5)
    gradient = jax.grad(lambda x: compute_ctc(x, OUTPUTS, labels, COUNTS).values.sum())(logits)
    for row, count in enumerate(OUTPUTS):
        assert (np.asarray(gradient[row, count:]) == 0).all()
