"""oneDNN's kernels as calls of XLA:CPU: the handlers to register, and what oneDNN found in the processor.

`jaxaccel.core.kernels` registers the handlers and says what each of their attributes means.
"""

import ctypes
import functools
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

ONEDNN = "onednn-cpu-gomp"
"""The distribution whose shared library is loaded: oneDNN with GNU's OpenMP."""
WAITING = "OMP_WAIT_POLICY"
"""The variable that says how threads of OpenMP wait for work."""
HANDLERS = ("jaxaccel_onednn_convolution", "jaxaccel_onednn_product")
"""Names of the calls, which exported programs name too."""


@functools.cache
def _load() -> ctypes.CDLL:
    try:
        distribution = importlib.metadata.distribution(ONEDNN)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"{ONEDNN} is not installed: pip install {ONEDNN}==2023.2.0") from None
    files = [file for file in distribution.files or () if file.name == "libdnnl.so.3"]
    if not files:
        raise ImportError(f"{ONEDNN} has no libdnnl.so.3: pip install --force-reinstall {ONEDNN}==2023.2.0")
    path = Path(str(distribution.locate_file(files[0]))).resolve()
    given = os.environ.get(WAITING)
    # Threads that wait would keep XLA's, and other processes, off the cores. OpenMP reads this when it is loaded.
    os.environ[WAITING] = given or "passive"
    try:
        # The kernels need a library of its name, and find it loaded. It is not made global: PyTorch has another oneDNN.
        ctypes.CDLL(str(path))
        return ctypes.CDLL(str(Path(__file__).parent / "kernels.so"))
    except OSError as error:
        raise ImportError(f"oneDNN's kernels cannot be loaded: {error}") from None
    finally:
        if given is None:
            del os.environ[WAITING]


def list_handlers() -> Mapping[str, Any]:
    """Gives a capsule for ``jax.ffi.register_ffi_target`` by the name of each call.

    Raises:
      ImportError: the shared library of oneDNN is missing or does not load.
    """
    library = _load()
    return {name: jax.ffi.pycapsule(getattr(library, name)) for name in HANDLERS}


def find_isa() -> str:
    """Names the instructions that oneDNN uses, as ``ONEDNN_MAX_CPU_ISA`` does: ``AVX2``, ``AVX512_CORE_AMX``.

    Raises:
      ImportError: as `list_handlers`.
    """
    function = _load().jaxaccel_onednn_isa
    function.restype = ctypes.c_char_p
    return function().decode()


def find_implementation(numbers: Sequence[int]) -> str:
    """Names what oneDNN computes a convolution by, such as ``brgconv:avx512_core``; empty where it has nothing.

    Args:
      numbers: as `jaxaccel_onednn_find_implementation` in ``src/handlers.cc`` reads them.

    Raises:
      ImportError: as `list_handlers`.
    """
    function, name = _load().jaxaccel_onednn_find_implementation, ctypes.create_string_buffer(128)
    function((ctypes.c_int64 * len(numbers))(*numbers), name, ctypes.c_size_t(len(name)))
    return name.value.decode()


def count_threads() -> int:
    """Counts the threads that compute a kernel: those of OpenMP, which are the cores of the process.

    Raises:
      ImportError: as `list_handlers`.
    """
    return _load().jaxaccel_onednn_threads()
