"""IMDb, whole movie reviews, good or bad: fastText with bigrams, from scratch.

Data: TFDS `imdb_reviews`, 25,000 + 25,000 reviews (Maas et al. 2011, https://aclanthology.org/P11-1015), to prepare
with the extra tfds-prepare.
Network: embeddings of words and of hashed pairs of them, averaged (`jaxaccel.models.fast_text`); a step takes as many
reviews as fill 32,768 tokens. Not yet trained whole by us, so no accuracy is claimed.
Command: `python -m jaxaccel.train imdb`; a fixed number of tokens a review: `--task.max-length 256`
"""

from functools import partial

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import TextClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """Our settings; the network is that of Joulin et al. 2016 (arXiv:1607.01759)."""
    return Recipe(
        name="imdb",
        model=partial(models.fast_text, buckets=2**18, dropout=0.3),
        task=TextClassification(vocabulary=16_000, max_length=1024),
        data=Data(name="imdb_reviews"),
        epochs=8,
        batch_tokens=32_768,
        optimizer=Optimizer(name="adamw", learning_rate=2e-3),
        schedule=Schedule(name="cosine", warmup=0.05),
    )
