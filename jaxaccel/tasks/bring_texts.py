"""Texts that a person has at hand, as batches."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxaccel.errors import UserError
from jaxaccel.tasks.batches import fit_length, stack_examples
from jaxaccel.tasks.bring_arrays import Given

Encode = Callable[[Sequence[str]], list[np.ndarray]]
Element = dict[str, np.ndarray]


def bring_texts(
    given: Any, size: int, encode: Encode, pad: Callable[[Element, int], Element], bounds: Sequence[int]
) -> Given:
    """Texts as batches of up to `size`, each filled up to the least of `bounds` that its longest text needs.

    Args:
      given: a text, an iterable of texts, or ``{"text": ...}`` of one of these.
      size: texts in a batch at most.
      encode: gives the tokens of texts, one at least of each.
      pad: fills ``token`` and ``length`` up to a length, or cuts them there.
      bounds: lengths, rising.

    Raises:
      UserError: it is no text.
    """
    if isinstance(given, Mapping):
        if "text" not in given:
            raise UserError(f"a batch of texts has an entry text, got {', '.join(given) or 'none'}")
        given = given["text"]
    single = isinstance(given, (str, bytes))
    if not single and not isinstance(given, Iterable):
        raise UserError(f"give a text or several, not {given!r:.60}")

    def batches() -> Iterator[dict[str, Any]]:
        numbered = iter(enumerate([given] if single else given))
        while some := list(itertools.islice(numbered, size)):
            rows = list(map(to_element, encode([as_text(text, i) for i, text in some])))
            length = fit_length(bounds, max(len(row["token"]) for row in rows))
            yield stack_examples([pad(row, length) for row in rows])

    return Given(batches(), single)


def to_element(tokens: np.ndarray) -> Element:
    """``token`` (n,) int32 and ``length`` () int32."""
    return {"token": tokens, "length": np.asarray(len(tokens), np.int32)}


def as_text(value: Any, number: int) -> str:
    """A text that somebody gave.

    Raises:
      UserError: it is none, or no UTF-8.
    """
    try:
        text = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise UserError(f"text {number} is no UTF-8 (byte {error.start}): convert it first") from error
    if not isinstance(text, str):
        raise UserError(f"text {number} is {value!r:.60}: give texts")
    return text
