"""ImageNet, ViT-S/16, 90 epochs: Beyer et al. 2022; published 76.5%. For a TPU pod or GPUs.

Paper: Better plain ViT baselines for ImageNet-1k, arXiv:2205.01580: AdamW, learning rate 1e-3 after 10,000
steps of warm-up, cosine decay to zero, gradients clipped to norm 1, mixup 0.2. The network here is the one of
Dosovitskiy et al. 2021 (class token, learned positions); random crops are of the center of each photograph.

Data: TFDS `imagenet2012`, which its license lets nobody download for you: put the two archives into
`--data.downloads DIR` and install the extra tfds-prepare.
Hardware: a v3-8 or eight A100, some hours. Not yet trained whole by us, so no accuracy is claimed.
Command: `python -m jaxaccel.train imagenet_vit_s16 --data.workers 16 --mesh.fsdp 4`
"""

from functools import partial

from jaxaccel import augment, models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import ImageClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """The paper's settings at batch 1,024."""
    return Recipe(
        name="imagenet_vit_s16",
        model=models.vit_s16,
        task=ImageClassification(image_size=224),
        data=Data(name="imagenet2012", eval_split="validation", feed="stream", workers=8),
        epochs=90,
        batch_size=1024,
        augment=(
            partial(augment.random_resized_crop, scale=(0.05, 1.0)),
            augment.horizontal_flip,
            partial(augment.rand_augment, num_ops=2, magnitude=10),
            partial(augment.mixup, alpha=0.2),
        ),
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
        schedule=Schedule(name="cosine", warmup=10_000 / 112_600),
    )
