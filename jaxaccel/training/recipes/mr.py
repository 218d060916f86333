"""MR, sentences of movie reviews, good or bad, a TextCNN from scratch: 77.1%.

Data: 5,331 sentences of each kind (Pang & Lee 2005, https://aclanthology.org/P05-1015). There is no
official split: every tenth line is the test split, and slices of `train` in `--data.train-split` and
`--data.eval-split` cross-validate. Without a network,
`--data.downloads DIR` names a directory with sentence_polarity.zip.
Network: Kim's convolutions of 3, 4 and 5 tokens (`jaxaccel.models.text_cnn`).
Hardware: two CPU cores: 77.1% (one seed; the standard error of the split is 1.3), in 2.2 minutes.
Command: `python -m jaxaccel.train mr`
Pretrained: `python -m jaxaccel.train minilm --init-from minilm_l6 --data.name mr --task.label label`
"""

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import TextClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """Our settings; the network is that of Kim 2014 (arXiv:1408.5882)."""
    return Recipe(
        name="mr",
        model=models.text_cnn,
        task=TextClassification(),
        data=Data(name="mr"),
        epochs=5,
        batch_size=64,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3),
        schedule=Schedule(name="cosine", warmup=0.05),
    )
