"""Splits as TFDS writes them, and how a set without them is divided."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxaccel.errors import UserError

NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test",
         "validation": "validation", "valid": "validation", "val": "validation"}  # fmt: skip
"""What splits of one's own may be called, and what they are called here."""
TEST_SHARE = 0.2


def divide(groups: Sequence[Hashable], keys: Sequence[bytes]) -> dict[str, list[int]]:
    """Divides examples into ``train`` and ``test``: positions, in order. `TEST_SHARE` of each group go to ``test``.

    Chosen are those whose key has the smallest sha256: a pure function of the keys. A group of two examples or more has
    at least one on each side.
    """
    members: dict[Hashable, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    test: set[int] = set()
    for positions in members.values():
        count = min(max(round(TEST_SHARE * len(positions)), 1), len(positions) - 1)
        test.update(sorted(positions, key=lambda i: hashlib.sha256(keys[i]).digest())[:count])
    return {"train": [i for i in range(len(keys)) if i not in test], "test": sorted(test)}


def take(name: str, split: str, splits: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Positions of the examples of `split`, written in TFDS's slicing syntax, with any of `NAMES`.

    Raises:
      UserError: there is no such split, or it is empty.
    """
    import tensorflow_datasets as tfds

    infos = {
        key: tfds.core.SplitInfo(name=key, shard_lengths=[len(positions)], num_bytes=0)
        for key, positions in splits.items()
    }

    def known(word: re.Match[str]) -> str:
        own = NAMES.get(word[0], "")
        if own == "test" and own not in splits:
            own = "validation"  # the only one to evaluate on
        return own if own in splits else word[0]

    ranges = split_ranges(name, re.sub(r"\b[a-z]+\b", known, split), infos)
    return np.concatenate([np.asarray(splits[key][start:stop], np.int64) for key, start, stop in ranges])


def split_ranges(name: str, split: str, infos: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """What `split` means, as ``(name of the split, start, stop)`` of each part.

    `infos` maps the splits there are to their `tfds.core.SplitInfo`. Raises UserError for a split that is
    unknown, cannot be parsed or is empty.
    """
    import tensorflow_datasets as tfds

    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except Exception as error:  # TFDS raises ValueError, NotImplementedError and others
        reason = " ".join(str(error).split())
        if reason.startswith("Unknown split"):
            raise UserError(
                f"data set {name!r} has no split {split!r}; it has: {', '.join(infos)}"
            ) from error
        raise UserError(
            f"cannot read split {split!r} of data set {name!r}: write it like train, train[:90%] or "
            f"train[1000:2000]; there are: {', '.join(f'{k} ({v.num_examples})' for k, v in infos.items())}"
        ) from error
    ranges = [
        (part.splitname, part.from_ or 0, infos[part.splitname].num_examples if part.to is None else part.to)
        for part in parts
    ]
    if not any(stop > start for _, start, stop in ranges):
        raise UserError(f"split {split!r} of data set {name!r} is empty")
    return ranges
