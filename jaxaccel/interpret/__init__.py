"""Programs evaluated with other rules and other kinds of array. Only this package knows JAX's internals."""

import jaxaccel.interpret.derivatives  # noqa: F401  fills BODIES, as does what it imports
from jaxaccel.interpret.arrays import ARRAY_RULES, Compressed, array_rule, is_compressed, register
from jaxaccel.interpret.bilinear import bilinear
from jaxaccel.interpret.evaluate import Observation, Rule, Transformation, transform
from jaxaccel.interpret.jaxprs import first_uses
from jaxaccel.interpret.loops import hoist

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
