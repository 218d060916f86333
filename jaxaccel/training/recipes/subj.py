"""SUBJ, sentences that tell an opinion or a plot, a TextCNN from scratch: 91.9%.

Data: 5,000 sentences of each kind (Pang & Lee 2004, https://aclanthology.org/P04-1035). There is no
official split: every tenth line is the test split, and slices of `train` in `--data.train-split` and
`--data.eval-split` cross-validate. Without a network, `--data.downloads DIR` names a directory with subjectivity.zip.
Network: Kim's convolutions of 3, 4 and 5 tokens (`jaxaccel.models.text_cnn`).
Hardware: two CPU cores: 91.9% (one seed; the standard error of the split is 0.9), in 2.5 minutes.
Command: `python -m jaxaccel.train subj`
Pretrained: `python -m jaxaccel.train minilm --init-from minilm_l6 --data.name subj --task.label label`
"""

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import TextClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """Our settings; the network is that of Kim 2014 (arXiv:1408.5882)."""
    return Recipe(
        name="subj",
        model=models.text_cnn,
        task=TextClassification(),
        data=Data(name="subj"),
        epochs=5,
        batch_size=64,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3),
        schedule=Schedule(name="cosine", warmup=0.05),
    )
