"""The one place that opens bundles for serving, and checks their signatures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxaccel.deployment.bundle import EngineName, open_bundle
from jaxaccel.deployment.deployed import load_bundle
from jaxaccel.deployment.describe import Describer
from jaxaccel.deployment.serving.sources import Load, Opened
from jaxaccel.deployment.signing import verify_bundle
from jaxaccel.errors import UserError

Verify = Callable[[Path, Path], Any]
"""(path, key) -> raises a UserError where the bundle is not signed by that key."""


def open_served(path: Path, engine: EngineName) -> Opened:
    """Opens a bundle to be served.

    Args:
      path: its directory or zip.
      engine: ``auto``, ``xla``, ``onnxruntime`` or ``openvino``.

    Raises:
      UserError: it is no bundle, or has nothing for that engine.
    """
    try:
        deployed = load_bundle(path, engine)
    except UserError:  # its task may be code of somebody's own, which only the page needs
        bundle = open_bundle(path)
        return Opened(bundle.name, bundle.engine(engine), None, bundle.manifest.list_shapes())
    bundle = deployed.bundle
    return Opened(bundle.name, deployed.engine, Describer(deployed), bundle.manifest.list_shapes())


def verify(path: Path, key: Path) -> None:
    """Checks that a bundle is signed.

    Raises:
      UserError: it is not, or not by that key.
    """
    verify_bundle(path, key)


def load_verified(load: Load, verify: Verify, key: Path) -> Load:
    """Opens only what is signed by `key`."""

    def load_signed(path: Path, engine: EngineName) -> Opened:
        verify(path, key)
        return load(path, engine)

    return load_signed
