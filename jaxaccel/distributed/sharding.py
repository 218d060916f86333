"""Which axis of which array is split over which axis of the mesh, chosen by path and shape.

Tensor parallelism follows Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053): the first matrix of a
pair is split by output, the second by input, so that one all-reduce per pair is all the talk there is.
Fully sharded data parallelism follows ZeRO stage 3 (Rajbhandari et al. 2020, arXiv:1910.02054).
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxaccel.core.interpret import is_compressed
from jaxaccel.core.paths import matches, path_text
from jaxaccel.distributed.mesh import DATA, FSDP, MODEL


class Rule(NamedTuple):
    """Which axis of an array goes over ``model``."""

    where: str
    """Paths."""
    axis: int
    """The axis, from the end; 0: the array is not split."""
    counts: str = ""
    """What the axis counts."""


# The first that matches wins. Biases follow their kernel's output axis. Optimizer moments carry their parameter's path
# as a suffix, so they match too.
TENSOR_PARALLEL: tuple[Rule, ...] = (
    Rule("**/{attention,cross_attention}/out/kernel", -3, "heads"),  # (heads, head_dim, width)
    Rule("**/{attention,cross_attention}/out/bias", 0),
    Rule(
        "**/{attention,cross_attention}/*/kernel", -2, "heads"
    ),  # query, key, value: (width, heads, head_dim)
    Rule("**/{attention,cross_attention}/*/bias", -2, "heads"),
    Rule("**/mlp/down/kernel", -2, "inputs"),
    Rule("**/mlp/down/bias", 0),
    Rule("**/mlp/*/kernel", -1, "outputs"),
    Rule("**/mlp/*/bias", -1, "outputs"),
    Rule("**/{dense,hidden}/kernel", -1, "outputs"),
    Rule("**/{dense,hidden}/bias", -1, "outputs"),
)

# Splitting small arrays costs a gather and saves nothing.
FSDP_MIN_SIZE = 2**12


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How the array at `path` (``blocks/0/mlp/up/kernel``) of `shape` is split over `mesh`."""
    axes: list[str | None] = [None] * len(shape)
    if mesh.shape[MODEL] > 1:
        rule = rule_of(path)
        axis = rule.axis if rule else 0
        if -len(shape) <= axis < 0 and shape[axis] % mesh.shape[MODEL] == 0:
            axes[axis] = MODEL
    if mesh.shape[FSDP] > 1 and math.prod(shape) >= FSDP_MIN_SIZE:
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape[FSDP] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = FSDP
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def rule_of(path: str) -> Rule | None:
    """The rule by which the array at `path` is split over ``model``; None where no rule knows it."""
    return next((rule for rule in TENSOR_PARALLEL if matches(rule.where, path)), None)


def state_sharding(tree: Any, mesh: Mesh) -> Any:
    """A tree of `NamedSharding`, one for each array (or `jax.ShapeDtypeStruct`) of `tree`.

    The arrays in a compressed one are split as what it stands for, but for axes along which they are shared.
    """

    def leaf(path: tuple[Any, ...], x: Any) -> Any:
        spec = partition_spec(path_text(path), x.shape, mesh)
        return jax.tree.map(lambda part: NamedSharding(mesh, _fitting(spec, part.shape, mesh)), x)

    return jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=is_compressed)


def _fitting(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """`spec` without the axes that it does not divide in an array of `shape`."""
    return PartitionSpec(
        *(
            name if name and size % mesh.shape[name] == 0 else None
            for name, size in zip(spec, shape, strict=False)
        )
    )


def placed(shapes: Any, shardings: Any) -> Any:
    """The `jax.ShapeDtypeStruct`s of `shapes` with the sharding of each."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
    )


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """The batch axis over ``data`` and ``fsdp``, behind `leading` axes that are not split."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, (DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, PartitionSpec())
