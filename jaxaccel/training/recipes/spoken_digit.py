"""Spoken digits, told apart by BC-ResNet.

Data: 2,700 + 300 recordings of the ten digits by six speakers, the Free Spoken Digit Dataset 1.0.10 with its official
split (Z. Jackson and others, 2018, https://doi.org/10.5281/zenodo.1342401). Without a network, `--data.downloads DIR`
names a directory with its archive.
Network: broadcasted residual learning (Kim et al. 2021, arXiv:2106.04140), `jaxaccel.models.bc_resnet_1`.
Hardware: two CPU cores. One run: 96.7% of the 300. Augmentation did not help so small a network: with changes of speed,
shifts, noise and masks it reached 96.3% in 30 epochs, and learned about 80% of what it was shown.
Command: `python -m jaxaccel.train spoken_digit`
"""

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import AudioClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """Our settings."""
    return Recipe(
        name="spoken_digit",
        model=models.bc_resnet_1,
        task=AudioClassification(rate=8000, bands=40, max_seconds=1.5),
        data=Data(name="spoken_digit:1.0.10"),
        epochs=20,
        batch_size=64,
        optimizer=Optimizer(name="adamw", learning_rate=4e-3, weight_decay=1e-2),
        schedule=Schedule(name="cosine", warmup=0.1),
    )
