"""Meshes and shardings."""

from jaxaccel.distributed.coverage import check_split
from jaxaccel.distributed.mesh import MeshShape, make_mesh
from jaxaccel.distributed.sharding import batch_sharding, placed, replicated, state_sharding

__all__ = [
    "MeshShape",
    "batch_sharding",
    "check_split",
    "make_mesh",
    "placed",
    "replicated",
    "state_sharding",
]
