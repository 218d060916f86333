"""A few shared values, and which of them each element is."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxaccel.core.arrays.base import StandIn
from jaxaccel.core.interpret import array_rule, register
from jaxaccel.core.sites import Site


@register
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodebookArray(StandIn):
    """Elements that share values: ``codebook[indices]``.

    A pytree of two arrays: `indices`, uint8 of shape `shape`, and `codebook`, float32 (values,), at most 256, or
    (layers, values) of a stack, in which each layer along the first axis has its own. In memory an element takes a
    byte; packed in a file it takes what its entropy says. Products materialize it.
    """

    indices: jax.Array
    codebook: jax.Array
    real: str = dataclasses.field(default="float32", metadata={"static": True})
    """Name of the dtype it stands for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array it stands for."""
        return tuple(self.indices.shape)

    def materialize(self) -> jax.Array:
        """The dense array, of shape `shape` and dtype `dtype`; differentiable in `codebook`."""
        codebook = self.codebook.astype(self.real)
        if codebook.ndim == 2:
            return jax.vmap(lambda values, indices: values[indices])(codebook, self.indices)
        return codebook[self.indices]

    def rows(self) -> "CodebookArray":
        """The same with a codebook for each row."""
        if self.codebook.ndim == 2:
            return self
        return dataclasses.replace(self, codebook=jnp.tile(self.codebook, (self.shape[0], 1)))

    def along_devices(self, names: Sequence[Any], parts: Sequence[int]) -> tuple["CodebookArray", Any]:
        """The same, and for each leaf the mesh axes that its axes are split over: all devices have the codebook."""
        return self, dataclasses.replace(self, indices=tuple(names), codebook=())


@array_rule(CodebookArray, "pvary", "pcast", "pbroadcast")
def _leafwise(site: Site, x: CodebookArray) -> CodebookArray:
    return jax.tree.map(site.bind, x)


@array_rule(CodebookArray, "convert_element_type")
def _convert(site: Site, x: CodebookArray) -> Any:
    dtype = jnp.dtype(site.params["new_dtype"])
    return dataclasses.replace(x, real=dtype.name) if jnp.issubdtype(dtype, jnp.floating) else NotImplemented


@array_rule(CodebookArray, "copy", "copy_p")
def _same(site: Site, x: CodebookArray) -> CodebookArray:
    return x


@array_rule(CodebookArray, "transpose", "rev", "squeeze", "reshape", "slice", "broadcast_in_dim")
def _moved(site: Site, x: CodebookArray, *others: Any) -> Any:
    if x.codebook.ndim == 2:  # the axis of layers might move
        return NotImplemented
    return dataclasses.replace(x, indices=site.bind(x.indices, *others))
