"""The one place that opens bundles for serving, and checks their signatures."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxaccel.deployment.serving.sources import Load, Opened
from jaxaccel.errors import UserError

Verify = Callable[[Path, Path], Any]
"""(path, key) -> raises a UserError where the bundle is not signed by that key."""


def open_served(path: Path, engine: str) -> Opened:
    """Opens a bundle to be served.

    Args:
      path: its directory.
      engine: ``auto``, ``xla``, ``onnxruntime`` or ``openvino``.

    Raises:
      UserError: it is no bundle, or has nothing for that engine.
    """
    bundle = _import("bundle").open_bundle(path)
    predictor = bundle.predictor() if hasattr(bundle, "predictor") else None
    return Opened(bundle.name, bundle.engine(engine), predictor)


def verify(path: Path, key: Path) -> None:
    """Checks that a bundle is signed.

    Raises:
      UserError: it is not, or not by that key.
    """
    _import("sign").verify_bundle(path, key)


def load_verified(load: Load, verify: Verify, key: Path) -> Load:
    """Opens only what is signed by `key`."""

    def load_signed(path: Path, engine: str) -> Opened:
        verify(path, key)
        return load(path, engine)

    return load_signed


def _import(name: str) -> Any:
    try:
        return importlib.import_module(f"jaxaccel.deployment.{name}")
    except ModuleNotFoundError as error:
        raise UserError(f"this version cannot open bundles: it lacks jaxaccel.deployment.{name}") from error
