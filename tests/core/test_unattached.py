"""Devices that are not attached: what the compilers are told of them, and what is refused."""

import importlib.util
import re

import pytest

from jaxaccel.advisor.chips import CHIPS
from jaxaccel.core import unattached
from jaxaccel.core.unattached import GPUS, NAMES, describe_gpu, find_devices, find_gpu_compiler
from jaxaccel.errors import UserError


@pytest.mark.parametrize("name", GPUS)
def test_a_description_has_the_numbers_of_the_data_sheet(name):
    gpu, text = GPUS[name], describe_gpu(GPUS[name])
    field = dict(re.findall(r"^  (\w+): (\d+)$", text, re.MULTILINE))
    assert int(field["core_count"]) == gpu.cores
    assert int(field["device_memory_size"]) == gpu.memory
    assert int(field["shared_memory_per_block_optin"]) <= int(field["shared_memory_per_core"])
    assert f'device_description_str: "{gpu.name}"' in text and text.count("{") == text.count("}")
    assert ("ACCELERATED" in text) == (gpu.capability >= (9, 0))
    assert int(field["memory_bandwidth"]) == pytest.approx(CHIPS[name].bandwidth, rel=0.01)


def test_every_device_has_a_roofline():
    assert set(NAMES) == set(CHIPS)


@pytest.mark.parametrize(
    "name, says",
    [
        ("h101", "no device 'h101': choose one of h200, h100"),
        ("h100:0", "no GPUs 'h100:0': write h100, or h100:8"),
        ("h100:two", "no GPUs 'h100:two'"),
        ("h100:", "no GPUs 'h100:'"),
        ("", "no device ''"),
    ],
)
def test_refused(name, says):
    with pytest.raises(UserError, match=says):
        find_devices(name)


def missing_parent(name):
    raise ModuleNotFoundError("No module named 'jax_plugins'")


@pytest.mark.parametrize("find_spec", [missing_parent, lambda name: None])
def test_without_the_compiler_one_line_says_what_to_install(find_spec, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    unattached._find_gpus.cache_clear()
    assert find_gpu_compiler() == ""
    with pytest.raises(UserError) as raised:
        find_devices("h100")
    assert str(raised.value) == (
        "compiling for h100 needs XLA's compiler for GPUs: pip install 'jaxaccel[cuda]'"
    )
