"""Meshes and shardings."""

from jaxaccel.parallel.coverage import check_split
from jaxaccel.parallel.mesh import MeshShape, make_mesh
from jaxaccel.parallel.sharding import batch_sharding, placed, replicated, state_sharding

__all__ = [
    "MeshShape",
    "batch_sharding",
    "check_split",
    "make_mesh",
    "placed",
    "replicated",
    "state_sharding",
]
