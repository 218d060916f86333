# The public names of a run.

from .loggers import Logger as Logger
from .loop import train as train
from .recipe import Data as Data
from .recipe import Phases as Phases
from .recipe import Recipe as Recipe
from .recipe_file import load_recipe as load_recipe
from .result import TrainResult as TrainResult
from .teacher import Distill as Distill
