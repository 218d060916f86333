"""Sizes that are known when the model runs, as ONNX computes them."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

from jaxaccel.errors import UserError

_FUNCTIONS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}
_OPERATORS: Mapping[type, str] = {
    ast.Add: "Add",
    ast.Sub: "Sub",
    ast.Mult: "Mul",
    ast.FloorDiv: "Div",
    ast.Mod: "Mod",
}


def write_dimension(
    dimension: Any,
    variable: Callable[[str], str],
    number: Callable[[int], str],
    node: Callable[..., str],
) -> str:
    """The name of an int64 value (1,) that holds a size.

    Args:
      dimension: an integer, or a symbolic dimension of `jax.export`, whose text is an expression of its variables.
      variable: name of a variable -> its value.
      number: integer -> its constant.
      node: writes an operator: ``node("Add", a, b)``.

    Raises:
      UserError: the expression has an operation that is not known.
    """

    def write(tree: ast.AST) -> str:
        match tree:
            case ast.Expression(body):
                return write(body)
            case ast.Constant(value=int(value)):
                return number(value)
            case ast.Name(id=name):
                return variable(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return node("Neg", write(operand))
            case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
                return node(_OPERATORS[type(op)], write(left), write(right))
            case ast.BinOp(left, ast.Pow(), ast.Constant(value=int(power))) if power > 0:
                factor = out = write(left)
                for _ in range(power - 1):
                    out = node("Mul", out, factor)
                return out
            case ast.Call(func=ast.Name(id=name), args=[left, right]) if name in _FUNCTIONS:
                return node(_FUNCTIONS[name], write(left), write(right))
        raise UserError(f"the size {dimension} cannot be written in ONNX: export for one batch size")

    return write(ast.parse(str(dimension).replace("^", "**"), mode="eval"))
