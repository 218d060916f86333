"""Meshes and shardings."""

from jaxaccel.parallel.mesh import MeshShape, make_mesh
from jaxaccel.parallel.sharding import batch_sharding, placed, replicated, state_sharding

__all__ = ["MeshShape", "batch_sharding", "make_mesh", "placed", "replicated", "state_sharding"]
