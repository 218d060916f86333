"""How transcripts are spelled, and how wrong they are."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from jaxaccel.core.options import Options
from jaxaccel.errors import UserError


@dataclasses.dataclass(frozen=True)
class Transcripts(Options):
    """Texts as numbers of symbols, from 1 on."""

    units: Literal["character", "word"] = "character"
    lowercase: bool = True
    symbols: tuple[str, ...] = ()
    """The first of them is number 1."""

    def clean(self, text: str) -> str:
        """The text as it is compared: white space as single spaces, none at the ends."""
        return " ".join((text.lower() if self.lowercase else text).split())

    def collect(self, texts: Iterable[str]) -> tuple[str, ...]:
        """All that texts are spelled in, sorted."""
        return tuple(sorted({unit for text in texts for unit in self._units(text)}))

    def encode(self, text: str) -> list[int] | None:
        """The numbers of a text's symbols; None where one is not among `symbols`."""
        numbers = {symbol: i for i, symbol in enumerate(self.symbols, 1)}
        found = [numbers.get(unit) for unit in self._units(text)]
        return None if None in found else [i for i in found if i is not None]

    def find_unknown(self, text: str) -> str | None:
        """The first symbol of a text that is not among `symbols`."""
        return next((unit for unit in self._units(text) if unit not in self.symbols), None)

    def decode(self, numbers: np.ndarray | Sequence[int]) -> str:
        """The text of numbers; those below 1 say nothing."""
        found = [self.symbols[i - 1] for i in np.asarray(numbers).tolist() if i > 0]
        return self.clean(("" if self.units == "character" else " ").join(found))

    def split_words(self, numbers: np.ndarray | Sequence[int]) -> list[tuple[str, int, int]]:
        """The words of numbers, with the places of their first and last symbols."""
        found: list[tuple[str, int, int]] = []
        begun = False
        for place, i in enumerate(np.asarray(numbers).tolist()):
            symbol = self.symbols[i - 1]
            if symbol == " ":
                begun = False
            elif begun and self.units == "character":
                word, first, _ = found[-1]
                found[-1] = word + symbol, first, place
            else:
                found.append((symbol, place, place))
                begun = True
        return found

    def _units(self, text: str) -> list[str]:
        cleaned = self.clean(text)
        return list(cleaned) if self.units == "character" else cleaned.split()


def as_transcript(value: Any) -> str:
    """The text that a data set has as one."""
    text = np.asarray(value).item()
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def measure_errors(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Word and character error rates: insertions, deletions and substitutions over the length of the references.

    Both are sums over all texts before they are divided, and can exceed 1. Empty references are allowed: what is heard
    there is an insertion.

    Raises:
      UserError: RapidFuzz is not installed.
    """
    return {
        "wer": _rate([text.split() for text in references], [text.split() for text in hypotheses]),
        "cer": _rate([list(text) for text in references], [list(text) for text in hypotheses]),
    }


def _rate(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> float:
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise UserError("error rates need the package rapidfuzz: pip install 'jaxaccel[audio]'") from error
    errors = sum(Levenshtein.distance(a, b) for a, b in zip(references, hypotheses, strict=True))
    return errors / max(sum(map(len, references)), 1)
