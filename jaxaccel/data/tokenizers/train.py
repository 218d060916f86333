"""Learns the pieces of words of a tokenizer from texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from annotated_types import Interval

from jaxaccel.core.options import checked
from jaxaccel.data.tokenizers.tokenizer import (
    END,
    MASK,
    PAD,
    START,
    UNKNOWN,
    Tokenizer,
    finish,
    import_tokenizers,
    make_wordpiece,
)
from jaxaccel.errors import UserError, option

_LEAST_COUNT = 2  # how often two pieces must meet to become one
_BYTES = 256


@checked
def train_tokenizer(
    texts: Any,
    kind: Literal["bpe", "wordpiece"] = "wordpiece",
    size: Annotated[int, Interval(ge=16, le=1 << 20)] = 8_000,
    lowercase: bool = True,
) -> Tokenizer:
    """Learns a tokenizer; the same texts and options give the same one, on any number of threads.

    Args:
      texts: an iterable of texts.
      kind: ``bpe`` joins bytes (Sennrich et al. 2016, arXiv:1508.07909), so no text has unknown pieces, and `decode`
        gives every text back; ``wordpiece`` joins characters as BERT does (Devlin et al. 2019, arXiv:1810.04805), and
        of more than ``size // 2`` characters the rarest are unknown.
      size: the most ids; fewer where no two pieces meet twice any more.
      lowercase: whether texts are lower-cased; ``wordpiece`` takes accents off, too.

    Raises:
      UserError: there is no text, or `size` is too small.
    """
    texts = [str(text) for text in texts]
    if not any(text.strip() for text in texts):
        raise UserError("a tokenizer is learned from texts, and there are none, or only empty ones")
    return _learn_bytes(texts, size, lowercase) if kind == "bpe" else _learn_words(texts, size, lowercase)


def _learn_bytes(texts: Sequence[str], size: int, lowercase: bool) -> Tokenizer:
    tokenizers = import_tokenizers()
    special = [PAD, START, END, MASK]
    if size < _BYTES + len(special):
        raise UserError(
            f"{option('size')} must be at least {_BYTES + len(special)} for bpe, one for each byte, got {size}"
        )
    rust = tokenizers.Tokenizer(tokenizers.models.BPE())
    if lowercase:
        rust.normalizer = tokenizers.normalizers.Lowercase()
    rust.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, min_frequency=_LEAST_COUNT, show_progress=False, special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    rust.train_from_iterator(texts, trainer)
    return finish(rust, special)


def _learn_words(texts: Sequence[str], size: int, lowercase: bool) -> Tokenizer:
    """Learns pieces of words.

    The package gives ids to the characters inside of words in the order of a hash table, which differs from process to
    process, and breaks ties by ids. So all characters are given to it as tokens, in order.
    """
    tokenizers = import_tokenizers()
    special = [PAD, UNKNOWN, START, END, MASK]
    rust = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=UNKNOWN))
    rust.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    rust.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        split = rust.pre_tokenizer.pre_tokenize_str(rust.normalizer.normalize_str(text))
        words.update(word for word, _ in split)
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for position, character in enumerate(word):
            counts[f"##{character}" if position else character] += count
    kept = sorted(counts, key=lambda piece: (-counts[piece], piece))[: size // 2]
    alphabet = sorted({piece[-1] for piece in kept})
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=_LEAST_COUNT, show_progress=False,
        special_tokens=[*special, *alphabet, *sorted(f"##{c}" for c in alphabet if counts[f"##{c}"])],
        initial_alphabet=alphabet, limit_alphabet=len(alphabet),
    )  # fmt: skip
    rust.train_from_iterator(texts, trainer)
    return make_wordpiece(rust.get_vocab(with_added_tokens=False), lowercase)
