"""The bill of materials of a bundle: valid CycloneDX, every file with its digest, under the signature."""

import hashlib
import json
import sys

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import jaxaccel as ja
from jaxaccel.deployment.bill_of_materials import SBOM, write_sbom


@pytest.fixture(scope="module")
def bundle(digits_run, tmp_path_factory):
    place = tmp_path_factory.mktemp("bill") / "digits"
    return ja.export(digits_run.directory, place, to=("stablehlo",), batch=(1,), timed=False)


def test_it_is_valid_and_lists_every_file(bundle):
    text = (bundle.place / SBOM).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    listed = {one["name"]: one["hashes"][0]["content"] for one in bill["components"] if one["type"] == "file"}
    there = [path for path in bundle.place.rglob("*") if path.is_file()]
    assert {*listed} == {
        str(path.relative_to(bundle.place)) for path in there if path.name not in ("manifest.json", SBOM)
    }
    for name, digest in listed.items():
        assert hashlib.sha256((bundle.place / name).read_bytes()).hexdigest() == digest
    model = bill["metadata"]["component"]
    assert (model["name"], model["type"]) == ("digits", "machine-learning-model")
    assert model["hashes"][0]["content"] == listed["weights.safetensors"]
    packages = {one["name"]: one["version"] for one in bill["components"] if one["type"] == "library"}
    assert packages == {name: v for name, v in bundle.manifest.versions.items() if name != "python"}


def test_the_manifest_holds_its_digest(bundle):
    content = (bundle.place / SBOM).read_bytes()
    assert bundle.manifest.files[SBOM]["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_same_bundle_has_the_same_bill(bundle):
    assert write_sbom(bundle.manifest) == write_sbom(bundle.manifest) == (bundle.place / SBOM).read_text()


def test_without_the_package_a_bundle_has_none(bundle, digits_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cyclonedx.model.bom", None)
    without = ja.export(digits_run.directory, tmp_path / "plain", to=("stablehlo",), batch=(1,), timed=False)
    assert SBOM not in without.manifest.files and not (without.place / SBOM).exists()
