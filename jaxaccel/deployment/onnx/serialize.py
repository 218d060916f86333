"""A graph as the protocol buffers of ONNX."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxaccel.deployment.onnx.graph import Graph, Node, Value, find_reads
from jaxaccel.errors import UserError

MAX_BYTES = 2**31 - 2**20
"""A protocol buffer holds less than 2 GiB."""
IR_VERSION = 10
"""Version of the file format that opset 21 came with, which older engines read too."""


def import_onnx() -> Any:
    """The package onnx, which only an export needs.

    Raises:
      UserError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError("writing ONNX needs the package onnx: pip install 'jaxaccel[onnx]'") from error
    return onnx


def write_model(graph: Graph, constants: Mapping[str, np.ndarray], opset: int, name: str) -> Any:
    """The `onnx.ModelProto` of a graph, with those constants that it reads.

    Raises:
      UserError: the weights are too large for one file.
    """
    onnx = import_onnx()
    reads = find_reads(graph)
    read = {key: value for key, value in constants.items() if key in reads}
    size = sum(value.nbytes for value in read.values())
    if size > MAX_BYTES:
        raise UserError(
            f"an ONNX file holds 2 GiB, and the weights take {size / 2**30:.1f}: quantize them first"
        )
    weights = [onnx.numpy_helper.from_array(np.copy(x, order="C"), key) for key, x in read.items()]
    model = onnx.helper.make_model(
        _graph(graph, name, weights),
        producer_name="jaxaccel",
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=IR_VERSION,
    )
    return model


def _graph(graph: Graph, name: str, weights: Any = ()) -> Any:
    onnx = import_onnx()
    nodes = [_node(node) for node in graph.nodes]
    inputs, outputs = ([_value(value) for value in part] for part in (graph.inputs, graph.outputs))
    return onnx.helper.make_graph(nodes, name, inputs, outputs, weights)


def _node(node: Node) -> Any:
    onnx = import_onnx()
    attributes = {
        key: _attribute(value, f"{node.outputs[0]}_{key}") for key, value in node.attributes.items()
    }
    made = onnx.helper.make_node(node.op, node.inputs, node.outputs, name=node.outputs[0])
    made.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in sorted(attributes.items()))
    return made


def _attribute(value: Any, name: str) -> Any:
    onnx = import_onnx()
    if isinstance(value, Graph):
        return _graph(value, name)
    if isinstance(value, np.dtype):
        return int(onnx.helper.np_dtype_to_tensor_dtype(value))
    if isinstance(value, (list, tuple)):
        return [int(x) for x in value]
    return value


def _value(value: Value) -> Any:
    onnx = import_onnx()
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    dims = [n if isinstance(n, int) else str(n) for n in value.shape]
    return onnx.helper.make_tensor_value_info(value.name, kind, dims)
