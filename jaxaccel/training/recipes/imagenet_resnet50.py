"""ImageNet, ResNet-50, 90 epochs at batch 1,024: Goyal et al. 2017; published 76.3%. For a TPU pod or GPUs.

Papers: He et al. 2016, arXiv:1512.03385 (the network); Goyal et al. 2017, arXiv:1706.02677 (large batches:
learning rate 0.1 per 256 examples, five epochs of warm-up); He et al. 2019, arXiv:1812.01187 (cosine decay,
label smoothing, zero-initialized last BatchNorm, no decay on biases and norms).

Data: TFDS `imagenet2012`, which its license lets nobody download for you: put the two archives into
`--data.downloads DIR` and install the extra tfds-prepare. Images are resized on the host (shorter side 224,
center crop); the random crops are taken of those on the device, where the papers crop the whole photograph.
Hardware: eight A100 or a v3-32, some hours. Not yet trained whole by us, so no accuracy is claimed.
Command: `python -m jaxaccel.train imagenet_resnet50 --data.workers 16`
"""

from jaxaccel import augment, models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import ImageClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """The papers' settings at batch 1,024."""
    return Recipe(
        name="imagenet_resnet50",
        model=models.resnet50,
        task=ImageClassification(
            image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), label_smoothing=0.1
        ),
        data=Data(name="imagenet2012", eval_split="validation", feed="stream", workers=8),
        epochs=90,
        batch_size=1024,
        augment=(augment.random_resized_crop, augment.horizontal_flip),
        optimizer=Optimizer(
            name="sgd", learning_rate=0.4, args={"momentum": 0.9, "nesterov": 1}, weight_decay=1e-4
        ),
        schedule=Schedule(name="cosine", warmup=5 / 90),
    )
