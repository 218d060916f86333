"""jaxaccel makes deep-learning models faster and smaller with JAX and XLA, and proves it.

    import jaxaccel as ja

    result = ja.train(ja.load_recipe("digits"))

The public names stand in one list, ``__init__.pyi``, which type checkers read as well. Each is imported when it is
first used, so that ``import jaxaccel`` costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
