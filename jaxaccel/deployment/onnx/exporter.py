"""A program evaluated into an ONNX graph: the interpreter whose values are tensors of that graph."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxaccel.core.arrays import CodebookArray, LowRankArray
from jaxaccel.core.interpret import ARRAY_RULES, Rule, Transformation, is_compressed
from jaxaccel.core.interpret.interpreter import Interpreter
from jaxaccel.core.interpret.jaxprs import Place, name_rule, split_consts
from jaxaccel.core.sites import SITES
from jaxaccel.deployment.onnx.builder import Builder, count
from jaxaccel.deployment.onnx.tensor import ComplexTensor, Tensor, is_static
from jaxaccel.errors import UserError

MAX_FOLDED_ITEMS = 1024
"""What becomes larger than this when it is broadcast is kept as it was, and broadcast by the operators."""
INLINED: Mapping[str, str] = {
    **dict.fromkeys(("jit", "pjit", "remat2", "checkpoint", "remat", "shard_map", "eval_jaxpr"), "jaxpr"),
    **dict.fromkeys(("closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
}
"""Calls that are written out where they stand, and the parameter that holds their program."""
SIZE = "dim_as_value"
"""The primitive that gives a size that is left open as a number."""
LOOPS: dict[str, Callable[..., Any]] = {}
"""By primitive: how to write a loop or branch. `rules.loops` fills it."""


class Exporter(Interpreter):
    """One export. What depends on constants alone is computed now."""

    def __init__(self, t: Transformation, builder: Builder) -> None:
        super().__init__(t)
        self.builder = builder

    def _equation(
        self, eqn: Any, operands: list[Any], paths: list[str | None], place: Place, observed: dict[str, Any]
    ) -> tuple[Sequence[Any], Sequence[str | None]]:
        name = eqn.primitive.name
        if name in INLINED:
            found = eqn.params.get(INLINED[name], eqn.params.get("jaxpr"))
            outs, _, out_paths = self.evaluate(*split_consts(found), operands, paths, place)
            return outs, out_paths
        if not any(isinstance(x, Tensor) for x in operands) and not _grows(eqn, operands):
            return super()._equation(eqn, operands, paths, place, observed)
        if name in LOOPS:
            return LOOPS[name](self, eqn, operands, paths, place)
        rule = self.t.rules.get(name_rule(eqn))
        if rule is None:
            where = f" ({self._name(eqn, paths, place)})" if any(paths) else ""
            raise UserError(f"the primitive {name}{where} cannot be exported to ONNX: it has no rule")
        if name not in ("real", "imag") and any(isinstance(x, ComplexTensor) for x in operands):
            raise UserError(
                f"the primitive {name} of complex numbers cannot be exported to ONNX, which has none"
            )
        meant = self._name(eqn, paths, place)
        operands = [self._readable(x, name, var.aval) for x, var in zip(operands, eqn.invars, strict=True)]
        out = self._ask(rule, eqn, operands, paths, place, observed, meant)
        if out is NotImplemented:
            out = self._ask_arrays(rule, eqn, operands, paths, place, observed, meant)
        outs = out if isinstance(out, list) else [out]
        return outs, [None] * len(outs)

    def _readable(self, x: Any, primitive: str, like: Any) -> Any:
        """`x`, or what it stands for where the rule of the primitive knows no such array; numbers have their dtype."""
        if isinstance(x, (bool, int, float)):
            return np.asarray(x, like.dtype)
        if isinstance(x, CodebookArray):
            return _look_up(self.builder, x)
        return (
            x.materialize() if is_compressed(x) and primitive not in SITES and primitive != "bilinear" else x
        )

    def _ask_arrays(self, rule: Rule, eqn: Any, operands: list[Any], *where: Any) -> Any:
        """What a low-rank array makes of the equation, else what `rule` does with dense ones."""
        for x in operands:
            found = ARRAY_RULES[LowRankArray].get(eqn.primitive.name) if isinstance(x, LowRankArray) else None
            out = NotImplemented if found is None else self._ask(found, eqn, operands, *where)
            if out is not NotImplemented:
                return out
        dense = [x.materialize() if is_compressed(x) else x for x in operands]
        out = self._ask(rule, eqn, dense, *where)
        if out is NotImplemented:
            raise UserError(f"this form of the primitive {eqn.primitive.name} cannot be exported to ONNX")
        return out

    def _ask(
        self, rule: Rule, eqn: Any, operands: list[Any], paths: list[str | None], place: Place,
        observed: dict[str, Any], name: str,
    ) -> Any:  # fmt: skip
        known = not any(isinstance(x, Tensor) for x in operands) and not _grows(eqn, operands)
        if known and rule in self.t.rules.values():
            return NotImplemented
        return super()._ask(rule, eqn, operands, paths, place, observed, name)

    def _expanded(
        self, f: Callable[..., Any], values: Sequence[Any], names: Sequence[str], paths: list[str | None],
        place: Place, observed: dict[str, Any],
    ) -> Any:  # fmt: skip
        path = next((p for p in reversed(paths[:2]) if p is not None), None)
        inner = [None] * (len(values) - len(names)) + [path and f"{path}/{name}" for name in names]
        closed = jax.make_jaxpr(f)(*[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in values])
        return self.evaluate(*split_consts(closed), values, inner, place)[0][0]


def _grows(eqn: Any, operands: Sequence[Any]) -> bool:
    """Whether the result of constants had better not be computed now: its size is open, or far larger than theirs."""
    if eqn.primitive.name == SIZE or not all(
        is_static(getattr(out.aval, "shape", ())) for out in eqn.outvars
    ):
        return True
    if eqn.primitive.name != "broadcast_in_dim":
        return False
    size = count(eqn.outvars[0].aval.shape)
    return size > MAX_FOLDED_ITEMS and size > math.prod(getattr(operands[0], "shape", ()))


def _look_up(builder: Builder, x: CodebookArray) -> Any:
    """Shared values as the file keeps them: a table, and for each number its row there."""
    if x.codebook.ndim != 1:
        return x.materialize()
    indices = builder.cast(builder.constant(x.indices), x.indices.dtype, "int32")
    name = builder.node("Gather", builder.constant(x.codebook), indices, axis=0)
    shape = tuple(x.shape)
    return Tensor(name, shape, x.dtype, tuple(range(len(shape))), shape)
