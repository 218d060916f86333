"""Programs evaluated with other rules and other kinds of array. Only this package knows JAX's internals."""

import jaxaccel.interpret.derivatives  # fills BODIES, as does what it imports
import jaxaccel.interpret.devices  # noqa: F401  the same
from jaxaccel.interpret.arrays import ARRAY_RULES, Compressed, array_rule, is_compressed, register
from jaxaccel.interpret.bilinear import bilinear
from jaxaccel.interpret.evaluate import transform
from jaxaccel.interpret.jaxprs import first_uses
from jaxaccel.interpret.loops import hoist
from jaxaccel.interpret.transformation import Observation, Rule, Transformation

__all__ = [
    "ARRAY_RULES",
    "Compressed",
    "Observation",
    "Rule",
    "Transformation",
    "array_rule",
    "bilinear",
    "first_uses",
    "hoist",
    "is_compressed",
    "register",
    "transform",
]
