# The public names of a trained model.

from . import onnx as onnx
from .predict_inputs import predict as predict
from .stream import Heard as Heard
from .stream import Stream as Stream
from .stream import StreamStats as StreamStats
from .trained import Trained as Trained
from .trained import load as load
