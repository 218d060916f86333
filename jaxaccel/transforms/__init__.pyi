# The public names: functions in, functions out.

from . import params as params
from .calibrate import Calibration as Calibration
from .calibrate import calibrate as calibrate
from .compressed import compressed as compressed
from .distill import Hint as Hint
from .distill import distill as distill
from .fake_int8 import fake_int8 as fake_int8
from .features import features as features
from .fold import fold as fold
from .input_statistics import input_covariances as input_covariances
from .input_statistics import input_norms as input_norms
from .int8 import int8 as int8
from .loss_scale import LossScale as LossScale
from .loss_scale import LossScaleState as LossScaleState
from .precision import bfloat16 as bfloat16
from .precision import float8 as float8
from .precision import float16 as float16
from .retarget import retarget as retarget
from .running_ranges import RunningRanges as RunningRanges
