"""The bag of words and n-grams of Joulin et al. 2016 (https://arxiv.org/abs/1607.01759), known as fastText.

The embeddings of all words and n-grams of a text are averaged, and the average is classified. N-grams are hashed into a
table of fixed size, on the device, so that the input is the ids of tokens alone.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxaccel.models.layers.blocks import head, optional_dropout
from jaxaccel.models.layers.tokens import Mix, embed_tokens, masked_mean


class FastText(nnx.Module):
    """Words and n-grams, averaged.

    Parameters stand at ``embed/embedding`` (vocabulary, width), ``ngrams/embedding`` (buckets, width) and ``head``. An
    n-gram counts where all its tokens are there.

    Args:
      width: features of an embedding.
      longest: of the n-grams in tokens: 1 for words alone, 2 with bigrams, 3 with trigrams too.
      buckets: rows of the table that n-grams are hashed into.
      dropout: probability of dropout of the average.
      vocabulary: number of token ids.
      classes: outputs.
      rngs: streams ``params``, and ``dropout`` if `dropout` > 0.

    Raises:
      ValueError: a size is below 1.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        longest: int = 2,
        buckets: int = 2**15,
        dropout: float = 0.0,
        vocabulary: int,
        classes: int,
        rngs: nnx.Rngs,
    ) -> None:
        if min(width, longest, buckets) < 1:
            raise ValueError(f"FastText: {width=}, {longest=} and {buckets=} must be at least 1")
        self.longest = longest
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.ngrams = nnx.Embed(buckets, width, rngs=rngs) if longest > 1 else None
        self.dropout = optional_dropout(dropout, rngs=rngs)
        self.head = head(width, classes, rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array, mix: Mix | None = None) -> jax.Array:
        """Logits (B, classes) of `tokens` (B, L) int where `mask` (B, L) is True."""
        found = [embed_tokens(self.embed, tokens, mask, mix)]
        if self.ngrams is not None:
            for n in range(2, self.longest + 1):
                own = hash_ngrams(tokens, mask, n, self.ngrams.num_embeddings)
                other = mix and (*hash_ngrams(*mix[:2], n, self.ngrams.num_embeddings), mix[2])
                found.append(embed_tokens(self.ngrams, *own, other))
        x = jnp.concatenate([x for x, _ in found], axis=1)
        return self.head(self.dropout(masked_mean(x, jnp.concatenate([there for _, there in found], axis=1))))


def hash_ngrams(tokens: jax.Array, mask: jax.Array, n: int, buckets: int) -> tuple[jax.Array, jax.Array]:
    """Hashes each run of `n` tokens to a row of a table.

    Args:
      tokens: (B, L) int.
      mask: (B, L) bool, True from the start to the end of a text.
      n: tokens of a run.
      buckets: rows of the table.

    Returns:
      Rows (B, max(0, L - n + 1)) int32, and whether all tokens of a run are there.
    """
    count = max(0, tokens.shape[1] - n + 1)
    code = jnp.zeros((tokens.shape[0], count), jnp.uint32)
    for i in range(n):
        # The finalizer of MurmurHash3: each bit of the code depends on all bits of all tokens, and on their order.
        code = code * jnp.uint32(0x9E3779B1) + tokens[:, i : i + count].astype(jnp.uint32) + jnp.uint32(n)
        code = (code ^ (code >> 16)) * jnp.uint32(0x85EBCA6B)
        code = (code ^ (code >> 13)) * jnp.uint32(0xC2B2AE35)
        code ^= code >> 16
    return (code % jnp.uint32(buckets)).astype(jnp.int32), mask[:, n - 1 :]


def fast_text(
    *,
    width: int = 64,
    longest: int = 2,
    buckets: int = 2**15,
    dropout: float = 0.0,
    vocabulary: int,
    classes: int,
    rngs: nnx.Rngs,
) -> FastText:
    """fastText with bigrams: 64 * vocabulary + 65 * classes + 2,097,152 parameters."""
    return FastText(
        width=width,
        longest=longest,
        buckets=buckets,
        dropout=dropout,
        vocabulary=vocabulary,
        classes=classes,
        rngs=rngs,
    )
