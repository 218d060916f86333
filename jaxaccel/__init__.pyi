# The public names: verbs on a run, verbs on functions, verbs on parameters, classes, and namespaces, which are folders.

from . import advisor as advisor
from . import compression as compression
from . import core as core
from . import data as data
from . import deployment as deployment
from . import distributed as distributed
from . import models as models
from . import optim as optim
from . import tasks as tasks
from . import training as training
from . import transforms as transforms
from .compression.loop import compress as compress
from .core import arrays as arrays
from .data import augment as augment
from .deployment.exporting import export as export
from .deployment.load import load as load
from .deployment.predict_inputs import predict as predict
from .errors import UserError as UserError
from .optim import Optimizer as Optimizer
from .training.loop import train as train
from .training.recipe import Recipe as Recipe
from .training.recipe_file import load_recipe as load_recipe
from .transforms import bfloat16 as bfloat16
from .transforms import calibrate as calibrate
from .transforms import distill as distill
from .transforms import fake_int8 as fake_int8
from .transforms import float8 as float8
from .transforms import float16 as float16
from .transforms import fold as fold
from .transforms import int8 as int8
from .transforms import params as params
from .transforms import retarget as retarget
from .transforms.explain import explain as explain
from .transforms.params import low_rank as low_rank
from .transforms.params import prune as prune
from .transforms.params import quantize as quantize
from .transforms.params import remove_channels as remove_channels

__version__: str
