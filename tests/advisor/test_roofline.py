"""Roofline arithmetic on kept and compiled programs; tests/tpu has those that need the TPU's compiler."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from conftest import FIXTURES
from jax import lax

from jaxaccel.advisor.chips import CHIPS
from jaxaccel.advisor.roofline import compile_for, roofline, shorten
from jaxaccel.core import hlo
from jaxaccel.errors import UserError

TEXTS = FIXTURES / "hlo"


def kept(name):
    return (TEXTS / f"{name}.txt").read_text()


def compiled(f, *arguments):
    return jax.jit(f).lower(*(jax.ShapeDtypeStruct(*a) for a in arguments)).compile()


def test_compute_and_memory():
    line = roofline(kept("cpu_dot_int8"), "v5e")
    flops, moved = 2 * 128 * 256 * 512, 128 * 256 + 256 * 512 + 4 * 128 * 512
    assert (line.chip, dict(line.flops), line.bytes_accessed) == ("v5e", {"s8": flops}, moved)
    assert line.seconds_compute == pytest.approx(flops / 393e12)
    assert line.seconds_memory == pytest.approx(moved / 819e9)
    assert (line.seconds, line.bound) == (line.seconds_memory, "memory")
    assert line.reported_bytes is None


def test_the_bound_follows_the_bytes():
    line = roofline(kept("cpu_dot_int8"), CHIPS["v5e"], bytes_accessed=1)
    assert (line.seconds, line.bound) == (line.seconds_compute, "compute")


def test_loops_count_as_often_as_they_run():
    line = roofline(kept("tpu_scan_f32"), "v5e")
    assert line.flops == {"f32": 6 * 2 * 64 * 256 * 256}


@pytest.mark.parametrize(
    "types, precision, rate",
    [
        (("s8", "s8"), "default", "int8"),
        (("s4", "s8"), "default", "int8"),
        (("f8e4m3fn", "f8e4m3fn"), "default", "float8"),
        (("bf16", "s8"), "default", "bfloat16"),
        (("bf16", "bf16"), "highest", "bfloat16"),
        (("f32", "bf16"), "default", "float32"),
        (("f32", "f32"), "high", "high"),
        (("f32", "f32"), "highest", "highest"),
        (("s32", "s32"), "default", "highest"),
        (("f64", "f64"), "default", "highest"),
    ],
)
@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_the_wider_type_sets_the_rate(chip, types, precision, rate):
    product = hlo.Operation("dot", "dot", types, ((), ()), "f32", (), 1, "", None, None, 1, precision)
    assert chip.rate(product) == getattr(chip, rate)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_narrow_types_are_never_slower(chip):
    assert chip.int8 >= chip.float16 >= chip.bfloat16 >= chip.float32 >= chip.high >= chip.highest > 0
    assert chip.int8 >= chip.float8 >= chip.float16
    assert chip.name in CHIPS and 5e11 < chip.bandwidth * 2 < 1e13


def test_a_compiled_program_also_has_the_count_of_xla():
    def product(x, w):
        return lax.dot(x, w)

    line = roofline(compiled(product, ((32, 64), jnp.float32), ((64, 48), jnp.float32)), "h100")
    assert line.reported_bytes == line.bytes_accessed == 4 * (32 * 64 + 64 * 48 + 32 * 48)
    assert line.flops == {"f32": 2 * 32 * 64 * 48}
    assert line.peak_bytes is not None and line.peak_bytes >= line.bytes_accessed


def test_it_prints_the_least_time_and_its_reasons():
    line = roofline(kept("cpu_dot_int8"), "v5e", bytes_accessed=819_000)
    assert line.peak_bytes is None
    assert str(line).splitlines() == [
        "v5e: at least 0.001 ms, bound by memory",
        "  compute: 33.6 M operations in s8; 8.54e-05 ms at the peak, 9% of it used",
        "  memory: 819 kB moved; 0.001 ms at the peak, 100% of it used",
    ]


def test_what_results_take_over_is_held_once():
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    kept, donated = (
        roofline(jax.jit(lambda x: x + 1, donate_argnums=i).lower(x).compile(), "v5e") for i in ((), (0,))
    )
    assert (kept.peak_bytes, donated.peak_bytes) == (8192, 4096)
    assert "no products" in str(kept) and "8.19 kB held at most" in str(kept)


@pytest.mark.parametrize(
    "number, text", [(0, "0 "), (999, "999 "), (999.6, "1 k"), (1234567, "1.23 M"), (2e15, "2 P")]
)
def test_numbers_are_shortened(number, text):
    assert shorten(number) == text


def test_unknown_chip():
    with pytest.raises(UserError, match="no chip 'v5': choose one of v4, v5e"):
        roofline(kept("cpu_dot_int8"), "v5")


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxaccel\[tpu\]'"):
        compile_for(lambda x: x, jax.ShapeDtypeStruct((4,), jnp.float32))
