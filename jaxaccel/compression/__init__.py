"""The way from a trained model to a smaller one, in steps, each with its receipt: ``python -m jaxaccel.compress``."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
