# The public names of a trained model.

from .predict_inputs import predict as predict
from .trained import Trained as Trained
from .trained import load as load
