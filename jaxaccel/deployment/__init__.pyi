# The public names of a trained model.

from .trained import Trained as Trained
from .trained import load as load
