"""Greedy decoding, sampling and beam search against slow decoders that have no cache and no batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from written import WIDTH, Written, beams, every_sequence, fast_jit, greedy, of

from jaxaccel.errors import UserError
from jaxaccel.tasks.decoding import decode_greedily, sample_tokens, search_beams
from jaxaccel.tasks.decoding.log_probabilities import NEVER

BEGIN, END, PAD = 1, 2, 0


def begins(rows):
    return jnp.full(rows, BEGIN, jnp.int32)


def run_greedy(model, rows, length, limit=None):
    count = len(model.first[rows])
    return fast_jit(
        lambda: decode_greedily(model.step, model.cache(rows), begins(count), END, length, PAD, limit)
    )()


def run_beams(model, rows, length, beam, alpha=0.0, limit=None):
    count = len(model.first[rows])
    call = partial(search_beams, beam=beam, alpha=alpha)
    return fast_jit(
        lambda: call(model.step, model.cache(rows), begins(count), END, length, PAD, limit=limit)
    )()


ALL = slice(None)


@pytest.mark.parametrize("seed", range(2))
def test_greedy(seed):
    model, length = Written(9, rows=12, seed=seed), 10
    limit = jnp.asarray([10, 1, 3, *[10] * 6, 0, 20, 7])
    found = run_greedy(model, ALL, length, limit)
    assert (found.tokens.shape, found.tokens.dtype) == ((12, length), jnp.int32)
    for row in range(12):
        tokens, score = greedy(model, row, BEGIN, END, min(int(limit[row]), length))
        assert of(found.tokens[row], found.lengths[row]) == tokens
        assert (found.tokens[row, len(tokens) :] == PAD).all()
        np.testing.assert_allclose(found.scores[row], score, rtol=1e-4, atol=1e-5)
    assert len({int(n) for n in found.lengths}) > 3


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("limit", [1, 2, 4])
def test_a_wide_beam_finds_every_sequence(limit, alpha):
    model = Written(4, rows=3, seed=limit, scale=1.0)
    found = run_beams(model, ALL, limit, 120, alpha)
    for row in range(3):
        want = every_sequence(model, row, BEGIN, END, limit, alpha)
        count = len(want)
        assert count == sum(3**n for n in range(limit + 1)) and count < 120 + (limit == 4) * 5
        kept = min(count, 120)
        np.testing.assert_allclose(found.scores[row, :kept], [x[0] for x in want[:kept]], rtol=1e-4)
        got = [of(*x) for x in zip(found.tokens[row, :kept], found.lengths[row, :kept], strict=True)]
        assert got == [tokens for _, tokens in want[:kept]]
        assert (found.scores[row, kept:] == NEVER).all() and (found.lengths[row, kept:] == 0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("beam", [1, 2, 5])
def test_beams(beam, alpha):
    model = Written(7, rows=6, seed=beam, scale=1.5)
    limit = jnp.asarray([9, 9, 1, 4, 9, 9])
    found = run_beams(model, ALL, 9, beam, alpha, limit)
    for row in range(6):
        want = beams(model, row, BEGIN, END, int(limit[row]), beam, alpha)
        np.testing.assert_allclose(found.scores[row, : len(want)], [x[0] for x in want], rtol=1e-4)
        got = [of(*x) for x in zip(found.tokens[row], found.lengths[row], strict=True)]
        assert got[: len(want)] == [tokens for _, tokens in want]
        assert (found.scores[row, len(want) :] == NEVER).all()
        for tokens, length in zip(found.tokens[row], found.lengths[row], strict=True):
            assert (tokens[int(length) :] == PAD).all()


def test_a_beam_of_one_is_greedy():
    model = Written(9, rows=16, seed=5)
    one, other = run_beams(model, ALL, 12, 1), run_greedy(model, ALL, 12)
    np.testing.assert_array_equal(one.tokens[:, 0], other.tokens)
    np.testing.assert_allclose(one.scores[:, 0], other.scores, rtol=1e-5)


def test_a_wider_beam_finds_better_ones_and_alpha_longer_ones():
    model = Written(9, rows=24, seed=3, scale=1.0)
    narrow, wide = (run_beams(model, ALL, 8, beam) for beam in (1, 64))
    assert (wide.scores[:, 0] >= narrow.scores[:, 0] - 1e-5).all()
    assert (wide.scores[:, 0] > narrow.scores[:, 0] + 1e-3).any()
    assert run_beams(model, ALL, 8, 8, 2.0).lengths.mean() > run_beams(model, ALL, 8, 8).lengths.mean() + 0.5


@pytest.mark.parametrize("decode", [run_greedy, partial(run_beams, beam=3, alpha=0.6)])
def test_a_batch_decodes_as_each_alone(decode):
    model = Written(9, rows=5, seed=8)
    limit = jnp.asarray([12, 3, 8, 12, 1])
    together = decode(model, ALL, 12, limit=limit)
    for row in (1, 2):
        alone = decode(model, slice(row, row + 1), int(limit[row]), limit=limit[row : row + 1])
        np.testing.assert_array_equal(together.lengths[row], alone.lengths[0])
        np.testing.assert_array_equal(together.tokens[row, ..., : int(limit[row])], alone.tokens[0])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], rtol=1e-6)


def table_step(table):
    """The logits of a table, which the last token alone decides."""
    return lambda token, cache: (jnp.asarray(table, jnp.float32)[token], cache)


def count_calls(decode, step):
    """How often the loop calls `step`."""
    calls = []

    def counted(token, cache):
        jax.debug.callback(lambda: calls.append(1))
        return step(token, cache)

    jax.block_until_ready(jax.jit(lambda: decode(counted))())
    jax.effects_barrier()
    return len(calls)


def test_the_loop_ends_when_all_rows_are_done():
    at_once = np.full((4, 4), -9.0)
    at_once[:, END] = 9
    never = np.full((4, 4), 0.0)
    never[:, END] = -np.inf
    cache = {"position": jnp.zeros(2, jnp.int32)}
    limit = jnp.asarray([5, 3])
    for decode in (
        lambda step: decode_greedily(step, cache, begins(2), END, 50, PAD, limit),
        lambda step: search_beams(step, cache, begins(2), END, 50, PAD, 1, limit=limit),
    ):
        assert count_calls(decode, table_step(at_once)) == 1
        assert count_calls(decode, table_step(never)) == 5
        found = fast_jit(lambda decode=decode: decode(table_step(at_once)))()
        assert (found.lengths == 0).all() and (found.tokens == PAD).all()


def test_a_search_goes_on_while_something_better_can_come():
    """The second token makes all the difference: what ends at once has a good score, what goes on a better one."""
    table = np.full((5, 5), -20.0)
    table[BEGIN, [END, 3]] = np.log([0.5, 0.45])
    table[3, 4], table[4, END] = 0.0, 0.0
    cache = {"position": jnp.zeros(1, jnp.int32)}

    def search(alpha, length=50):
        call = partial(search_beams, beam=1, alpha=alpha)
        return fast_jit(lambda: call(table_step(table), cache, begins(1), END, length, PAD))()

    assert search(0.0).lengths[0, 0] == 0
    assert of(search(1.0).tokens[0, 0], 2) == [3, 4] and search(1.0).lengths[0, 0] == 2
    np.testing.assert_allclose(search(1.0).scores[0, 0], np.log(0.45 / 0.95) / (8 / 6), rtol=1e-3)
    calls = lambda alpha, length: count_calls(  # noqa: E731
        lambda step: search_beams(step, cache, begins(1), END, length, PAD, 1, alpha), table_step(table)
    )
    assert calls(0.0, 50) == 1, "log probabilities only fall"
    assert calls(1.0, 50) < 6, "what goes on is too improbable soon"


def test_of_equals_the_first_is_taken():
    flat = np.zeros((4, 4))
    cache = {"position": jnp.zeros(1, jnp.int32)}
    found = fast_jit(lambda: decode_greedily(table_step(flat), cache, begins(1), END, 3, PAD))()
    assert of(found.tokens[0], found.lengths[0]) == [0, 0, 0]
    found = fast_jit(lambda: search_beams(table_step(flat), cache, begins(1), END, 2, PAD, 4))()
    got = [of(*x) for x in zip(found.tokens[0], found.lengths[0], strict=True)]
    assert got == [[], [0], [0, 0], [0, 1]], "the shorter ones are more probable, then the first tokens"
    np.testing.assert_allclose(np.exp(found.scores[0]), [1 / 4, 1 / 16, 1 / 16, 1 / 16], rtol=1e-5)


def test_what_is_impossible_is_never_taken():
    """-inf logits, of all tokens but one: there is one sequence, and no beam finds another."""
    table = np.full((5, 5), -np.inf)
    table[BEGIN, 3], table[3, 4], table[4, END] = 1.0, -3.0, 7.0
    cache = {"position": jnp.zeros(1, jnp.int32)}
    found = fast_jit(lambda: search_beams(table_step(table), cache, begins(1), END, 9, PAD, 3, 0.6))()
    assert of(found.tokens[0, 0], found.lengths[0, 0]) == [3, 4]
    np.testing.assert_array_equal(found.scores[0], np.float32([0, NEVER, NEVER]))
    np.testing.assert_array_equal(found.lengths[0], [2, 0, 0])
    for options in ({}, {"top_k": 3}, {"top_p": 0.9}):
        call = partial(sample_tokens, keys=jax.random.split(jax.random.key(0), 1), **options)
        drawn = fast_jit(lambda call=call: call(table_step(table), cache, begins(1), END, 9, PAD))()
        assert of(drawn.tokens[0], drawn.lengths[0]) == [3, 4] and drawn.scores[0] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_logits_end_their_row_alone(bad):
    model = Written(9, rows=3, seed=2)
    keys = jax.random.split(jax.random.key(0), 3)
    plain = lambda rows: jnp.where(jnp.arange(3) == 1, bad, 0.0)[rows]  # noqa: E731

    def step(token, cache):
        logits, after = model.step(token, cache)
        spoiled = jnp.where(jnp.isfinite(cache["spoil"]), logits, cache["spoil"])
        if bad == -np.inf:
            return jnp.where(cache["position"][:, None] >= 2, spoiled, logits), after
        return logits.at[:, 3].set(jnp.where(cache["position"] >= 2, spoiled[:, 3], logits[:, 3])), after

    cache = model.cache() | {"spoil": plain(jnp.arange(3))[:, None]}
    for call in (
        decode_greedily,
        partial(sample_tokens, keys=keys),
        partial(search_beams, beam=2),
    ):
        found = fast_jit(lambda call=call: call(step, cache, begins(3), END, 12, PAD))()
        want = fast_jit(lambda call=call: call(model.step, model.cache(), begins(3), END, 12, PAD))()
        assert np.isnan(found.scores[1]).all() and (found.lengths[1] <= 2).all()
        for row in (0, 2):
            np.testing.assert_array_equal(found.tokens[row], want.tokens[row])
            np.testing.assert_allclose(found.scores[row], want.scores[row], rtol=1e-6)


def sample(model, keys, length=1, rows=ALL, **options):
    call = partial(sample_tokens, keys=keys, **options)
    return fast_jit(lambda: call(model.step, model.cache(rows), begins(len(keys)), END, length, PAD))()


def first_logits():
    return np.log(np.array([0.05, 0.05, 0.1, 0.2, 0.25, 0.35]))


@pytest.mark.parametrize(
    ("options", "chances"),
    [
        ({}, [0.05, 0.05, 0.1, 0.2, 0.25, 0.35]),
        ({"temperature": 0.5}, np.square([0.05, 0.05, 0.1, 0.2, 0.25, 0.35])),
        ({"top_k": 2}, [0, 0, 0, 0, 0.25, 0.35]),
        ({"top_p": 0.7}, [0, 0, 0, 0.2, 0.25, 0.35]),
        ({"top_p": 0.01}, [0, 0, 0, 0, 0, 1]),
        ({"top_k": 3, "top_p": 0.5, "temperature": 2.0}, [0, 0, 0, 0, 0.5, 0.35**0.5]),
        ({"top_k": 99, "top_p": 1.0}, [0.05, 0.05, 0.1, 0.2, 0.25, 0.35]),
        ({"temperature": 0.0}, [0, 0, 0, 0, 0, 1]),
    ],
)
def test_what_is_drawn_has_its_probability(options, chances):
    count = 8000
    table = np.tile(first_logits(), (6, 1))
    call = partial(sample_tokens, keys=jax.random.split(jax.random.key(7), count), **options)
    found = jax.jit(lambda: call(table_step(table), {"p": jnp.zeros(count)}, begins(count), END, 1, PAD))()
    drawn = np.where(np.asarray(found.lengths) == 0, END, np.asarray(found.tokens[:, 0]))
    share = np.bincount(drawn, minlength=6) / count
    want = np.asarray(chances) / np.sum(chances)
    np.testing.assert_allclose(share, want, atol=0.02)
    assert (share[want == 0] == 0).all()
    np.testing.assert_allclose(found.scores, first_logits()[drawn], rtol=1e-4)


def test_a_row_is_drawn_by_its_own_key():
    model, keys = Written(9, rows=6, seed=1), jax.random.split(jax.random.key(3), 6)
    for options in ({}, {"top_k": 4, "top_p": 0.9}):
        together = sample(model, keys, 8, **options)
        for row in (4,):
            alone = sample(model, keys[row : row + 1], 8, rows=slice(row, row + 1), **options)
            np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        assert (sample(model, keys[::-1], 8, **options).tokens != together.tokens).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_bad_options_of_sampling(options, message):
    with pytest.raises(UserError, match=message) as caught:
        sample(Written(5, rows=1), jax.random.split(jax.random.key(0), 1), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"), [({"beam": 0}, "beam"), ({"beam": 2, "alpha": -0.1}, "alpha")]
)
def test_bad_options_of_beam_search(options, message):
    with pytest.raises(UserError, match=message):
        run_beams(Written(5, rows=1), ALL, 3, **options)


def test_decoding_is_one_program_and_leaves_what_never_changes_alone():
    model = Written(9, rows=2)

    def f(cache):
        return search_beams(model.step, cache, begins(2), END, 5, PAD, 3)

    text = jax.jit(f).lower(model.cache()).as_text()
    assert text.count("stablehlo.while") == 1
    jaxpr = jax.make_jaxpr(f)(model.cache())
    (loop,) = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "while"]
    body = loop.params["body_jaxpr"].jaxpr
    gathered = [eqn.outvars[0].aval.shape for eqn in body.eqns if eqn.primitive.name == "gather"]
    assert (6, WIDTH) in gathered and (6,) in gathered
    assert (6, 1, WIDTH) not in gathered, "the memory of each row is that of its hypotheses"
