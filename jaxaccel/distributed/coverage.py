"""What an axis of the mesh leaves whole, so that every device holds it and repeats the work on it."""

import itertools
import math
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.paths import path_text
from jaxaccel.distributed.mesh import FSDP, MODEL
from jaxaccel.distributed.sharding import FSDP_MIN_SIZE, partition_spec, rule_of
from jaxaccel.errors import UserError, option

MIN_SHARE = 0.01
"""Of the parameters that an axis has to split: else its devices all compute the same."""
MAX_REPLICATED_BYTES = 2**20
"""Bytes from which an array that stays whole, in all layers together, is worth a line."""


class Whole(NamedTuple):
    """A parameter that an axis does not split."""

    path: str
    nbytes: int
    reason: str


def check_split(params: Any, mesh: Mesh) -> list[str]:
    """Checks that each axis of `mesh` which is there to split parameters does so.

    Args:
      params: arrays, or `jax.ShapeDtypeStruct`s.
      mesh: of the run.

    Returns:
      A line for each array that stays whole on an axis and takes over 1 MiB in all layers together, with the reason.

    Raises:
      UserError: an axis larger than 1 splits less than 1% of the parameters.
    """
    lines = []
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_compressed)
    for axis in (FSDP, MODEL):
        if mesh.shape[axis] == 1:
            continue
        # Small arrays stay whole under fsdp on purpose; its devices share the batch all the same.
        meant = [math.prod(x.shape) for _, x in leaves]
        size = sum(n for n in meant if axis == MODEL or n >= FSDP_MIN_SIZE)
        split = sum(math.prod(x.shape) for path, x in leaves if _splits(path_text(path), x.shape, mesh, axis))
        whole = [_whole(path_text(path), x, mesh, axis) for path, x in leaves]
        if size and split < MIN_SHARE * size:
            raise UserError(_nothing_gained(axis, mesh.shape[axis], split / size, whole))
        lines += _told(axis, [x for x in whole if x.reason])
    return lines


def _splits(path: str, shape: tuple[int, ...], mesh: Mesh, axis: str) -> bool:
    return axis in partition_spec(path, shape, mesh)


def _whole(path: str, x: Any, mesh: Mesh, axis: str) -> Whole:
    """Of a parameter that is split the reason is empty."""
    nbytes = math.prod(x.shape) * x.dtype.itemsize
    if _splits(path, x.shape, mesh, axis):
        return Whole(path, nbytes, "")
    count = mesh.shape[axis]
    if axis == FSDP:
        small = math.prod(x.shape) < FSDP_MIN_SIZE
        sizes = " x ".join(map(str, x.shape))
        why = f"fewer than {FSDP_MIN_SIZE:,} numbers" if small else f"no axis of {sizes} divides by {count}"
        return Whole(path, nbytes, why)
    rule = rule_of(path)
    if rule is None:
        return Whole(path, nbytes, "tensor parallelism splits attention, mlp, dense and hidden layers only")
    if not -len(x.shape) <= rule.axis < 0:
        return Whole(path, nbytes, "it is added after the sum over the devices")
    return Whole(path, nbytes, f"{x.shape[rule.axis]} {rule.counts} do not divide by {count}")


def _nothing_gained(axis: str, count: int, share: float, whole: list[Whole]) -> str:
    largest = max(whole, key=lambda x: x.nbytes)
    other = FSDP if axis == MODEL else "data"
    so = "do the same work" if axis == MODEL else "hold all of them"
    return (
        f"{option(f'mesh.{axis}', count)} splits {share:.1%} of the parameters, so that all {count} devices would {so} "
        f"({largest.path}: {largest.reason}): use {option(f'mesh.{other}')}, or another number"
    )


def _told(axis: str, whole: list[Whole]) -> list[str]:
    """One line for the same array of all layers."""

    def kind(x: Whole) -> tuple[str, str]:
        return re.sub(r"(?<=/)\d+(?=/)", "*", x.path), x.reason

    lines = []
    for (path, reason), group in itertools.groupby(sorted(whole, key=kind), kind):
        sizes = [x.nbytes for x in group]
        if sum(sizes) > MAX_REPLICATED_BYTES:
            number = f"{len(sizes)} arrays, " if len(sizes) > 1 else ""
            size = f"{number}{sum(sizes) / 2**20:.1f} MiB"
            lines.append(f"warning: every device along {axis} holds {path} whole ({size}): {reason}")
    return lines
