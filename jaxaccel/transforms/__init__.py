"""Functions in, functions out: the same computation in other numbers."""

import lazy_loader

from jaxaccel.transforms.calibrate import Calibration, calibrate
from jaxaccel.transforms.compressed import compressed
from jaxaccel.transforms.distill import Hint, distill
from jaxaccel.transforms.fake_int8 import fake_int8
from jaxaccel.transforms.features import features
from jaxaccel.transforms.fold import fold
from jaxaccel.transforms.input_statistics import input_covariances, input_norms
from jaxaccel.transforms.int8 import int8
from jaxaccel.transforms.loss_scale import LossScale, LossScaleState
from jaxaccel.transforms.precision import bfloat16, float8, float16
from jaxaccel.transforms.retarget import retarget
from jaxaccel.transforms.running_ranges import RunningRanges

__all__ = [
    "Calibration",
    "Hint",
    "LossScale",
    "LossScaleState",
    "RunningRanges",
    "bfloat16",
    "calibrate",
    "compressed",
    "distill",
    "fake_int8",
    "features",
    "float8",
    "float16",
    "fold",
    "input_covariances",
    "input_norms",
    "int8",
    "retarget",
]

__getattr__, *_ = lazy_loader.attach(__name__, ["params"])
