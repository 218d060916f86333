# The public names: pipelines, and the steps that they are made of.

from .loop import CompressResult as CompressResult
from .loop import compress as compress
from .pipeline import Pipeline as Pipeline
from .pipeline import load_pipeline as load_pipeline
from .step import Step as Step
from .steps import Fold as Fold
from .steps import LowRank as LowRank
from .steps import Prune as Prune
from .steps import Quantize as Quantize
from .steps import RemoveChannels as RemoveChannels
from .steps import Share as Share
from .training_steps import FineTune as FineTune
from .training_steps import Student as Student
