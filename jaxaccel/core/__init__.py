"""What everything else stands on: programs read and evaluated, compressed arrays, compiled HLO, checked options."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["arrays", "formats", "hlo", "interpret", "timing"]
)
