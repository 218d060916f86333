"""TREC-6, questions by what they ask for, a TextCNN from scratch.

Data: 5,452 + 500 questions, six classes (Li & Roth 2002, https://aclanthology.org/C02-1150). Without a network,
`--data.downloads DIR` names a directory with the two original files.
Network: Kim's convolutions of 3, 4 and 5 tokens (`jaxaccel.models.text_cnn`), over WordPiece tokens that are learned of
the questions.
Command: `python -m jaxaccel.train trec`
Pretrained: `python -m jaxaccel.train minilm --init-from minilm_l6`
"""

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import TextClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """Our settings; the network is that of Kim 2014 (arXiv:1408.5882)."""
    return Recipe(
        name="trec",
        model=models.text_cnn,
        task=TextClassification(label="label-coarse"),
        data=Data(name="trec"),
        epochs=8,
        batch_size=64,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3),
        schedule=Schedule(name="cosine", warmup=0.05),
    )
