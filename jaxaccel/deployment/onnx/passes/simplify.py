"""All passes, in their order."""

from jaxaccel.deployment.onnx.builder import Builder


def simplify(builder: Builder) -> None:
    """Rewrites the graph of `builder` into one that computes the same in less time."""
