"""What an evaluation found of each example, beside its means: transcripts and translations, for corpus metrics."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxaccel.core.formats.bounds import shorten
from jaxaccel.tasks.metrics import Mean

log = logging.getLogger(__name__)
SHOWN = 5
"""Examples that are shown after an evaluation."""


class Evaluated(NamedTuple):
    """What a task's `evaluate` gave."""

    means: dict[str, Mean]
    rows: dict[str, jax.Array]
    """(B, ...) each, with ``index`` and ``mask`` (B,); empty where the task gives none."""


def log_first(found: Sequence[str], references: Sequence[str], count: int = SHOWN) -> None:
    """Says what was found in the first examples, beside what it should be."""
    for text, reference in list(zip(found, references, strict=True))[:count]:
        what = "as it should be" if text == reference else f"for {shorten(reference)!r}"
        log.info(f"  {shorten(text)!r} {what}")


def split_rows(found: Mapping[str, Mean | jax.Array], batch: Mapping[str, Any]) -> Evaluated:
    """Tells means and rows apart, and adds to the rows by what they are put in order."""
    means = {name: x for name, x in found.items() if isinstance(x, Mean)}
    rows = {name: x for name, x in found.items() if not isinstance(x, Mean)}
    return Evaluated(means, rows | {name: batch[name] for name in ("index", "mask")} if rows else {})


def join_rows(batches: Sequence[Mapping[str, Any]]) -> dict[str, list[np.ndarray]]:
    """The rows of a split in its order, one array an example; what filled batches up is left out.

    Args:
      batches: the rows of each batch, (B, ...) with ``index`` and ``mask``; any order, and lengths may differ.
    """
    if not batches or not batches[0]:
        return {}
    there = [np.asarray(batch["mask"]) > 0 for batch in batches]
    index = np.concatenate([np.asarray(b["index"])[kept] for b, kept in zip(batches, there, strict=True)])
    order = np.argsort(index, kind="stable")

    def join(name: str) -> list[np.ndarray]:
        found = [row for b, kept in zip(batches, there, strict=True) for row in np.asarray(b[name])[kept]]
        return [found[i] for i in order]

    return {name: join(name) for name in batches[0] if name not in ("index", "mask")}
