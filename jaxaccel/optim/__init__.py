"""Optimizers and schedules: what Optax has, by name, and the few things that it has not."""

from jaxaccel.optim.optimizer import Optimizer, is_on
from jaxaccel.optim.schedule import Schedule

__all__ = ["Optimizer", "Schedule", "is_on"]
