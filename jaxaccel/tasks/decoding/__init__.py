"""From a model's outputs to sequences of symbols or tokens: greedy, sampled, by beam search; for CTC, alignment too."""

from jaxaccel.tasks.decoding.beam import Beams, search_beams
from jaxaccel.tasks.decoding.ctc_align import Spans, align_ctc
from jaxaccel.tasks.decoding.ctc_beam import search_prefixes
from jaxaccel.tasks.decoding.ctc_greedy import BestPath, Symbols, collapse_best_path, follow_best_path
from jaxaccel.tasks.decoding.ngram import NgramScores, count_ngrams, estimate_ngrams
from jaxaccel.tasks.decoding.sampling import sample_tokens
from jaxaccel.tasks.decoding.token_by_token import Decoded, decode_greedily

__all__ = [
    "Beams",
    "BestPath",
    "Decoded",
    "NgramScores",
    "Spans",
    "Symbols",
    "align_ctc",
    "collapse_best_path",
    "count_ngrams",
    "decode_greedily",
    "estimate_ngrams",
    "follow_best_path",
    "sample_tokens",
    "search_beams",
    "search_prefixes",
]
