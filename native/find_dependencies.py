"""Prints, for CMake, oneDNN's headers, oneDNN's library, and the headers of XLA's foreign function interface."""

import importlib.metadata
from pathlib import Path

import jaxlib

VERSION = "2023.2.0"


def find_file(package: str, ending: str) -> Path:
    """Finds a file that the wheel puts outside of site-packages."""
    distribution = importlib.metadata.distribution(package)
    for file in distribution.files or ():
        if str(file).endswith(ending):
            return Path(str(distribution.locate_file(file))).resolve()
    raise SystemExit(f"{package} has no {ending}: pip install --force-reinstall {package}=={VERSION}")


print(
    find_file("onednn-devel-cpu-gomp", "include/dnnl.hpp").parent,
    find_file("onednn-cpu-gomp", "libdnnl.so.3"),
    Path(jaxlib.__file__).parent / "include",
    sep=";",
)
