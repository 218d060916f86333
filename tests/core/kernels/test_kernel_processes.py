"""Kernels in threads, forked children, other processors and exported programs: the same bits, and no hang."""

import concurrent.futures
import hashlib
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxaccel import UserError
from jaxaccel.core import kernels
from tests.core.kernels import reference
from tests.core.kernels.reference import LAYOUTS, needs_kernels, read_params

PRODUCT = """
import hashlib, os, signal, sys
import jax, jax.numpy as jnp, numpy as np
from jaxaccel.core import kernels
from tests.core.kernels import reference
from tests.core.kernels.test_kernel_processes import compute_gradients, digest, make_case
"""
FORK = """
compute_gradients()
child = os.fork()
if child == 0:
    signal.alarm(30)  # a child that hangs is killed, and its status says so
    np.random.default_rng(0).normal(size=(64, 64)) @ np.ones((64, 64))
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(digest(compute_gradients()))
"""
ISA = """
params, lhs, rhs = make_case()
expected = reference.convolve(params, lhs, rhs)
assert np.abs(kernels.convolve(params, lhs, rhs) - expected).max() < 1e-5
assert np.abs(kernels.convolve(params, lhs, rhs, "bfloat16") - expected).max() < 3e-2
whole = [np.round(10 * x).clip(-127, 127).astype(np.int8) for x in (lhs, rhs)]
np.testing.assert_array_equal(kernels.convolve_integers(params, *whole), reference.convolve(params, *whole))
is_bfloat16 = kernels.supports(params, lhs, rhs, "bfloat16")
print(kernels.find_isa(), kernels.supports(params, lhs, rhs), is_bfloat16, kernels.supports_integers(params, *whole))
"""


def make_case():
    shape = {"batch": 4, "channels": 16, "features": 24, "groups": 1, "window": (3, 3)}
    lhs, rhs = reference.make_operands(np.random.default_rng(0), (12, 13), LAYOUTS[2][0], **shape)
    numbers = {"padding": "SAME", "dimension_numbers": LAYOUTS[2][0]}
    return read_params(lhs, rhs, window_strides=(2, 2), **numbers), lhs, rhs


@jax.jit
def _differentiate(lhs, rhs):
    params, *_ = make_case()
    return jax.value_and_grad(lambda a, b: (kernels.convolve(params, a, b) ** 2).sum(), (0, 1))(lhs, rhs)


def compute_gradients():
    _, lhs, rhs = make_case()
    return jax.device_get(_differentiate(lhs, rhs))


def digest(tree):
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(tree))).hexdigest()


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", PRODUCT + program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@needs_kernels
def test_the_same_bits_each_time():
    assert len({digest(compute_gradients()) for _ in range(20)}) == 1
    assert run("print(digest(compute_gradients()))") == digest(compute_gradients())


@needs_kernels
def test_threads_at_once():
    params, lhs, rhs = make_case()
    f = jax.jit(lambda a, b: kernels.convolve(params, a, b))
    inputs = [np.roll(lhs, k, axis=1) for k in range(8)]
    expected = [digest(f(x, rhs)) for x in inputs]

    def repeat(x):
        return {digest(f(x, rhs)) for _ in range(25)}

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(repeat, inputs)) == [{e} for e in expected]


@needs_kernels
def test_fork():
    assert run(FORK) == digest(compute_gradients())


@needs_kernels
@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE_VNNI"])
def test_other_processors(isa):
    found, is_supported, is_bfloat16, is_integers = run(ISA, ONEDNN_MAX_CPU_ISA=isa).split()
    assert is_supported == "True"
    assert is_bfloat16 == is_integers == str(found.startswith("AVX512"))


@needs_kernels
def test_exported_programs_name_their_kernels(monkeypatch):
    params, lhs, rhs = make_case()
    check = jax.export.DisabledSafetyCheck.custom_call("jaxaccel_onednn_convolution")
    (batch,) = jax.export.symbolic_shape("b")
    inputs = jax.ShapeDtypeStruct((batch, *lhs.shape[1:]), lhs.dtype)
    f = jax.jit(lambda a: kernels.convolve(params, a, rhs))
    exported = jax.export.export(f, disabled_checks=[check])(inputs)
    again = jax.export.deserialize(exported.serialize())
    kernels.check_program(again.mlir_module_serialized)
    np.testing.assert_array_equal(again.call(lhs[:3]), f(lhs[:3]))
    np.testing.assert_allclose(again.call(lhs), reference.convolve(params, lhs, rhs), atol=1e-5)
    reference.pretend(monkeypatch, "", "not installed: do this")
    with pytest.raises(UserError, match=r"calls kernels of oneDNN\. not installed: do this"):
        kernels.check_program(again.mlir_module_serialized)
    kernels.check_program("module {}")


def test_a_line_says_what_there_is(monkeypatch):
    reference.pretend(monkeypatch, "AVX2")
    assert kernels.describe() == "float32 by AVX2"
    reference.pretend(monkeypatch, "AVX512_CORE_VNNI")
    assert kernels.describe() == "float32, bfloat16, int8 by AVX512_CORE_VNNI"
    reference.pretend(monkeypatch, "", "not installed: do this")
    assert kernels.describe().endswith("times as fast as XLA. not installed: do this")


@needs_kernels
def test_errors_are_exceptions():
    """What the kernel is told and what it is given do not fit: oneDNN refuses."""
    call = jax.ffi.ffi_call("jaxaccel_onednn_convolution", jax.ShapeDtypeStruct((1, 4, 4, 8), np.float32))
    numbers = {"strides": [1, 1], "dilation": [1, 1], "padding": [0, 0], "extras": []}
    specs = {"lhs_spec": [0, 3, 1, 2], "rhs_spec": [3, 2, 0, 1], "out_spec": [0, 3, 1, 2]}
    attributes = {k: np.array(v, np.int64) for k, v in (numbers | specs).items()}
    options = {"direction": np.int64(0), "groups": np.int64(1), "group_axis": np.int64(0), "relu": False}
    lhs, rhs = np.ones((1, 4, 4, 3), np.float32), np.ones((3, 3, 5, 8), np.float32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="convolution by oneDNN"):
        call(lhs, rhs, **attributes, **options)
    with pytest.raises(jax.errors.JaxRuntimeError, match="an axis that the buffer has not"):
        call(lhs, rhs, **attributes | {"lhs_spec": np.array([0, 3, 1, 9])}, **options)
