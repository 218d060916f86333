"""Multi30k, captions from English into German, by a small Transformer.

Data: 29,000 + 1,014 pairs of sentences, and the 1,000 of 2016 as test (Elliott et al. 2016, arXiv:1605.00459); further
tests by `--split test_2017_flickr`, `test_2017_mscoco` and `test_2018_flickr`. Without a network, `--data.downloads
DIR` names a directory with the original files. For research and education: the authors state no license.
Network: Transformer-Tiny of Wu et al. 2021 (arXiv:2105.14462), `jaxaccel.models.translator_tiny`, over 5,000 tokens
that both languages share; evaluated at the average of its weights.
Hardware: two CPU cores, 77 minutes. One run on the test of 2016: BLEU 36.76, and 38.37 with `--beam 5`; with that
beam 30.18 on test_2017_flickr, 26.22 on test_2017_mscoco and 26.90 on test_2018_flickr; on the validation split,
greedily, 33.3 after 12 epochs and 26 minutes, 36.9 after 24.
Command: `python -m jaxaccel.train multi30k_en_de`
From German: `python -m jaxaccel.train multi30k_en_de --name multi30k_de_en --task.source de --task.target en`
"""

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import Translation
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """The paper's network; our settings."""
    return Recipe(
        name="multi30k_en_de",
        model=models.translator_tiny,
        task=Translation(source="en", target="de", vocabulary=5000, max_length=96),
        data=Data(name="multi30k"),
        epochs=36,
        batch_tokens=2048,
        eval_every=2,
        optimizer=Optimizer(name="adamw", learning_rate=2e-3, weight_decay=1e-4, clip_norm=1.0, ema=0.998),
        schedule=Schedule(name="cosine", warmup=0.1),
    )
