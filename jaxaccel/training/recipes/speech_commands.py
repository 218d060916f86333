"""Speech Commands, spoken words told apart by BC-ResNet.

Data: TFDS's `speech_commands`, ten words, silence and unknown ones (Warden 2018, arXiv:1804.03209), prepared once with
TensorFlow; or four words of it, `--data.name speech_words --data.downloads DIR`.
Network: broadcasted residual learning (Kim et al. 2021, arXiv:2106.04140), `jaxaccel.models.bc_resnet_3`.
Hardware: meant for one GPU; not trained yet.
Command: `python -m jaxaccel.train speech_commands`
"""

from functools import partial

from jaxaccel import augment, models
from jaxaccel.optim import Optimizer, Schedule
from jaxaccel.tasks import AudioClassification
from jaxaccel.training.recipe import Data, Recipe


def recipe() -> Recipe:
    """The paper's network and frames; our optimizer."""
    return Recipe(
        name="speech_commands",
        model=models.bc_resnet_3,
        task=AudioClassification(window_ms=30.0, bands=40, fill_to=(1.0,)),
        data=Data(name="speech_commands"),
        augment=(
            partial(augment.shift_sound, seconds=0.1),
            partial(augment.add_noise, snr=(5.0, 40.0), probability=0.8),
        ),
        augment_features=(partial(augment.mask_spectrogram, time_masks=2, band_width=8),),
        epochs=30,
        batch_size=64,
        optimizer=Optimizer(name="adamw", learning_rate=4e-3, weight_decay=1e-2),
        schedule=Schedule(name="cosine", warmup=0.1),
    )
