# The public names of a trained model.

from . import onnx as onnx
from .bundle import Bundle as Bundle
from .bundle import open_bundle as open_bundle
from .deployed import Deployed as Deployed
from .exporting import export as export
from .load import load as load
from .predict_inputs import predict as predict
from .signature import Engine as Engine
from .signature import Signature as Signature
from .signature import TensorSpec as TensorSpec
from .signing import sign_bundle as sign_bundle
from .signing import verify_bundle as verify_bundle
from .stream import Heard as Heard
from .stream import Stream as Stream
from .stream import StreamStats as StreamStats
from .trained import Trained as Trained
