"""A small model that writes token by token, and its slow decoders: NumPy, no cache, no batch, no loop on the device."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 6


class Written:
    """Logits that depend on all tokens so far and on the row's own start."""

    def __init__(self, vocabulary, rows, seed=0, scale=2.0):
        rng = np.random.default_rng(seed)
        draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
        self.embed, self.move = draw(vocabulary, WIDTH), draw(WIDTH, WIDTH) / 2
        self.head, self.first = scale * draw(WIDTH, vocabulary), draw(rows, WIDTH)
        self.vocabulary = vocabulary

    def cache(self, rows=slice(None)):
        first = jnp.asarray(self.first[rows])
        return {"state": first, "memory": first[:, None] * 0.5, "position": jnp.zeros(len(first), jnp.int32)}

    def step(self, token, cache):
        bring = jnp.asarray(self.embed)[token] + cache["memory"][:, 0]
        # No products of matrices: their sums could depend on the number of rows.
        moved = (cache["state"][:, :, None] * self.move).sum(1)
        state = jnp.tanh(bring + moved + 0.1 * cache["position"][:, None].astype(jnp.float32))
        logits = (state[:, :, None] * self.head).sum(1)
        return logits, cache | {"state": state, "position": cache["position"] + 1}

    def logits(self, row, tokens):
        """Of what follows `tokens`, the first of which is the begin."""
        state = self.first[row].astype(np.float64)
        for position, token in enumerate(tokens):
            state = np.tanh(self.embed[token] + 0.5 * self.first[row] + state @ self.move + 0.1 * position)
        return state @ self.head

    def chances(self, row, tokens):
        logits = self.logits(row, tokens)
        with np.errstate(divide="ignore", invalid="ignore"):
            return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def greedy(model, row, begin, end, limit):
    """(tokens, score)"""
    tokens, score = [], 0.0
    for _ in range(limit):
        chances = model.chances(row, [begin, *tokens])
        best = int(chances.argmax())
        score += chances[best]
        if best == end:
            break
        tokens.append(best)
    return tokens, score


def penalty(count, alpha):
    return ((5 + count) / 6) ** alpha


def every_sequence(model, row, begin, end, limit, alpha):
    """[(score, tokens)] of all there are, the best first."""
    found = []
    others = [token for token in range(model.vocabulary) if token != end]
    for count in range(limit + 1):
        for tokens in itertools.product(others, repeat=count):
            whole = [*tokens, end] if count < limit else list(tokens)
            chances = [model.chances(row, [begin, *whole[:i]])[token] for i, token in enumerate(whole)]
            found.append((sum(chances) / penalty(max(len(whole), 1), alpha), list(tokens)))
    return sorted(found, key=lambda x: -x[0])


def beams(model, row, begin, end, limit, beam, alpha):
    """[(score, tokens)] of a beam search that always goes on to the limit, the best first."""
    live, finished = [(0.0, [])], []
    for number in range(limit):
        longer = [
            (score + chance, tokens, token)
            for score, tokens in live
            for token, chance in enumerate(model.chances(row, [begin, *tokens]))
            if chance > -np.inf
        ]
        longer.sort(key=lambda x: -x[0])
        at = penalty(number + 1, alpha)
        finished += [(score / at, tokens) for score, tokens, token in longer[:beam] if token == end]
        live = [(score, [*tokens, token]) for score, tokens, token in longer[: 2 * beam] if token != end][
            :beam
        ]
        if number + 1 == limit:
            finished += [(score / at, tokens) for score, tokens in live]
        finished = sorted(finished, key=lambda x: -x[0])[:beam]
    return finished


def of(tokens, length):
    return [int(x) for x in tokens[: int(length)]]


fast_jit = lambda f: jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})  # noqa: E731
