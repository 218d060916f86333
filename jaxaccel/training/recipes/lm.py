"""The German half of Multi30k, written on by a small language model.

Data: 29,000 captions, as of `multi30k_en_de`; `--task.text en` takes the English half.
Network: a decoder-only Transformer, `jaxaccel.models.language_model_tiny`, over 5,000 tokens.
Hardware: meant for two CPU cores; not trained to its end yet.
Command: `python -m jaxaccel.train lm`
"""

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import LanguageModeling
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """Our settings."""
    return Recipe(
        name="lm",
        model=models.language_model_tiny,
        task=LanguageModeling(text="de", vocabulary=5000, max_length=96),
        data=Data(name="multi30k"),
        epochs=10,
        batch_tokens=2048,
        optimizer=Optimizer(name="adamw", learning_rate=2e-3, weight_decay=1e-2, clip_norm=1.0),
        schedule=Schedule(name="cosine", warmup=0.1),
    )
