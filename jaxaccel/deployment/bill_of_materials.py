"""``sbom.cdx.json`` of a bundle: what it is made of, as CycloneDX 1.6 says it (https://cyclonedx.org/docs/1.6/json/).

A software bill of materials is what scanners read: the model with its digest, every file with its own, and the packages
that wrote them. `cyclonedx-python-lib` makes it, an optional part of the extra ``sign``.
"""

import datetime
import importlib
import uuid
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from jaxaccel.deployment.manifest import WEIGHTS, Manifest

SBOM = "sbom.cdx.json"
_NOT_PACKAGES = ("python",)
"""Of the manifest's versions: what is no package of PyPI."""


def write_sbom(manifest: Manifest) -> str | None:
    """Writes the bill of the bundle of that manifest, which has all digests; None where the package is missing.

    The same manifest gives the same text.
    """
    try:
        bom_module, output = _load("model.bom"), _load("output.json")
    except ImportError:
        return None
    bom = bom_module.Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, _digest(manifest, WEIGHTS) + manifest.created)
    )
    bom.metadata.timestamp = datetime.datetime.fromisoformat(manifest.created)
    model = _describe_model(manifest)
    bom.metadata.component = model
    files = [_describe_file(name, fact) for name, fact in manifest.files.items() if name != SBOM]
    packages = [
        _describe_package(*item) for item in manifest.versions.items() if item[0] not in _NOT_PACKAGES
    ]
    for component in (*files, *packages):
        bom.components.add(component)
    bom.register_dependency(model, [*files, *packages])
    return output.JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _load(name: str) -> Any:
    """A module of the package, whose classes no type checker can read."""
    return importlib.import_module(f"cyclonedx.{name}")


def _describe_model(manifest: Manifest) -> Any:
    origin, step = manifest.origin, manifest.origin.get("step", "")
    return _load("model.component").Component(
        name=manifest.name,
        type=_load("model.component").ComponentType.MACHINE_LEARNING_MODEL,
        version=f"step {step}" if step != "" else None,
        bom_ref=f"model:{manifest.name}",
        description=f"{origin.get('model', 'a model')}, trained on {origin.get('data', 'unknown data')}",
        hashes=[_hash(_digest(manifest, WEIGHTS))],
    )


def _describe_file(name: str, fact: Mapping[str, Any]) -> Any:
    return _load("model.component").Component(
        name=name,
        type=_load("model.component").ComponentType.FILE,
        bom_ref=f"file:{name}",
        hashes=[_hash(fact["sha256"])],
    )


def _describe_package(name: str, version: str) -> Any:
    from packageurl import PackageURL

    return _load("model.component").Component(
        name=name,
        type=_load("model.component").ComponentType.LIBRARY,
        version=version,
        bom_ref=f"pypi:{name}",
        purl=PackageURL("pypi", name=name, version=version),
        licenses=_find_licenses(name),
    )


def _find_licenses(name: str) -> list[Any]:
    """The licence that a package states as SPDX has it, or as it calls it."""
    try:
        stated: Any = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return []
    text = stated.get("License-Expression") or stated.get("License") or ""
    return (
        [_load("factory.license").LicenseFactory().make_from_string(text)]
        if text and "\n" not in text
        else []
    )


def _hash(sha256: str) -> Any:
    model = _load("model")
    return model.HashType(alg=model.HashAlgorithm.SHA_256, content=sha256)


def _digest(manifest: Manifest, name: str) -> str:
    return str(manifest.files.get(name, {}).get("sha256", ""))
