"""Programs evaluated with other rules and other kinds of array. Only this package knows JAX's internals."""

import jaxaccel.core.interpret.custom_derivatives  # fills BODIES, as does what it imports
import jaxaccel.core.interpret.shard_map  # noqa: F401  the same
from jaxaccel.core.interpret.bilinear import bilinear
from jaxaccel.core.interpret.chains import Fused, Link, Operand, Product, Program, with_derivative_of
from jaxaccel.core.interpret.compressed import ARRAY_RULES, Compressed, array_rule, is_compressed, register
from jaxaccel.core.interpret.evaluate import transform
from jaxaccel.core.interpret.hoist_products import hoist
from jaxaccel.core.interpret.jaxprs import find_used, first_uses
from jaxaccel.core.interpret.transformation import Observation, Rule, Transformation

__all__ = [
    "ARRAY_RULES",
    "Compressed",
    "Fused",
    "Link",
    "Observation",
    "Operand",
    "Product",
    "Program",
    "Rule",
    "Transformation",
    "array_rule",
    "bilinear",
    "find_used",
    "first_uses",
    "hoist",
    "is_compressed",
    "register",
    "transform",
    "with_derivative_of",
]
