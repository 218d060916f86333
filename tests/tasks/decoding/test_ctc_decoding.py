"""Decoding by CTC against the enumeration of all paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaccel.errors import UserError
from jaxaccel.tasks.decoding import (
    NgramScores,
    align_ctc,
    collapse_best_path,
    count_ngrams,
    estimate_ngrams,
    follow_best_path,
    search_prefixes,
)

CLASSES, STEPS = 3, 5


def collapse(path):
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def enumerate_paths(log_probabilities):
    """{symbols: {path: its log probability}} of (T, classes)."""
    found = {}
    for path in itertools.product(range(log_probabilities.shape[1]), repeat=len(log_probabilities)):
        score = sum(log_probabilities[t, c] for t, c in enumerate(path))
        found.setdefault(collapse(path), {})[path] = score
    return found


def random_logits(seed, batch=4, scale=2.0):
    return scale * np.random.default_rng(seed).normal(size=(batch, STEPS, CLASSES)).astype(np.float32)


def of(row):
    return tuple(int(x) for x in np.asarray(row) if x >= 0)


def log_softmax(logits):
    return np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float32)), np.float64)


COUNTS = np.array([5, 3, 1, 4])
GREEDY, ALIGN = jax.jit(collapse_best_path), jax.jit(align_ctc)
SEARCH = jax.jit(search_prefixes, static_argnums=2)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_path_is_collapsed(seed):
    logits = random_logits(seed)
    found = GREEDY(logits, COUNTS)
    for row, count in enumerate(COUNTS):
        path = logits[row, :count].argmax(-1)
        assert of(found.symbols[row]) == collapse(path.tolist())
        score = log_softmax(logits[row, :count]).max(-1).sum()
        np.testing.assert_allclose(found.scores[row], score, rtol=1e-5)
    assert found.symbols.shape == (4, STEPS) and found.symbols.dtype == jnp.int32


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_path_is_the_best_alignment_of_its_symbols(seed):
    logits = np.random.default_rng(seed).normal(size=(4, 40, CLASSES)).astype(np.float32)
    counts = np.array([40, 17, 1, 0])
    path = jax.jit(follow_best_path)(logits, counts)
    symbols = np.asarray(path.symbols)
    assert (symbols[0] >= 0).sum() > 10 and (symbols[3] == -1).all()
    spans = ALIGN(logits[:3], counts[:3], symbols[:3], (symbols[:3] >= 0).sum(1))
    np.testing.assert_array_equal(path.starts[:3], spans.starts)
    np.testing.assert_array_equal(path.ends[:3], spans.ends)
    np.testing.assert_allclose(path.scores[:3], spans.scores, rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wide_beam_has_the_exact_probabilities(seed):
    logits = random_logits(seed, scale=1.0)
    found = SEARCH(logits, COUNTS, 64)
    for row, count in enumerate(COUNTS):
        exact = {
            symbols: float(np.logaddexp.reduce(list(paths.values())))
            for symbols, paths in enumerate_paths(log_softmax(logits[row, :count])).items()
        }
        ranked = sorted(exact, key=lambda symbols: -exact[symbols])
        there = min(len(ranked), 64)
        assert [of(x) for x in found.symbols[row, :there]] == ranked[:there]
        np.testing.assert_allclose(found.scores[row, :there], [exact[x] for x in ranked[:there]], rtol=1e-4)
        assert (found.scores[row, there:] < -1e29).all()


def test_a_narrow_beam_finds_what_the_best_path_misses():
    # Two alignments of "1" together beat the best path, which is blank.
    logits = np.log(np.array([[[0.55, 0.45], [0.55, 0.45]]], np.float32))
    assert of(GREEDY(logits, np.array([2])).symbols[0]) == ()
    found = SEARCH(logits, np.array([2]), 2)
    assert of(found.symbols[0, 0]) == (1,)
    np.testing.assert_allclose(np.exp(found.scores[0]), [1 - 0.55**2, 0.55**2], rtol=1e-5)


def test_no_prefix_is_kept_twice():
    found = SEARCH(random_logits(7, batch=8, scale=0.1), np.full(8, STEPS), 6)
    for row in found.symbols:
        assert len({of(x) for x in row}) == 6


@pytest.mark.parametrize("decode", [GREEDY, lambda x, n: SEARCH(x, n, 3)])
def test_a_batch_decodes_as_each_alone_and_padding_says_nothing(decode):
    logits = random_logits(3)
    wide = np.pad(logits, ((0, 0), (0, 3), (0, 0)), constant_values=9.0)
    together, padded = decode(logits, COUNTS), decode(wide, COUNTS)
    row, count = 1, COUNTS[1]
    alone = decode(logits[row : row + 1, :count], COUNTS[row : row + 1])
    for other in (together, padded):
        found, want = (np.atleast_2d(x) for x in (other.symbols[row], alone.symbols[0]))
        assert list(map(of, found)) == list(map(of, want))
        np.testing.assert_allclose(alone.scores[0], other.scores[row], rtol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_alignment_is_the_best_of_all(seed):
    logits = random_logits(seed)
    for row, count in enumerate(COUNTS[:3]):
        for symbols, paths in enumerate_paths(log_softmax(logits[row, :count])).items():
            given = np.zeros((1, 4), np.int32)
            if len(symbols) > 4:
                continue
            given[0, : len(symbols)] = symbols
            found = ALIGN(logits[row : row + 1], COUNTS[row : row + 1], given, np.array([len(symbols)]))
            best = max(paths, key=lambda path: paths[path])
            np.testing.assert_allclose(found.scores[0], paths[best], rtol=1e-4, atol=1e-5)
            runs, at = [], 0
            for symbol, members in itertools.groupby(best):
                size = len(list(members))
                runs += [(at, at + size)] if symbol else []
                at += size
            starts, ends = found.starts[0], found.ends[0]
            assert (
                list(zip(starts[: len(symbols)].tolist(), ends[: len(symbols)].tolist(), strict=True)) == runs
            )
            assert (starts[len(symbols) :] == -1).all()


def test_what_cannot_be_aligned_has_no_score():
    logits = random_logits(0, batch=1)
    found = ALIGN(logits, np.array([3]), np.array([[1, 1, 1]]), np.array([3]))
    assert found.scores[0] < -1e29


TEXTS = [(1, 2, 1), (1, 2), (2, 2, 1), ()]


def follow_ngrams(texts, order, text, classes):
    """Log probability of each symbol of a text and of its end, by the definition and dictionaries."""

    def estimate(symbol, context):
        if context is None:
            return 1 / classes
        behind = [
            whole[i + len(context)]
            for whole in ((0,) * (order - 1) + other + (0,) for other in texts)
            for i in range(order - 1 - len(context), len(whole) - len(context))
            if whole[i : i + len(context)] == context
        ]
        shorter = estimate(symbol, context[1:] if context else None)
        if not behind:
            return shorter
        kinds = len(set(behind))
        return (behind.count(symbol) + kinds * shorter) / (len(behind) + kinds)

    whole = (0,) * (order - 1) + tuple(text) + (0,)
    return [np.log(estimate(whole[i], whole[i - order + 1 : i])) for i in range(order - 1, len(whole))]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ngrams_are_smoothed_as_witten_and_bell_define(order):
    table = estimate_ngrams(count_ngrams(TEXTS, order), CLASSES)
    assert table.shape == (CLASSES ** (order - 1), CLASSES) and table.dtype == np.float32
    np.testing.assert_allclose(np.exp(table).sum(-1), 1, rtol=1e-5)
    for text in [(), (1,), (2, 1, 2), (2, 2, 2, 2), (1, 2, 1)]:
        context, found = 0, []
        for symbol in (*text, 0):
            found.append(table[context, symbol])
            context = (context * CLASSES + symbol) % len(table)
        np.testing.assert_allclose(found, follow_ngrams(TEXTS, order, text, CLASSES), rtol=1e-5)


def test_a_table_that_would_not_fit_is_refused():
    with pytest.raises(UserError, match=r"4 of 80 symbols has 40,960,000 .*lower .*ngram"):
        estimate_ngrams(count_ngrams([(1, 2)], 4), 80)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("order", [1, 3])
def test_a_wide_beam_adds_the_exact_scores_of_ngrams(seed, order):
    logits = random_logits(seed, scale=1.0)
    ngrams = NgramScores(estimate_ngrams(count_ngrams(TEXTS, order), CLASSES), 0.7, 0.3)
    found = SEARCH(logits, COUNTS, 64, ngrams=ngrams)
    for row, count in enumerate(COUNTS):
        exact = {
            symbols: float(
                np.logaddexp.reduce(list(paths.values()))
                + 0.7 * sum(follow_ngrams(TEXTS, order, symbols, CLASSES))
                + 0.3 * len(symbols)
            )
            for symbols, paths in enumerate_paths(log_softmax(logits[row, :count])).items()
        }
        ranked = sorted(exact, key=lambda symbols: -exact[symbols])[:64]
        assert [of(x) for x in found.symbols[row, : len(ranked)]] == ranked
        np.testing.assert_allclose(found.scores[row, : len(ranked)], [exact[x] for x in ranked], rtol=1e-4)
