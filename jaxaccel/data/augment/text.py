"""Augmentations of texts, on tokens: ``batch["token"]`` (B, L) int32 and ``batch["length"]`` (B,) int32.

What happens to a text depends on the key and its index, as for images, and not on how far it is filled up. The first
and the last token of a text stay, which in most tokenizers mark its ends, unless ``ends=True``.
"""

import jax
import jax.numpy as jnp

from jaxaccel.core.options import CountOrZero, ShareBelowOne, checked
from jaxaccel.data.augment.batch import Batch, check_number
from jaxaccel.data.augment.keys import example_keys
from jaxaccel.data.augment.mix import draw_mix_weight, neighbor
from jaxaccel.errors import UserError

MASK = 4
"""The number of ``[MASK]`` in tokenizers that jaxaccel learns."""


@checked
def word_dropout(key: jax.Array, batch: Batch, *, rate: ShareBelowOne = 0.1, ends: bool = False) -> Batch:
    """Leaves tokens out, each with probability `rate` (Iyyer et al. 2015, https://aclanthology.org/P15-1162).

    Those that are left move up. A text keeps one token at least.

    Raises:
      UserError: `rate` is not in [0, 1), or the batch holds no texts.
    """
    token, length = _texts(batch, "word_dropout")
    places, inner = _places(token, length, ends)
    draws = _draw(key, batch, token.shape[1])
    kept = ~((draws < rate) & inner)
    # Where all would go, the one with the greatest draw stays.
    last = jnp.argmax(jnp.where(places < length[:, None], draws, -1), axis=1)
    kept |= places == last[:, None]
    kept &= places < length[:, None]
    # What is kept comes first, in its order; the rest is the filler that was there, or tokens that no mask shows.
    order = jnp.argsort(jnp.where(kept, places, places + token.shape[1]), axis=1)
    moved = jnp.take_along_axis(token, order, axis=1)
    return {**batch, "token": moved, "length": kept.sum(1).astype(length.dtype)}


@checked
def mask_tokens(
    key: jax.Array, batch: Batch, *, rate: ShareBelowOne = 0.1, token: CountOrZero = MASK, ends: bool = False
) -> Batch:
    """Puts `token` in the place of tokens, each with probability `rate`.

    Args:
      key: random key.
      batch: of texts.
      rate: probability.
      token: number of what hides a token: 4 is ``[MASK]`` in tokenizers that jaxaccel learns, 103 in BERT's.
      ends: also the first and the last token.

    Raises:
      UserError: `rate` is not in [0, 1), or the batch holds no texts.
    """
    found, length = _texts(batch, "mask_tokens")
    _, inner = _places(found, length, ends)
    hidden = (_draw(key, batch, found.shape[1]) < rate) & inner
    return {**batch, "token": jnp.where(hidden, jnp.asarray(token, found.dtype), found)}


@checked
def swap_words(key: jax.Array, batch: Batch, *, rate: ShareBelowOne = 0.1, ends: bool = False) -> Batch:
    """Swaps neighboring tokens, each pair with probability `rate` (as in Wei & Zou 2019, arXiv:1901.11196).

    Pairs do not overlap. They begin at even places in half of the texts and at odd ones in the others.

    Raises:
      UserError: `rate` is not in [0, 1), or the batch holds no texts.
    """
    token, length = _texts(batch, "swap_words")
    places, inner = _places(token, length, ends)
    draws = _draw(key, batch, token.shape[1] + 1)
    odd = draws[:, :1] < 0.5
    first = (places % 2 == odd) & inner & jnp.roll(inner, -1, axis=1) & (places < token.shape[1] - 1)
    swapped = first & (draws[:, 1:] < rate)
    source = places + swapped - jnp.roll(swapped, 1, axis=1)
    return {**batch, "token": jnp.take_along_axis(token, source, axis=1)}


@checked
def mix_embeddings(key: jax.Array, batch: Batch, *, alpha: float = 0.2) -> Batch:
    """Mixes the embeddings of each text with its neighbor's (Guo et al. 2019, arXiv:1905.08941).

    The weight w ~ Beta(alpha, alpha) is drawn per example; ``alpha=0`` mixes nothing. The batch gains ``mix_token``,
    ``mix_length`` and ``mix_label``, the neighbor's, and ``mix_weight`` (B,) float32, its share. The models of
    `jaxaccel.models` mix embeddings by them.

    Raises:
      UserError: alpha is not in [0, 1e6], the batch has no labels or no texts, or it is mixed already.
    """
    token, length = _texts(batch, "mix_embeddings")
    check_number(alpha, "alpha", 0, 1e6, "mix_embeddings")
    if "label" not in batch:
        raise UserError("mix_embeddings needs batch['label']")
    if "mix_label" in batch:
        raise UserError("mix_embeddings stands twice in the augmentation; the batch is mixed already")
    partner = {
        "mix_token": neighbor(token),
        "mix_length": neighbor(length),
        "mix_label": neighbor(batch["label"]),
    }
    weight = draw_mix_weight(key, batch, alpha)
    known = (batch["label"] >= 0) & (partner["mix_label"] >= 0)
    return {**batch, **partner, "mix_weight": jnp.where(known, weight, 0)}


def _texts(batch: Batch, operation: str) -> tuple[jax.Array, jax.Array]:
    if "token" not in batch or "length" not in batch:
        raise UserError(f"{operation} needs texts, and the batch has {', '.join(sorted(batch)) or 'nothing'}")
    return batch["token"], batch["length"]


def _places(token: jax.Array, length: jax.Array, ends: bool) -> tuple[jax.Array, jax.Array]:
    """The place of each token, (1, L), and whether it may be changed, (B, L)."""
    places = jnp.arange(token.shape[1])[None]
    margin = 0 if ends else 1
    return places, (places >= margin) & (places < length[:, None] - margin)


def _draw(key: jax.Array, batch: Batch, count: int) -> jax.Array:
    """(B, count) float32 in [0, 1), of which the first ones are the same whatever the count."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,), jnp.float32))(example_keys(key, batch))
