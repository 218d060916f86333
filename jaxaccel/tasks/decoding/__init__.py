"""From a model's outputs to sequences of symbols: the best path, prefix beam search, alignment."""

from jaxaccel.tasks.decoding.ctc_align import Spans, align_ctc
from jaxaccel.tasks.decoding.ctc_beam import search_prefixes
from jaxaccel.tasks.decoding.ctc_greedy import BestPath, Decoded, collapse_best_path, follow_best_path
from jaxaccel.tasks.decoding.ngram import NgramScores, count_ngrams, estimate_ngrams

__all__ = [
    "BestPath",
    "Decoded",
    "NgramScores",
    "Spans",
    "align_ctc",
    "collapse_best_path",
    "count_ngrams",
    "estimate_ngrams",
    "follow_best_path",
    "search_prefixes",
]
