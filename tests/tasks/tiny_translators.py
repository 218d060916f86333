"""Very small models that translate and write, for tests of tasks: what they give depends on the prefix by one token."""

import jax
import jax.numpy as jnp
from flax import nnx


class OneLook(nnx.Module):
    """Looks once at the source, from the last token and its place."""

    def __init__(self, *, vocabulary, max_length, width=48, rngs):
        self.width = width
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.places = nnx.Embed(2 * max_length, width, rngs=rngs)
        self.ask = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.hidden = nnx.Linear(2 * width, width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, rngs=rngs)

    def encode(self, source, mask):
        del mask
        found = self.embed(source) + self.places(jnp.arange(source.shape[1]))
        return {"key": self.key(found), "value": found}

    def start(self, memory, mask, length):
        del length
        return {**memory, "mask": mask, "place": jnp.zeros(len(mask), jnp.int32)}

    def step(self, token, cache):
        logits = self._look(token[:, None], cache["place"][:, None], cache, cache["mask"])[:, 0]
        return logits, {**cache, "place": cache["place"] + 1}

    def __call__(self, source, mask, previous):
        places = jnp.broadcast_to(jnp.arange(previous.shape[1]), previous.shape)
        return self._look(previous, places, self.encode(source, mask), mask)

    def _look(self, token, place, memory, mask):
        now = self.embed(token) + self.places(place)
        scores = jnp.einsum("btd,bsd->bts", self.ask(now), memory["key"]) / self.width**0.5
        seen = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9)) @ memory["value"]
        return self.head(jax.nn.relu(self.hidden(jnp.concatenate([now, seen], -1)))).astype(jnp.float32)


class Bigrams(nnx.Module):
    """Guesses a token from the one before it."""

    def __init__(self, *, vocabulary, width=32, rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, rngs=rngs)

    def __call__(self, previous):
        return self.head(self.embed(previous))

    def start(self, length, batch):
        del length
        return {"place": jnp.zeros(batch, jnp.int32)}

    def step(self, token, cache):
        return self.head(self.embed(token)), {"place": cache["place"] + 1}
