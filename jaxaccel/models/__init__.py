"""Networks for images, texts and sounds in plain Flax NNX: nothing here depends on the rest of jaxaccel."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
