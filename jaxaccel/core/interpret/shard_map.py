"""How the interpreter enters `jax.shard_map`: compressed arrays are split over devices as what they stand for."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxaccel.core.interpret.compressed import is_compressed
from jaxaccel.core.interpret.control_flow import Body, Outs, Paths, Values, enters
from jaxaccel.core.interpret.interpreter import Interpreter
from jaxaccel.core.interpret.jaxprs import Place


@enters("shard_map")
def _shard_map(i: Interpreter, eqn: Any, values: Values, paths: Paths, place: Place, observed: dict) -> Outs:
    p = eqn.params
    body = Body(i, p["jaxpr"], paths, place)
    manual = tuple(name for name in p["mesh"].axis_names if name in p["newly_manual_axes"])

    def local(*values: Any) -> tuple[list[Any], dict[str, Any]]:
        outs, seen = body.dense(*values)
        return outs, jax.tree.map(lambda x: x[None], seen)  # one a device, side by side

    pairs = [
        _split(i, x, spec, p["mesh"], place, path)
        for x, spec, path in zip(values, p["in_specs"], paths, strict=True)
    ]
    outs, seen = jax.shard_map(
        local, mesh=p["mesh"], in_specs=tuple(spec for _, spec in pairs),
        out_specs=(list(p["out_specs"]), PartitionSpec(manual)),
        axis_names=set(p["newly_manual_axes"]), check_vma=p["check_vma"],
    )(*(value for value, _ in pairs))  # fmt: skip
    if i.t.observation is not None:
        observed.update({name: i.t.observation.reduce(value) for name, value in seen.items()})
    return outs, [None] * len(outs)


def _split(
    i: Interpreter, value: Any, spec: PartitionSpec, mesh: Any, place: Place, path: str | None
) -> tuple[Any, Any]:
    """A value and how it is split: a compressed one leaf by leaf, where its type says how (`along_devices`)."""
    if not is_compressed(value):
        return value, spec
    names: Sequence[Any] = tuple(spec) + (None,) * (len(value.shape) - len(spec))
    parts = [math.prod(mesh.shape[name] for name in _several(axis)) for axis in names]
    if not hasattr(value, "along_devices"):
        return i.dense(value, place, "does not say how it is split over devices", path), spec
    value, split = value.along_devices(names, parts)
    return value, jax.tree.map(lambda axes: PartitionSpec(*axes), split, is_leaf=lambda x: type(x) is tuple)


def _several(axis: Any) -> tuple[Any, ...]:
    """The mesh axes that one axis of an array is split over."""
    return () if axis is None else axis if isinstance(axis, tuple) else (axis,)
