"""The products in HLO text: in kept texts and in what is compiled here.

`data/hlo/cpu_*` and `tpu_*` are what JAX 0.10.2 printed, without stack frames and the TPU's backend configurations;
`gpu_calls` is written by hand in the form that XLA:GPU prints.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from conftest import FIXTURES
from jax import lax

from jaxaccel.core import hlo
from jaxaccel.core.hlo import Inside, Operation, describe_operation

TEXTS = FIXTURES / "hlo"
IMAGE_LABELS = ("NHWC", "HWIO", "NHWC")
S8, BF16, F32, S32 = jnp.int8, jnp.bfloat16, jnp.float32, jnp.int32


def kept(name):
    return (TEXTS / f"{name}.txt").read_text()


def compiled(f, *arguments):
    return jax.jit(f).lower(*(jax.ShapeDtypeStruct(*a) for a in arguments)).compile()


def dot(dtype):
    return lambda x, w: lax.dot(x, w, preferred_element_type=dtype)


def conv(dtype, *, stride=1, groups=1, padding="SAME", dilation=1):
    return lambda x, w: lax.conv_general_dilated(
        x, w, (stride, stride), padding, rhs_dilation=(dilation, dilation), dimension_numbers=IMAGE_LABELS,
        feature_group_count=groups, preferred_element_type=dtype,
    )  # fmt: skip


def scanned(x, ws):
    return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, ws)[0]


@pytest.mark.parametrize(
    "name, opcode, operands, result, flops, inside, upcast, trips",
    [
        ("cpu_dot_int8", "dot", "s8 s8", "s32", 2 * 128 * 256 * 512, "__ynn_fusion", None, 1),
        # The convert is in a fusion of its own.
        ("cpu_dot_bf16", "dot", "f32 f32", "f32", 2 * 128 * 256 * 512, "__ynn_fusion", "bf16", 1),
        ("cpu_scan_f32", "dot", "f32 f32", "f32", 2 * 64 * 256 * 256, "__ynn_fusion", None, 6),
        # 42 * 42 taps of 14 * 14 windows of 3 * 3, less those that lie in the padding.
        ("tpu_conv_int8", "convolution", "s8 s8", "s32", 2 * 16 * 40**2 * 64 * 128, "kOutput", None, 1),
        # Groups and the batch of a product became an axis of a window that mostly meets holes.
        (
            "tpu_conv_int8_groups",
            "convolution",
            "s8 s8",
            "s32",
            2 * 16 * 40**2 * 16 * 128,
            "kOutput",
            None,
            1,
        ),
        (
            "tpu_dot_bf16_batched",
            "convolution",
            "bf16 bf16",
            "f32",
            2 * 8 * 128 * 64 * 32,
            "kOutput",
            None,
            1,
        ),
        # XLA:TPU says nothing of the number of trips, and makes the weights bfloat16 before the loop.
        ("tpu_scan_f32", "convolution", "f32 bf16", "f32", 2 * 64 * 256 * 256, "kOutput", None, 6),
    ],
)
def test_kept_texts(name, opcode, operands, result, flops, inside, upcast, trips):
    (found,) = hlo.operations(kept(name))
    assert (found.opcode, " ".join(found.operand_dtypes), found.dtype) == (opcode, operands, result)
    assert found.flops == flops
    assert found.inside and found.inside.kind == inside
    assert (found.upcast_from, found.trips, found.precision) == (upcast, trips, "default")
    assert "jit(" in found.op_name


def test_a_convolution_fused_into_another():
    outer, inner = hlo.operations(kept("tpu_conv_gradient"))
    assert outer.inside == Inside("fusion", "kOutput") and inner.inside == Inside("fusion.1", "kOutput")
    assert outer.operand_dtypes == ("f32", "bf16")  # one rounded by the compiler itself
    assert outer.shape == (3, 3, 64, 128)
    assert outer.flops == inner.flops == 2 * 16 * 20**2 * 64 * 128


def test_libraries_of_gpus():
    gemm, forward, to_input, to_kernel, triton = hlo.operations(kept("gpu_calls"))
    assert gemm.opcode == "dot" and gemm.flops == 2 * 3 * 128 * 256 * 512
    assert gemm.inside == Inside("cublas-batch-gemm.1", "__cublas$gemm")
    assert gemm.precision == "highest"
    assert {found.opcode for found in (forward, to_input, to_kernel)} == {"convolution"}
    assert forward.flops == to_input.flops == to_kernel.flops == 2 * 8 * 20**2 * 64 * 128
    assert triton.inside == Inside("gemm_fusion_dot.1", "__triton_gemm")
    assert (triton.operand_dtypes, triton.upcast_from) == (("bf16", "bf16"), "s8")


@pytest.mark.parametrize(
    "f, arguments",
    [
        (dot(S32), [((32, 64), S8), ((64, 48), S8)]),
        (dot(F32), [((32, 64), BF16), ((64, 48), BF16)]),
        (dot(F32), [((32, 64), F32), ((64, 48), F32)]),
        (lambda x, w: jnp.einsum("bij,bjk->bik", x, w), [((4, 32, 64), F32), ((4, 64, 48), F32)]),
        (lambda x, w: x @ w, [((64,), F32), ((64, 48), F32)]),
        (conv(S32), [((4, 14, 14, 16), S8), ((3, 3, 16, 32), S8)]),
        (conv(F32, stride=2), [((4, 14, 14, 16), F32), ((3, 3, 16, 32), F32)]),
        (conv(F32, dilation=2, padding=((3, 0), (-1, 2))), [((4, 14, 14, 16), F32), ((3, 3, 16, 32), F32)]),
        (conv(F32, groups=4), [((4, 14, 14, 16), F32), ((3, 3, 4, 32), F32)]),
        (conv(F32, groups=16), [((4, 14, 14, 16), F32), ((3, 3, 1, 16), F32)]),
    ],
)
def test_counts_are_those_of_xla(f, arguments):
    program = compiled(f, *arguments)
    cost = program.cost_analysis()
    assert sum(found.flops for found in hlo.operations(program.as_text())) == cost["flops"]
    assert hlo.memory_traffic(program.as_text()) == cost["bytes accessed"]


@pytest.mark.parametrize("size", [8, 28])
def test_int8_on_the_cpu_is_seen_either_way(size):
    # XLA:CPU of JAX 0.10.2 multiplies large convolutions as int8, and widens small ones to int32 first.
    program = compiled(conv(S32), ((4, size, size, 64), S8), ((3, 3, 64, 64), S8))
    (found,) = hlo.operations(program.as_text())
    assert found.dtype == "s32"
    assert (found.operand_dtypes, found.upcast_from) in ((("s8", "s8"), None), (("s32", "s32"), "s8"))


def test_converting_first_is_seen():
    def weights_only(x, w):
        return x @ w.astype(F32)

    (found,) = hlo.operations(compiled(weights_only, ((32, 64), F32), ((64, 48), S8)).as_text())
    assert (found.operand_dtypes, found.upcast_from) == (("f32", "f32"), "s8")
    (found,) = hlo.operations(compiled(dot(BF16), ((32, 64), BF16), ((64, 48), BF16)).as_text())
    assert found.upcast_from in (None, "bf16")  # as the version of XLA:CPU has it


def test_loops_multiply():
    def nested(x, ws):
        return lax.fori_loop(0, 5, lambda _, c: scanned(c, ws), x)

    (found,) = hlo.operations(compiled(nested, ((64, 128), F32), ((6, 128, 128), F32)).as_text())
    assert (found.trips, found.shape) == (30, (64, 128))
    assert "while/body" in found.op_name


def test_a_loop_that_ends_by_its_data_has_unknown_trips():
    def until_small(x, w):
        return lax.while_loop(lambda c: c.sum() > 1, lambda c: jnp.tanh(c @ w), x)

    (found,) = hlo.operations(compiled(until_small, ((64, 128), F32), ((128, 128), F32)).as_text())
    assert found.trips is None


def test_branches_are_searched():
    def either(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: jnp.tanh(x) @ (w + 1))

    assert len(hlo.operations(compiled(either, ((64, 128), F32), ((128, 128), F32)).as_text())) == 2


def test_memory_on_the_chip_is_free():
    text = kept("tpu_dot_bf16_batched")
    arrays = 2 * 8 * 128 * 64 + 2 * 8 * 64 * 32 + 4 * 8 * 128 * 32
    assert hlo.memory_traffic(text) == arrays  # though one operand is copied into memory on the chip first
    assert hlo.memory_traffic(text.replace("S(1)", "")) > arrays


def test_a_scan_reads_slices_and_writes_slices():
    def stacked(x):
        return lax.scan(lambda c, row: (c, row * c[0]), x[0], x)[1]

    moved = hlo.memory_traffic(compiled(stacked, ((64, 4096), F32)).as_text())
    whole = math.prod((64, 4096)) * 4
    assert 2 * whole <= moved < 10 * whole  # and not 64 times the whole


def test_no_hlo():
    with pytest.raises(ValueError, match="as_text"):
        hlo.operations("module @jit_f {}")
    with pytest.raises(ValueError, match="contracts"):
        hlo.operations(kept("gpu_calls").replace("lhs_contracting_dimensions", "other"))


@pytest.mark.parametrize(
    "kind, words",
    [
        ("__triton_nested_gemm_fusion", "by Triton"),
        ("__triton_gemm", "by Triton"),
        ("__cublas$lt$matmul$f8", "by cuBLAS"),
        ("__cudnn$convForward", "by cuDNN"),
        ("__onednn$matmul", "by oneDNN"),
        ("kLoop", "in a loop fusion"),
        ("kOutput", "in an output fusion"),
        ("__ynn_fusion", "in __ynn_fusion"),
    ],
)
def test_operations_in_words(kind, words):
    found = Operation(
        "dot", "dot", ("s8", "s8"), ((), ()), "f32", (), 1, "", Inside("x", kind), None, 1, "default"
    )
    assert describe_operation(found) == f"s8 x s8 -> f32 {words}"
    alone = dataclasses.replace(found, inside=None, operand_dtypes=("f32", "f32"), upcast_from="s8")
    assert describe_operation(alone) == "f32 x f32 -> f32 (widened from s8)"
