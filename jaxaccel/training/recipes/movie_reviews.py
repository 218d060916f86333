"""Whole movie reviews, good or bad: long texts of some hundred words, a TextCNN from scratch: 78.5%.

Data: 1,000 reviews of each kind, polarity 2.0 (Pang & Lee 2004, https://aclanthology.org/P04-1035); the tenth fold
is the test split. Without a network, `--data.downloads DIR` names a directory with movie_reviews.zip.
Network: Kim's convolutions (`jaxaccel.models.text_cnn`); a step takes as many reviews as fill 16,384 tokens.
Hardware: two CPU cores: 78.5% (one seed; the standard error of the split is 2.9), in 13.5 minutes.
Command: `python -m jaxaccel.train movie_reviews`
"""

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import TextClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """Our settings; the network is that of Kim 2014 (arXiv:1408.5882)."""
    return Recipe(
        name="movie_reviews",
        model=models.text_cnn,
        task=TextClassification(max_length=1024),
        data=Data(name="movie_reviews"),
        epochs=12,
        batch_tokens=16_384,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3),
        schedule=Schedule(name="cosine", warmup=0.05),
    )
