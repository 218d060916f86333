"""Augmentations of tokens: what may change, how often, and that neither place nor padding matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxaccel import augment
from jaxaccel.errors import UserError

KEY = jax.random.key(3)
LENGTHS = np.array([12, 3, 1, 2, 20, 7, 9, 16] * 64, np.int32)


def batch(filled=20, rows=slice(None)):
    token = np.where(np.arange(filled) < LENGTHS[:, None], np.arange(filled) + 100, 0).astype(np.int32)
    whole = {"token": token, "length": LENGTHS, "label": np.arange(len(LENGTHS), dtype=np.int32) % 6 - 1}
    whole |= {"index": np.arange(len(LENGTHS), dtype=np.int32), "mask": np.ones(len(LENGTHS), np.float32)}
    return {name: x[rows] for name, x in whole.items()}


def texts(b):
    return [row[:n].tolist() for row, n in zip(np.asarray(b["token"]), np.asarray(b["length"]), strict=True)]


OPERATIONS = {
    "word_dropout": augment.word_dropout,
    "mask_tokens": augment.mask_tokens,
    "swap_words": augment.swap_words,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_text_changes_alike_alone_elsewhere_and_filled_up_further(name):
    def operation(key, b):
        return OPERATIONS[name](key, b, rate=0.4)

    whole = texts(operation(KEY, batch()))
    assert whole != texts(batch())
    assert texts(jax.jit(operation)(KEY, batch(33))) == whole
    assert texts(operation(KEY, batch(rows=slice(4, 6)))) == whole[4:6]
    assert texts(OPERATIONS[name](KEY, batch(), rate=0.0)) == texts(batch())
    for before, after in zip(texts(batch()), whole, strict=True):
        assert (after[0], after[-1]) == (before[0], before[-1])


def test_tokens_are_left_out_as_often_as_asked_and_keep_their_order():
    after = texts(augment.word_dropout(KEY, batch(), rate=0.25, ends=True))
    assert all(row == sorted(row) and row for row in after)
    share = 1 - sum(map(len, after)) / LENGTHS.sum()
    assert share == pytest.approx(0.25, abs=0.02)
    rest = augment.word_dropout(KEY, batch(), rate=0.999, ends=True)
    assert set(np.asarray(rest["length"])) <= {1, 2}


def test_masks_hide_as_often_as_asked():
    after = augment.mask_tokens(KEY, batch(), rate=0.3, token=7, ends=True)
    hidden = np.asarray(after["token"]) == 7
    assert hidden.sum() / LENGTHS.sum() == pytest.approx(0.3, abs=0.02)
    assert not hidden[np.arange(20) >= LENGTHS[:, None]].any()


def test_neighbors_swap_and_nothing_is_lost():
    before, after = texts(batch()), texts(augment.swap_words(KEY, batch(), rate=0.5, ends=True))
    assert all(sorted(a) == b for a, b in zip(after, before, strict=True))
    moved = [(i, x - 100) for row in after for i, x in enumerate(row) if x - 100 != i]
    assert all(abs(i - x) == 1 for i, x in moved)
    pairs = sum(n // 2 for n in LENGTHS) - sum(n % 2 == 0 for n in LENGTHS) / 2
    assert len(moved) / 2 / pairs == pytest.approx(0.5, abs=0.05)


def test_embeddings_are_mixed_with_the_neighbor_and_not_with_padding_or_what_has_no_class():
    b = batch()
    b["mask"] = np.where(np.arange(len(LENGTHS)) == 9, 0, 1).astype(np.float32)
    mixed = augment.mix_embeddings(KEY, b, alpha=0.4)
    np.testing.assert_array_equal(mixed["mix_token"], np.roll(b["token"], 1, 0))
    np.testing.assert_array_equal(mixed["mix_length"], np.roll(b["length"], 1))
    weight = np.asarray(mixed["mix_weight"])
    known = (b["label"] >= 0) & (np.roll(b["label"], 1) >= 0)
    known &= (b["mask"] > 0) & (np.roll(b["mask"], 1) > 0)
    assert (weight[~known] == 0).all() and (weight[known] > 0).mean() > 0.95
    assert weight[known].mean() == pytest.approx(0.5, abs=0.05)
    assert not augment.mix_embeddings(KEY, b, alpha=0)["mix_weight"].any()


def test_what_is_no_text_is_said():
    image = {"image": jnp.zeros((2, 4, 4, 3)), "index": jnp.arange(2)}
    with pytest.raises(UserError, match="word_dropout needs texts, and the batch has image, index"):
        augment.word_dropout(KEY, image)
    with pytest.raises(UserError, match="rate"):
        augment.swap_words(KEY, batch(), rate=1.0)
    with pytest.raises(UserError, match="twice"):
        augment.mix_embeddings(KEY, augment.mix_embeddings(KEY, batch()))
    chained = augment.chain(augment.word_dropout, augment.swap_words, augment.mix_embeddings)(KEY, batch())
    assert {"mix_token", "mix_weight"} <= set(chained)
