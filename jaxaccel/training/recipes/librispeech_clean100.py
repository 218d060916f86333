"""LibriSpeech's 100 clean hours, transcribed by a Conformer that is trained by CTC.

Data: TFDS's `librispeech` (Panayotov et al. 2015, https://www.openslr.org/12), prepared once with TensorFlow; or the
original folders, `--data.name folder:LibriSpeech`. It evaluates on dev-clean; `python -m jaxaccel.evaluate RUN --split
test_clean` decides.
Network: 16 blocks of width 256 (Gulati et al. 2020, arXiv:2005.08100), `jaxaccel.models.conformer_ctc`.
Hardware: meant for eight A100 or a v3-8; not trained to its end yet.
Command: `python -m jaxaccel.train librispeech_clean100 --precision bfloat16`
"""

from functools import partial

from jaxaccel import augment, models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import SpeechRecognition
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """The paper's network and augmentation; our optimizer."""
    return Recipe(
        name="librispeech_clean100",
        model=partial(models.conformer_ctc, width=256, depth=16, scan=True),
        task=SpeechRecognition(subsampling=4, max_seconds=17.0, fill_to=(4.0, 8.0, 12.0, 14.0, 15.5, 17.0)),
        data=Data(name="librispeech", train_split="train_clean100", eval_split="dev_clean"),
        augment_features=(augment.mask_spectrogram,),
        epochs=100,
        batch_tokens=256_000,
        eval_every=5,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, weight_decay=1e-2, clip_norm=1.0),
        schedule=Schedule(name="cosine", warmup=0.1),
    )
