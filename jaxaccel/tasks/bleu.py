"""BLEU and chrF of whole corpora, as sacreBLEU computes them."""

import logging
from collections.abc import Sequence
from typing import Any

from jaxaccel.errors import UserError

log = logging.getLogger(__name__)


def import_sacrebleu() -> Any:
    """The metrics of the package ``sacrebleu``.

    Raises:
      UserError: it is not installed.
    """
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise UserError("BLEU needs the package sacrebleu: pip install 'jaxaccel[translation]'") from error
    return sacrebleu.metrics


def score_translations(found: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """``bleu``, ``bleu_lc`` (without capitals) and ``chrf``, from 0 to 100; it says by which signature.

    BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040) counts the tokens of mteval 13a; chrF is that of
    Popović 2015, https://aclanthology.org/W15-3049. Both are of the corpus and no means of sentences.

    Args:
      found: the translations, without tokenization.
      references: one for each.

    Raises:
      UserError: sacreBLEU is not installed.
    """
    metrics = import_sacrebleu()
    # Translations of a model in the midst of training are many, and no sign of tokenized texts.
    scorers = {
        "bleu": metrics.BLEU(force=True),
        "bleu_lc": metrics.BLEU(lowercase=True, force=True),
        "chrf": metrics.CHRF(),
    }
    scores = {
        name: scorer.corpus_score(list(found), [list(references)]).score for name, scorer in scorers.items()
    }
    log.info(f"bleu {scores['bleu']:.2f}, {scorers['bleu'].get_signature()}")
    return scores
