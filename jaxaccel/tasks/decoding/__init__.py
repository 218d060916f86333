"""From a model's outputs to sequences of symbols: the best path, prefix beam search, alignment."""

from jaxaccel.tasks.decoding.ctc_align import Spans, align_ctc
from jaxaccel.tasks.decoding.ctc_beam import search_prefixes
from jaxaccel.tasks.decoding.ctc_greedy import BestPath, Decoded, collapse_best_path, follow_best_path

__all__ = [
    "BestPath",
    "Decoded",
    "Spans",
    "align_ctc",
    "collapse_best_path",
    "follow_best_path",
    "search_prefixes",
]
