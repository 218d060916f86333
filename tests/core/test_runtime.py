"""What a process sets up before it trains."""

import platform
import subprocess
import sys
import types

import jax
import pytest

from jaxaccel.core import runtime

ALLOCATES = """
import ctypes
from jaxaccel.core import runtime
{setting}
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
memory = libc.malloc(3 << 30)  # never touched
end = libc.sbrk(0)
libc.free(memory)
print(libc.sbrk(0) == end and memory < end)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_freed_memory_is_kept_however_much_it_is(monkeypatch):
    monkeypatch.delenv("JAXACCEL_ALLOCATOR", raising=False)

    def kept(setting):
        command = [sys.executable, "-c", ALLOCATES.format(setting=setting)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert kept("assert runtime.keep_freed_memory() == 'glibc keeps freed memory'") == "True"
    assert kept("") == "False"


def test_the_allocator_can_be_left_alone(monkeypatch):
    monkeypatch.setenv("JAXACCEL_ALLOCATOR", "0")
    assert runtime.keep_freed_memory() == "left alone (JAXACCEL_ALLOCATOR=0)"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"argument": 100, "output": 60, "temp": 40, "alias": 50, "peak": 0}, 150),  # as on a CPU
        ({"argument": 100, "output": 60, "temp": 0, "alias": 50, "peak": 400}, 400),  # as on a TPU
        ({"argument": 100, "output": 60, "temp": 40, "alias": 50}, 150),  # a version without a peak
    ],
)
def test_peak_bytes(counts, expected):
    peak = counts.pop("peak", None)
    memory = types.SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in counts.items()})
    if peak is not None:
        memory.peak_memory_in_bytes = peak
    assert runtime.peak_bytes(types.SimpleNamespace(memory_analysis=lambda: memory)) == expected
    assert runtime.peak_bytes(None) is None


@pytest.mark.parametrize(
    ("stats", "free"),
    [
        ({"bytes_limit": 100, "bytes_in_use": 30}, 70),
        ({"bytes_limit": 100}, 100),
        ({"bytes_in_use": 30}, None),
        (None, None),
    ],
)
def test_free_memory_is_what_the_allocator_has_left(stats, free):
    gpu = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    assert runtime.free_memory(gpu) == free
    assert runtime.free_memory(jax.devices()[0]) == runtime.device_memory(jax.devices()[0])
