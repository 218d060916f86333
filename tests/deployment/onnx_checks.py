"""Exported models beside the functions that they were made of."""

import collections
import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import onnx
import onnxruntime

from jaxaccel.deployment.onnx import to_onnx

MODELS = Path(__file__).parents[1] / "models"
for folder in (MODELS, MODELS / "text", MODELS / "audio"):
    sys.path.append(str(folder))
# Where the small models of each family are made.
families, small_sounds, small_texts, small_writers = map(
    importlib.import_module, ("families", "small_sounds", "small_texts", "small_writers")
)


def names_of(inputs):
    count = len(jax.tree.leaves(tuple(inputs)))
    return ["input"] if count == 1 else [f"input_{i}" for i in range(count)]


def open_session(model, saved=None):
    """ONNX Runtime with `model`, which the checker has accepted; what it makes of it is saved as a file."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # It would round the other operand of a product with dequantized weights to 8 bits as well.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(session, inputs):
    """The results for `inputs`, of which the model may not read all."""
    given = dict(zip(names_of(inputs), jax.tree.leaves(tuple(inputs)), strict=True))
    read = [value.name for value in session.get_inputs()]
    return session.run(None, {name: np.asarray(given[name]) for name in read})


def optimized(model, directory):
    """How often each operator is in what ONNX Runtime makes of a model."""
    path = directory / "optimized.onnx"
    open_session(model, path)
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def operators(model):
    """How often each operator is in a model, and in the bodies of its loops."""
    found = collections.Counter()

    def count(graph):
        for node in graph.node:
            found[node.op_type] += 1
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    count(attribute.g)

    count(model.graph)
    return found


def assert_same(f, weights, inputs, batches=(1, 3), tolerance=1e-5, **options):
    """The exported model computes what `f` does, for several batch sizes; returns the model."""
    model = to_onnx(f, weights, inputs, **options)
    session = open_session(model)
    for batch in batches:
        part = jax.tree.map(lambda x, n=batch: x[:n], tuple(inputs))
        wanted = jax.tree.leaves(jax.jit(f)(weights, *part))
        for want, got in zip(wanted, run(session, part), strict=True):
            want = np.asarray(want)
            assert got.shape == want.shape
            scale = max(1.0, np.abs(want.astype(np.float64)).max(initial=0))
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)
    return model
