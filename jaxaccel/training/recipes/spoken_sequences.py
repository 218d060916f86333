"""Sequences of 3 to 7 spoken digits, transcribed: LSTMs in both directions, trained by CTC; 1.0% of the words wrong.

Data: 4,000 + 500 sequences, joined from the recordings of the Free Spoken Digit Dataset (Z. Jackson and others, 2018,
https://doi.org/10.5281/zenodo.1342401), and 500 of a speaker who is not trained on, `--data.eval-split heldout`.
Without a network, `--data.downloads DIR` names a directory with its archive.
Network: two layers of 128 in each direction (`jaxaccel.models.lstm_ctc`), over log-mel features.
Hardware: two CPU cores: 0.96% of the words wrong (one seed). The best path alone has 2.17%, a beam of 16 has 1.85%, and
the n-gram model of letters the rest. Of the speaker who is not trained on 32.2% are wrong, 46.9% by the best path.
Command: `python -m jaxaccel.train spoken_sequences`
"""

from functools import partial

from jaxaccel import augment, models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import SpeechRecognition
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """Our settings."""
    return Recipe(
        name="spoken_sequences",
        model=models.lstm_ctc,
        task=SpeechRecognition(rate=8000, bands=40, subsampling=2, beam=16, ngram=5, symbol_bonus=0.5),
        data=Data(name="spoken_sequences"),
        augment=(
            augment.change_speed,
            partial(augment.add_noise, snr=(10.0, 40.0), probability=0.5),
        ),
        augment_features=(partial(augment.mask_spectrogram, time_masks=2, band_width=8),),
        epochs=14,
        batch_size=32,
        optimizer=Optimizer(name="adamw", learning_rate=2e-3, weight_decay=1e-3, clip_norm=1.0),
        schedule=Schedule(name="cosine", warmup=0.1),
    )
