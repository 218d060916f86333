"""Runs of equal blocks as one loop, so that a program's size and compile time do not grow with the depth.

XLA:CPU runs convolutions inside a loop without its threaded kernels: there it costs speed, as
`python -m benchmarks models_scan` shows.
"""

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxaccel.models.layers.blocks import StochasticDepth

PyTree = Any

_STACKED = "stacked"
"""The attribute of `Scan` that holds the blocks, by which their arrays are known in a tree."""

_REST = nnx.All(nnx.Variable, nnx.Not(nnx.Param))
"""What a block may change as it is called: statistics and random streams."""


class Scan(nnx.Module):
    """Equal blocks, one after the other, as one loop.

    Parameters stand where those of a single block would, below ``stacked``, with an axis for the blocks in front.
    Random streams and statistics are each block's own, so are the rates of stochastic depth. The backward pass keeps
    the products of each block and computes the rest anew.

    Args:
      blocks: modules that differ in nothing but arrays and rates of `StochasticDepth`; they map x to its like.

    Raises:
      ValueError: the blocks are not equal.
    """

    def __init__(self, blocks: Sequence[nnx.Module]) -> None:
        if len({_structure(block) for block in blocks}) != 1:
            raise ValueError(f"Scan: takes blocks that differ only in their arrays, not these {len(blocks)}")
        self.rates = tuple(tuple(drop.rate for drop in _drops(block)) for block in blocks)
        graph, _ = nnx.split(blocks[0])
        self.stacked = nnx.merge(graph, _stack([nnx.state(block) for block in blocks]))

    def __call__(self, x: jax.Array, *others: Any) -> jax.Array:
        """The last block's output, of the shape of `x`; each block also gets `others`, a mask for instance."""
        graph, params, rest = nnx.split(self.stacked, nnx.Param, _REST)

        def step(x: jax.Array, block: tuple[Any, Any, jax.Array]) -> tuple[jax.Array, Any]:
            *states, rates = block
            module: Any = nnx.merge(graph, *states)
            for drop, rate in zip(_drops(module), rates, strict=True):
                drop.rate = rate
            return _split_by_example(module(_split_by_example(x), *others)), nnx.state(module, _REST)

        # All that the backward pass of a loop needs is stacked, and copied: what is cheap is computed anew instead.
        light = jax.checkpoint(step, policy=_is_product, prevent_cse=False)
        x, rest = jax.lax.scan(light, x, (params, rest, jnp.asarray(self.rates)))
        nnx.update(self.stacked, rest)
        return x


def sequence(blocks: Iterable[nnx.Module], scan: bool) -> nnx.List:
    """`blocks` in a list, to be called one after the other; with `scan`, each run of equal ones is one `Scan`."""
    if not scan:
        return nnx.List(list(blocks))
    runs = [list(run) for _, run in itertools.groupby(blocks, _structure)]
    return nnx.List([run[0] if len(run) == 1 else Scan(run) for run in runs])


def unstack(tree: PyTree) -> PyTree:
    """Parameters or state of a scanned model as those of the same model without ``scan``.

    Args:
      tree: nested dictionaries of arrays, as `nnx.to_pure_dict` or `jaxaccel.models.adapter.as_model` make them;
        lists of blocks have numbers as keys.
    """
    if not _is_list(tree):
        return {name: unstack(part) for name, part in tree.items()} if isinstance(tree, Mapping) else tree
    blocks: list[PyTree] = []
    for _, part in sorted(tree.items()):
        if part.keys() != {_STACKED}:
            blocks.append(unstack(part))
            continue
        count = len(jax.tree.leaves(part)[0])
        blocks += [jax.tree.map(lambda x, i=i: x[i], part[_STACKED]) for i in range(count)]
    return dict(enumerate(blocks))


def stack(tree: PyTree, like: PyTree) -> PyTree:
    """Parameters or state of a model without ``scan`` as those of the scanned one.

    Args:
      tree: nested dictionaries of arrays, as in `unstack`.
      like: those of the scanned model; of its arrays only the shapes count.
    """
    if not isinstance(like, Mapping):
        return tree
    if not _is_list(like):
        return {name: stack(tree[name], part) for name, part in like.items()}
    blocks = iter([block for _, block in sorted(tree.items())])

    def one(part: PyTree) -> PyTree:
        if part.keys() != {_STACKED}:
            return stack(next(blocks), part)
        return {_STACKED: _stack(list(itertools.islice(blocks, jax.tree.leaves(part)[0].shape[0])))}

    return {i: one(part) for i, part in sorted(like.items())}


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    """The policy of `jax.checkpoint` that keeps matrix products and convolutions."""
    return primitive.name in ("dot_general", "conv_general_dilated")


def _split_by_example(x: jax.Array) -> jax.Array:
    """`x` (B, ...) with its examples over the axes ``data`` and ``fsdp`` of the mesh that is set, where there are such.

    Else XLA may split what a loop carries as it splits the weights, and sum the gradients of both.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in ("data", "fsdp") if name in mesh.axis_names)
    if not axes or x.shape[0] % math.prod(mesh.shape[name] for name in axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def _drops(block: nnx.Module) -> list[StochasticDepth]:
    return [module for _, module in nnx.iter_modules(block) if isinstance(module, StochasticDepth)]


def _structure(block: nnx.Module) -> Hashable:
    """Equal for blocks that one `Scan` may hold."""
    twin = nnx.merge(*nnx.split(block))
    for drop in _drops(twin):
        drop.rate = 0.0
    graph, state = nnx.split(twin)
    return graph, tuple((x.shape, x.dtype) for x in jax.tree.leaves(state))


def _is_list(tree: PyTree) -> bool:
    return isinstance(tree, Mapping) and bool(tree) and all(isinstance(key, int) for key in tree)


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)
