"""What the doctor says of a device that is not attached: findings, tables and the command; no compiler is needed."""

import dataclasses
import importlib.util
import json

import jax
import pytest

from jaxaccel import doctor
from jaxaccel.advisor import device as device_module
from jaxaccel.advisor.chips import CHIPS
from jaxaccel.advisor.device import RATES, DeviceFacts, Landing, compile_one, device_findings, inspect_device
from jaxaccel.core import unattached
from jaxaccel.core.unattached import NAMES
from jaxaccel.errors import UserError

FAILED = Landing("product", "int8", "does not compile: INTERNAL: no kernel")
WIDE = Landing(
    "product", "int8", "f16 x f16 -> f32 by cuBLAS", operand_bits=16, milliseconds=1.5, bound="compute"
)
LEFT = dataclasses.replace(WIDE, precision="float8", reason="is for matrix products alone")
WELL = dataclasses.replace(WIDE, became="s8 x s8 -> s32 by cuBLAS", operand_bits=8)


def facts_of(name, *landings, error=""):
    chip = CHIPS[name]
    peaks = {dtype: getattr(chip, dtype) for dtype in RATES}
    return DeviceFacts(
        name, name.upper(), "", chip.memory, peaks, chip.bandwidth, {"jax": "0"}, error, landings
    )


@pytest.mark.parametrize(
    "name, expected",
    [
        ("h100", []),
        ("l4", []),
        ("a100", ["has no float8"]),
        ("t4", ["has no bfloat16: 8.1 TFLOP/s, against 65 in float16", "has no float8"]),
        ("v5e", ["has no float8"]),
        ("v4", ["has no float8", "multiplies int8 no faster than bfloat16"]),
    ],
)
def test_what_a_device_lacks(name, expected):
    found = device_findings(facts_of(name))
    assert [f.problem for f in found] == [f"the {name} {problem}" for problem in expected]
    assert not any(f.serious for f in found) and all(f.remedy for f in found)


def test_a_t4_trains_in_float16():
    assert device_findings(facts_of("t4"))[0].remedy == "train with --precision float16"


def test_what_a_product_became():
    failed, wide = device_findings(facts_of("h100", FAILED, WIDE, LEFT, WELL))
    assert failed.problem == "int8, product: does not compile: INTERNAL: no kernel" and not failed.serious
    assert wide.problem == "int8, product is computed as f16 x f16 -> f32 by cuBLAS"
    (float32,) = device_findings(facts_of("h100", dataclasses.replace(FAILED, precision="float32")))
    assert float32.serious
    assert (
        len(device_findings(facts_of("a100", dataclasses.replace(WIDE, precision="float8")))) == 1
    )  # said once


def test_a_missing_compiler_is_a_finding(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for find in (unattached._find_gpus, unattached._find_tpus):
        find.cache_clear()
    for name in NAMES:
        facts = inspect_device(name)
        (only,) = device_findings(facts)
        assert only.serious and "compiling for" in only.problem and facts.landings == ()
        assert only.remedy in ("pip install 'jaxaccel[cuda]'", "pip install 'jaxaccel[tpu]'")
        assert facts.peaks["int8"] == CHIPS[name].int8 and facts.memory > 10**10
    assert inspect_device("t4").capability == "7.5"


@pytest.mark.parametrize("name", ["h101", "h100:8", ""])
def test_devices_that_do_not_exist(name):
    with pytest.raises(UserError, match=f"no device {name!r}: choose one of h200, h100"):
        inspect_device(name)


def test_what_is_refused_is_told(monkeypatch):
    def refuse(*arguments, **options):
        raise UserError("no float8 products on this tpu")

    monkeypatch.setattr(device_module, "compile_for", refuse)
    landing = compile_one("v5e", "product", "float8", lambda p, x: x, (2, 2), (2, 2))
    assert landing.became == "refused: no float8 products on this tpu" and landing.milliseconds is None


def run_doctor(monkeypatch, capsys, facts, *words):
    monkeypatch.setattr(doctor, "inspect_device", lambda name: facts)
    monkeypatch.setattr(doctor, "gather_facts", lambda **options: pytest.fail("looked at this machine"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # is as before when the test ends, like the setting of JAX
    before = jax.config.jax_platforms
    try:
        return doctor.main(["--device", facts.device, *words]), capsys.readouterr().out
    finally:
        jax.config.update("jax_platforms", before)


def test_the_command_prints_plain_lines(monkeypatch, capsys):
    status, text = run_doctor(monkeypatch, capsys, facts_of("h100", WELL, LEFT, FAILED))
    assert status == 0
    assert text.splitlines()[1:3] == [
        "memory: 84.9 GB, 3,350 GB/s",
        "peaks: float32 494.5 TFLOP/s  bfloat16 989.5 TFLOP/s  float16 989.5 TFLOP/s  int8 1979 TFLOP/s"
        "  float8 1979 TFLOP/s",
    ]
    assert "product, int8: s8 x s8 -> s32 by cuBLAS, at least 1.500 ms (compute)\n" in text
    assert "product, float8: f16 x f16 -> f32 by cuBLAS (is for matrix products alone), at least" in text
    assert "product, int8: does not compile: INTERNAL: no kernel\nnote: " in text


def test_the_command_fails_without_the_compiler(monkeypatch, capsys):
    facts = facts_of(
        "h100", error="compiling for h100 needs XLA's compiler for GPUs: pip install 'jaxaccel[cuda]'"
    )
    status, text = run_doctor(monkeypatch, capsys, facts)
    assert status == 1
    wrong = "WRONG: compiling for h100 needs XLA's compiler for GPUs -> pip install 'jaxaccel[cuda]'"
    assert text.splitlines()[-2:] == ["compiler: not installed", wrong]


def test_the_command_prints_json(monkeypatch, capsys):
    status, text = run_doctor(monkeypatch, capsys, facts_of("t4", WELL), "--json")
    told = json.loads(text)
    assert status == 0 and told["device"] == "t4" and told["peaks"]["float16"] == 65e12
    assert told["landings"][0] == dataclasses.asdict(WELL)
    assert [f["serious"] for f in told["findings"]] == [False, False]


def test_help_teaches_it(capsys):
    with pytest.raises(SystemExit):
        doctor.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "h200, h100" in text and "pip install 'jaxaccel[cuda]' for GPUs" in text
