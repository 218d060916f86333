"""The One Billion Word benchmark, sentences of news, by a language model.

Data: TFDS's `lm1b`, 30 million sentences (Chelba et al. 2013, arXiv:1312.3005), prepared once with TensorFlow. TFDS has
no WikiText; any csv, tsv or jsonl with a column `text` takes its place with `--data.name`.
Network: a decoder-only Transformer, `jaxaccel.models.language_model_s`, over 32,000 tokens.
Hardware: meant for eight A100 or a v3-8; not trained to its end yet.
Command: `python -m jaxaccel.train lm1b --precision bfloat16`
"""

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import LanguageModeling
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """Our settings."""
    return Recipe(
        name="lm1b",
        model=models.language_model_s,
        task=LanguageModeling(vocabulary=32_000, max_length=128),
        data=Data(name="lm1b"),
        epochs=1,
        batch_tokens=131_072,
        eval_every=0.1,
        optimizer=Optimizer(name="adamw", learning_rate=6e-4, weight_decay=0.1, clip_norm=1.0),
        schedule=Schedule(name="cosine", warmup=0.02),
    )
