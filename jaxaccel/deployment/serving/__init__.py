"""Serving: engines behind the Open Inference Protocol v2, by HTTP and gRPC, their requests joined into batches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
