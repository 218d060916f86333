"""The constants of an ONNX file, without ONNX: what of the format of protocol buffers they need."""

import numpy as np


def read_initializers(path):
    """{name: array} of a model's float32 initializers: ``ModelProto.graph.initializer``."""
    (graph,) = [value for field, value in _fields(memoryview(path.read_bytes())) if field == 7]
    found = {}
    for tensor in (value for field, value in _fields(graph) if field == 5):
        parts = list(_fields(tensor))
        if dict(parts)[2] != 1:  # its data type is another than float32
            continue
        shape = [n for field, n in parts if field == 1 and isinstance(n, int)]
        shape += [n for field, x in parts if field == 1 and not isinstance(x, int) for n in _packed(x)]
        raw = dict(parts)[9]
        found[bytes(dict(parts)[8]).decode()] = np.frombuffer(raw, "<f4").reshape(shape).copy()
    return found


def _fields(buffer):
    """Pairs of a field's number and its value, an integer or a buffer."""
    at = 0
    while at < len(buffer):
        key, at = _varint(buffer, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(buffer, at)
        else:
            size, at = _varint(buffer, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = buffer[at : at + size], at + size
        yield key >> 3, value


def _packed(buffer):
    at = 0
    while at < len(buffer):
        value, at = _varint(buffer, at)
        yield value


def _varint(buffer, at):
    value = shift = 0
    while True:
        byte = buffer[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
