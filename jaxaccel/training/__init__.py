"""One run: from a recipe to the loop, its directory, its checkpoints and its result."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
