"""Variants: one network in every precision that our transformations give it."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxaccel as ja
from benchmarks.networks import Network, make_function
from jaxaccel.core import hlo

PyTree = Any
Function = Callable[[PyTree, jax.Array], jax.Array]

NAMES = (
    "float32, folded", "float32, folded, retargeted", "bfloat16", "bfloat16, folded", "int8 dynamic",
    "int8 dynamic, folded", "int8 static, folded", "int8 static, folded, retargeted", "int8 weight-only",
    "int8 static, 4 at a time",
)  # fmt: skip
"""All variants but float32, by which they are judged."""
LIMITS = {"float32": 1e-3, "bfloat16": 0.05, "int8": 0.15}
"""Relative errors above which a result is no longer that of the same network."""

TILE = 4
"""Images of a tile."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A function of (parameters, inputs), and the parameters it takes."""

    name: str
    group: str
    """jaxaccel, qwix or form."""
    dtype: str
    """What it is to compute in, and with it the error it may make (`LIMITS`)."""
    f: Function
    params: PyTree


class Compiled:
    """A variant compiled for one batch, its arguments on the device: which is what is timed."""

    def __init__(self, variant: Variant, x: jax.Array) -> None:
        self.name, self.group, self.dtype = variant.name, variant.group, variant.dtype
        self._arguments = jax.block_until_ready(jax.device_put((variant.params, x)))
        self._call = jax.jit(variant.f).lower(*self._arguments).compile()
        self.weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(variant.params))

    def output(self) -> np.ndarray:
        """Gives the result of one call, in float32."""
        return np.asarray(self._call(*self._arguments), np.float32)

    def call(self) -> jax.Array:
        """Runs once; the result is not waited for."""
        return self._call(*self._arguments)

    def count_compiled_share(self) -> float:
        """Counts the share of FLOPs whose operands both have 16 bits or fewer in the optimized HLO."""
        operations = hlo.operations(self._call.as_text() or "")
        flops = [operation.flops * (operation.trips or 1) for operation in operations]
        narrow = [max(map(hlo.bits, operation.operand_dtypes)) <= 16 for operation in operations]
        return sum(n for n, is_narrow in zip(flops, narrow, strict=True) if is_narrow) / max(1, sum(flops))


def make_variants(network: Network, batch_size: int) -> Iterator[Variant]:
    """Yields float32 first, by which the others are judged; then each transformation.

    Folding and calibration see other examples than those that are timed, of the same batch size.
    """
    f, variables = make_function(network)
    yield Variant("float32", "jaxaccel", "float32", f, variables)
    x, *more = (network.examples(batch_size, seed) for seed in (2, 3, 4))
    folded, weights = ja.fold(f, variables, x)
    yield Variant("float32, folded", "jaxaccel", "float32", folded, weights)
    yield Variant("float32, folded, retargeted", "jaxaccel", "float32", ja.retarget(folded), weights)
    yield Variant("bfloat16", "jaxaccel", "bfloat16", ja.bfloat16(f), variables)
    yield Variant("bfloat16, folded", "jaxaccel", "bfloat16", ja.bfloat16(folded), weights)
    calibration = ja.calibrate(folded, weights, [x, *more])
    static = ja.int8(folded, calibration=calibration)
    quantized, folded_quantized = ja.quantize(variables), ja.quantize(weights)
    for name, transformed, params in (
        ("int8 dynamic", ja.int8(f), quantized),
        ("int8 dynamic, folded", ja.int8(folded), folded_quantized),
        ("int8 static, folded", static, folded_quantized),
        ("int8 static, folded, retargeted", ja.retarget(static), folded_quantized),
        ("int8 weight-only", ja.int8(f, activations="none"), quantized),
    ):
        yield Variant(name, "jaxaccel", "int8", transformed, params)
    if len(network.shape) == 3 and batch_size > TILE:
        tiled = partial(_run_in_tiles, ja.retarget(static))
        yield Variant(f"int8 static, {TILE} at a time", "jaxaccel", "int8", tiled, folded_quantized)


def _run_in_tiles(f: Function, params: PyTree, x: jax.Array) -> jax.Array:
    """Computes a few examples at a time, whose 32-bit sums stay in the cache."""
    tiles = x.reshape(-1, TILE, *x.shape[1:])
    y = jax.lax.map(partial(f, params), tiles)
    return y.reshape(-1, *y.shape[2:])


def measure_error(y: np.ndarray, reference: np.ndarray) -> float:
    """Measures the root mean square of the difference over that of the reference."""
    return float(np.linalg.norm(y - reference) / np.linalg.norm(reference))


def find_explained_share(variant: Variant, x: jax.Array) -> float | None:
    """Finds the share of FLOPs that `ja.explain` says are done in the narrow type; None for what is not transformed."""
    try:
        rows = ja.explain(variant.f, variant.params, x).rows
    except ja.UserError:
        return None
    # Weight-only products are recorded as "integers as float32": they are small in memory, not in arithmetic.
    return sum(row["share"] for row in rows if " x " in row["lowering"])
