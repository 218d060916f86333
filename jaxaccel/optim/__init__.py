"""Optimizers and schedules: what Optax has, by name, and the few things that it has not."""

from jaxaccel.optim.optimizer import Optimizer
from jaxaccel.optim.schedule import Schedule
from jaxaccel.optim.sparse import Sparse, sparse

__all__ = ["Optimizer", "Schedule", "Sparse", "sparse"]
