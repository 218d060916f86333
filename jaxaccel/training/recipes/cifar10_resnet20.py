"""CIFAR-10, ResNet-20: He et al. 2016, section 4.2; published 91.25%, well-kept reimplementations 91.7%.

Paper: Deep Residual Learning for Image Recognition, arXiv:1512.03385. SGD with momentum 0.9, weight decay
1e-4, batch 128, learning rate 0.1 divided by 10 after one half and three quarters of 64,000 steps; images
padded by 4, cropped and mirrored.

Data: CIFAR-10, 50,000 + 10,000 images 32x32 (Krizhevsky 2009), `--data.downloads DIR` with its archive.
Hardware: one GPU. On a CPU a step takes some hundred milliseconds: a day for the whole run.
Command: `python -m jaxaccel.train cifar10_resnet20`
"""

from functools import partial

from jaxaccel import augment, models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import ImageClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """The paper's settings."""
    return Recipe(
        name="cifar10_resnet20",
        model=models.resnet20,
        task=ImageClassification(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        data=Data(name="cifar10"),
        epochs=163.84,  # 64,000 steps
        batch_size=128,
        augment=(augment.horizontal_flip, partial(augment.pad_and_crop, padding=4)),
        optimizer=Optimizer(name="sgd", learning_rate=0.1, args={"momentum": 0.9}, weight_decay=1e-4),
        schedule=Schedule(name="piecewise", boundaries=(0.5, 0.75), factor=0.1),
        eval_every=4,
    )
