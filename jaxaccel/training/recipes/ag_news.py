"""AG News, the topics of news by title and first lines: fastText with bigrams, from scratch.

Data: TFDS `ag_news_subset`, 120,000 + 7,600 articles of four topics (Zhang et al. 2015, arXiv:1509.01626), to prepare
with the extra tfds-prepare.
Network: embeddings of words and of hashed pairs of them, averaged (`jaxaccel.models.fast_text`). The paper's own has
92.5%. Not yet trained whole by us, so no accuracy is claimed.
Command: `python -m jaxaccel.train ag_news`
"""

from functools import partial

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import TextClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """Our settings; the network is that of Joulin et al. 2016 (arXiv:1607.01759)."""
    return Recipe(
        name="ag_news",
        model=partial(models.fast_text, buckets=2**18, dropout=0.3),
        task=TextClassification(text=("title", "description"), vocabulary=16_000, max_length=128),
        data=Data(name="ag_news_subset"),
        epochs=5,
        batch_size=256,
        optimizer=Optimizer(name="adamw", learning_rate=2e-3),
        schedule=Schedule(name="cosine", warmup=0.05),
    )
