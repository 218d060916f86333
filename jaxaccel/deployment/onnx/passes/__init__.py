"""What is written better than primitive by primitive: operators of larger meaning, and less work."""

from jaxaccel.deployment.onnx.passes.simplify import simplify

__all__ = ["simplify"]
