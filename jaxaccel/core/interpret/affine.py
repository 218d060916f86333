"""Factors and offsets after a product, moved into its weights.

``(x * w) * s + b`` with s and b constant but for the output feature is ``x * (w * s) + b``: BatchNorm in inference, a
bias before it, a scale after it. `evaluate_folded` evaluates a program with such chains collected until something
else needs their value.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core as jcore

from jaxaccel.core.interpret.jaxprs import read_meaning, split_consts
from jaxaccel.core.sites import BILINEAR

_INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
"""Calls that are taken apart; of a custom derivative only the function is needed, for inference."""


@dataclasses.dataclass(frozen=True)
class Known:
    """A value that depends on parameters alone."""

    value: Any
    """The value, or None where only `vector` was made so far."""
    vector: Any
    """The same with size 1 along the axes that it was broadcast along."""
    shape: tuple[int, ...]

    def dense(self) -> Any:
        """The value in its full shape."""
        return self.value if self.value is not None else jnp.broadcast_to(self.vector, self.shape)


@dataclasses.dataclass(frozen=True)
class Affine:
    """The value ``product(x, w) * scale + shift``, not computed yet; scale and shift vary along one axis at most.

    Both are float32 or wider, whatever the dtype of the product: they are rounded once, in the end.
    """

    product: Callable[[Any], Any]
    """Weights -> the product."""
    w: Any
    w_axis: int
    """Axis of the weights that becomes the features of the result."""
    axis: int
    """That axis of the result."""
    shape: tuple[int, ...]
    dtype: Any
    """Floating; of the product."""
    scale: Any = None
    shift: Any = None

    def scaled(self, factor: Any) -> "Affine":
        """The value times `factor`."""
        scale = factor if self.scale is None else self.scale * factor
        return dataclasses.replace(
            self, scale=scale, shift=None if self.shift is None else self.shift * factor
        )

    def shifted(self, offset: Any) -> "Affine":
        """The value plus `offset`."""
        return dataclasses.replace(self, shift=offset if self.shift is None else self.shift + offset)

    def dense(self) -> Any:
        """The value. Weights too narrow for the scale stay as they are, and the product is multiplied by it."""
        if self.scale is None or not self._holds_scale():
            return self._finished(self.product(self.w), self.scale)
        sizes = [1] * self.w.ndim
        sizes[self.w_axis] = -1
        scale = jnp.broadcast_to(self.scale.reshape(-1), (self.w.shape[self.w_axis],)).reshape(sizes)
        return self._finished(self.product((self.w.astype(scale.dtype) * scale).astype(self.w.dtype)), None)

    def _holds_scale(self) -> bool:
        """Whether weights times the scale are as good as the product times the scale; float16 has too small a range."""
        w = self.w.dtype
        narrow = not jnp.issubdtype(w, jnp.floating) or jnp.finfo(w).bits < jnp.finfo(self.dtype).bits
        return not narrow and w != jnp.float16

    def _finished(self, out: Any, scale: Any) -> Any:
        wide = out
        for operation, operand in ((jnp.multiply, scale), (jnp.add, self.shift)):
            wide = wide if operand is None else operation(wide.astype(operand.dtype), operand)
        return wide.astype(out.dtype)


def evaluate_folded(closed: Any, parameters: int, values: Sequence[Any]) -> list[Any]:
    """Results of a closed jaxpr whose first `parameters` inputs are parameters, with chains folded."""
    jaxpr, consts = split_consts(closed)
    inputs = [Known(x, x, jnp.shape(x)) if k < parameters else x for k, x in enumerate(values)]
    return [_dense(x) for x in _evaluate(jaxpr, [Known(c, c, jnp.shape(c)) for c in consts], inputs)]


def _evaluate(jaxpr: Any, consts: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, values, strict=True))
    uses = collections.Counter(
        x for eqn in jaxpr.eqns for x in eqn.invars if not isinstance(x, jcore.Literal)
    ) + collections.Counter(x for x in jaxpr.outvars if not isinstance(x, jcore.Literal))

    def read(x: Any) -> Any:
        if isinstance(x, jcore.Literal):
            return Known(x.val, jnp.asarray(x.val, x.aval.dtype), jnp.shape(x.val))  # type: ignore[attr-defined]
        if isinstance(env[x], Affine) and uses[x] > 1:
            env[x] = env[x].dense()  # its value is needed twice: it is computed once
        return env[x]

    for eqn in jaxpr.eqns:
        operands = [read(x) for x in eqn.invars]
        with eqn.ctx.manager:
            outs = _equation(eqn, operands)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _equation(eqn: Any, operands: list[Any]) -> Sequence[Any]:
    name = eqn.primitive.name
    inner = _INLINED.get(name)
    if inner is not None:
        jaxpr, consts = split_consts(eqn.params[inner])
        return _evaluate(jaxpr, [Known(c, c, jnp.shape(c)) for c in consts], operands)
    if all(isinstance(x, Known) for x in operands) and operands and not eqn.effects:
        return _known(eqn, operands)
    if (
        read_meaning(eqn)[0] in BILINEAR
        and isinstance(operands[1], Known)
        and not isinstance(operands[0], Known)
    ):
        return [_product(eqn, operands[1], _dense(operands[0]), [_dense(x) for x in operands[2:]])]
    if name in _CHAIN and any(isinstance(x, Affine) for x in operands):
        out = _CHAIN[name](eqn, *operands)
        # An operand may also be what makes the result larger: a column times a row.
        if out is not None and out.shape == tuple(eqn.outvars[0].aval.shape):
            return [out]
    return _bind(eqn, [_dense(x) for x in operands])


def _bind(eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
    outs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return outs if eqn.primitive.multiple_results else [outs]


def _known(eqn: Any, operands: list[Known]) -> Sequence[Any]:
    if eqn.primitive.name == "broadcast_in_dim" and len(operands) == 1:
        sizes = [1] * len(eqn.params["shape"])
        for axis, size in zip(eqn.params["broadcast_dimensions"], jnp.shape(operands[0].vector), strict=True):
            sizes[axis] = size
        return [Known(None, jnp.reshape(operands[0].vector, sizes), tuple(eqn.params["shape"]))]
    return [Known(x, x, jnp.shape(x)) for x in _bind(eqn, [x.dense() for x in operands])]


def _product(eqn: Any, w: Known, x: Any, more: Sequence[Any]) -> Any:
    """A chain that starts with a product of weights and `x`, or the product where none can."""
    name, params, _ = read_meaning(eqn)
    out = eqn.outvars[0].aval
    numbers = params["dimension_numbers"]
    if name == "dot_general":
        (_, contracted), (_, batch) = numbers
        free = [axis for axis in range(len(w.shape)) if axis not in (*contracted, *batch)]
        w_axis, axis = (free or [0])[0], len(out.shape) - 1
    else:
        free = [numbers.rhs_spec[0]]
        w_axis, axis = free[0], numbers.out_spec[1]
    # Integers round otherwise: (x @ w) / 7 is no product with w / 7.
    if len(free) != 1 or not jnp.issubdtype(out.dtype, jnp.floating):
        return _bind(eqn, [x, w.dense(), *more])[0]

    def product(w: Any) -> Any:
        return _bind(eqn, [x, w, *more])[0]

    return Affine(product, w.dense(), w_axis, axis, tuple(out.shape), out.dtype)


def _dense(x: Any) -> Any:
    return x.dense() if isinstance(x, (Known, Affine)) else x


def _feature(chain: Affine, x: Any) -> Any:
    """`x` as a vector along the features of `chain`, or None where it varies otherwise or is not known."""
    if not isinstance(x, Known):
        return None
    sizes = jnp.shape(x.vector)
    varies = [axis for axis, size in enumerate(sizes) if size != 1]
    if sizes and (varies not in ([], [chain.axis]) or len(sizes) != len(chain.shape)):
        return None
    return jnp.asarray(x.vector, jnp.float64 if chain.dtype == jnp.float64 else jnp.float32)


def _mul(eqn: Any, a: Any, b: Any) -> Any:
    chain, other = (a, b) if isinstance(a, Affine) else (b, a)
    factor = _feature(chain, other)
    return None if factor is None else chain.scaled(factor)


def _div(eqn: Any, a: Any, b: Any) -> Any:
    factor = _feature(a, b) if isinstance(a, Affine) else None
    return None if factor is None else a.scaled(1 / factor)


def _add(eqn: Any, a: Any, b: Any) -> Any:
    chain, other = (a, b) if isinstance(a, Affine) else (b, a)
    offset = _feature(chain, other)
    return None if offset is None else chain.shifted(offset)


def _sub(eqn: Any, a: Any, b: Any) -> Any:
    if isinstance(a, Affine):
        offset = _feature(a, b)
        return None if offset is None else a.shifted(-offset)
    offset = _feature(b, a)
    return None if offset is None else _neg(eqn, b).shifted(offset)


def _neg(eqn: Any, a: Affine) -> Affine:
    return a.scaled(-jnp.ones((), jnp.float64 if a.dtype == jnp.float64 else jnp.float32))


def _convert(eqn: Any, a: Any) -> Any:
    same = eqn.invars[0].aval.dtype == eqn.params["new_dtype"]
    return a if same else None


_CHAIN: dict[str, Callable[..., Any]] = {
    "mul": _mul,
    "div": _div,
    "add": _add,
    "sub": _sub,
    "neg": _neg,
    "convert_element_type": _convert,
    "copy": lambda eqn, a: a,
}
