"""All passes, in their order."""

from jaxaccel.deployment.onnx.builder import Builder
from jaxaccel.deployment.onnx.passes.affine import fold_affine
from jaxaccel.deployment.onnx.passes.meanings import write_gelu, write_layer_norm, write_mean, write_softmax
from jaxaccel.deployment.onnx.passes.moves import join_moves, write_max_pool
from jaxaccel.deployment.onnx.passes.quantized import bound_sum, drop_relu, quantize_bias, quantize_earlier
from jaxaccel.deployment.onnx.passes.rewrite import rewrite_graph

MAX_CHAIN = 4
"""Factors and offsets behind one product are at most so many: those of a bias and of BatchNorm."""


def simplify(builder: Builder) -> None:
    """Rewrites the graph of `builder` into one that computes the same in less time."""
    root = builder.root
    rewrite_graph(builder, root, write_mean, join_moves)
    rewrite_graph(builder, root, write_softmax, write_gelu, write_layer_norm, write_max_pool)
    rewrite_graph(builder, root, join_moves)
    for _ in range(MAX_CHAIN):
        rewrite_graph(builder, root, fold_affine)
    rewrite_graph(builder, root, quantize_bias)
    rewrite_graph(builder, root, quantize_earlier)
    rewrite_graph(builder, root, bound_sum)
    rewrite_graph(builder, root, drop_relu)
