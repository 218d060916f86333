"""What a model costs, from shapes alone: nothing is computed or compiled.

Both functions also take a model without arrays, ``nnx.eval_shape(lambda: resnet50(rngs=nnx.Rngs(0)))``.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def count_parameters(model: nnx.Module) -> int:
    """Numbers that training changes."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def count_multiply_adds(model: nnx.Module, shape: tuple[int, ...]) -> int:
    """Multiplications, each with an addition, of the matrix products and convolutions of inference.

    That is what papers call FLOPs of a vision model. Zeros of a padding count.

    Args:
      model: takes a batch.
      shape: of one example, (H, W, C).
    """
    graph, state = nnx.split(model)

    def infer(state: Any, x: jax.Array) -> Any:
        module: Any = nnx.merge(graph, state)
        module.eval()
        return module(x)

    return _products(jax.make_jaxpr(infer)(state, jax.ShapeDtypeStruct((1, *shape), jnp.float32)).jaxpr)


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
        else:
            # Of a scan the body, whose program it calls `length` times.
            total += equation.params.get("length", 1) * sum(map(_products, _programs(equation.params)))
    return total


def _programs(params: dict[str, Any]) -> list[Any]:
    """The programs that an equation calls."""
    found = [getattr(value, "jaxpr", value) for value in params.values()]
    return [value for value in found if hasattr(value, "eqns")]
