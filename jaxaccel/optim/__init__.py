"""Optimizers and schedules: what Optax has, by name, and the few things that it has not."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
