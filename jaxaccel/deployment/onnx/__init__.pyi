# The public names of the exporter.

from .export import to_onnx as to_onnx
