"""WMT 2014, news from English into German, by the base Transformer.

Data: TFDS's `wmt14_translate/de-en`, 4.5 million pairs, prepared once with TensorFlow (Bojar et al. 2014,
https://www.statmt.org/wmt14/translation-task.html); newstest2013 chooses the checkpoint, newstest2014 is the test.
Network: the base model of Vaswani et al. 2017 (arXiv:1706.03762), but pre-norm, `jaxaccel.models.translator_base`.
Hardware: meant for eight A100 or a v3-8; not trained to its end yet.
Command: `python -m jaxaccel.train wmt --precision bfloat16`
"""

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import Translation
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """The paper's network and size of batches; our optimizer."""
    return Recipe(
        name="wmt",
        model=models.translator_base,
        task=Translation(source="en", target="de", vocabulary=37_000, max_length=128, beam=4),
        data=Data(name="wmt14_translate/de-en"),
        epochs=12,
        batch_tokens=65_536,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, weight_decay=1e-2, clip_norm=1.0, ema=0.999),
        schedule=Schedule(name="cosine", warmup=0.05),
    )
