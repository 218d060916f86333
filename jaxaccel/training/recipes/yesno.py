"""Eight words in a row, yes or no, of one speaker: the smallest real transcription, all words right.

Data: OpenSLR 1 (https://www.openslr.org/1), 60 recordings of which every fourth is the test split. Without a network,
`--data.downloads DIR` names a directory with waves_yesno.tar.gz or .tar.xz.
Network: LSTMs in both directions (`jaxaccel.models.lstm_ctc`), which spell in words.
Hardware: two CPU cores: none of the 120 test words is wrong (one seed), after six minutes beside other work.
Command: `python -m jaxaccel.train yesno`
"""

from functools import partial

from jaxaccel import models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import SpeechRecognition
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """Our settings."""
    return Recipe(
        name="yesno",
        model=partial(models.lstm_ctc, width=64, features=64, depth=1),
        task=SpeechRecognition(rate=8000, bands=40, subsampling=4, units="word"),
        data=Data(name="yesno:1.1.0"),
        epochs=40,
        batch_size=8,
        eval_every=10,
        optimizer=Optimizer(name="adamw", learning_rate=5e-3, clip_norm=1.0),
        schedule=Schedule(name="cosine", warmup=0.1),
    )
