"""What XLA's own compiler for GPUs makes of programs, as `explain`, the roofline and the doctor tell it.

No GPU is needed, but the compiler is (`pip install 'jaxaccel[cuda]'`).
"""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxaccel as ja
from jaxaccel.advisor.device import compile_one, inspect_device
from jaxaccel.advisor.roofline import compile_for, roofline
from jaxaccel.core.unattached import find_gpu_compiler

pytestmark = pytest.mark.skipif(not find_gpu_compiler(), reason="XLA's compiler for GPUs is not installed")

PARAMS = {
    "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)},
    "head": {"kernel": jax.ShapeDtypeStruct((64, 256), jnp.float32)},
}
X = jax.ShapeDtypeStruct((32, 16, 16, 64), jnp.float32)


def net(params, x):
    labels = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=labels)
    return jax.nn.relu(x).mean((1, 2)) @ params["head"]["kernel"]


def dense(params, x):
    return x @ params["kernel"]


def compiled_column(f, *args, devices):
    return [row["compiled"] for row in ja.explain(f, *args, devices=devices).rows]


def test_explain_tells_types_and_libraries():
    conv, head = compiled_column(ja.bfloat16(net), PARAMS, X, devices="h100")
    assert conv == ["bf16 x bf16 -> bf16 by cuDNN"] and head == ["bf16 x bf16 -> f32 by Triton"]
    conv, head = compiled_column(ja.float16(net), PARAMS, X, devices="t4")
    assert conv == ["f16 x f16 -> f16 by cuDNN"] and head == ["f16 x f16 -> f32 by cuBLAS"]


def test_explain_takes_compressed_arrays_and_shows_them():
    params = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), PARAMS["head"])
    explained = ja.explain(ja.int8(dense), ja.quantize(params), jnp.ones((32, 64)), devices="h100")
    (row,) = json.loads(explained.to_json())
    assert row["compiled"] == ["s8 x s8 -> s32 by Triton"]
    assert (
        row["compiled"][0] in str(explained) and row["compiled"][0].split(" ->")[0] in explained._repr_html_()
    )


def test_a_product_with_a_vector_is_no_product():
    x = jax.ShapeDtypeStruct((64,), jnp.float32)
    assert compiled_column(ja.bfloat16(dense), PARAMS["head"], x, devices="h100") == [[]]


def test_the_program_here_is_left_alone():
    before = jax.default_backend()
    compiled_column(
        ja.bfloat16(dense), PARAMS["head"], jax.ShapeDtypeStruct((8, 64), jnp.float32), devices="a100"
    )
    assert jax.default_backend() == before and float(jax.jit(jnp.sum)(jnp.ones(3))) == 3


def test_the_roofline_of_a_product():
    side = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    line = roofline(compile_for(ja.bfloat16(lambda x, w: x @ w), side, side, devices="h100"), "h100")
    assert line.flops == {"bf16": 2 * 1024**3} and line.bound == "memory"
    assert line.peak_bytes is not None and 3 * 4 * 1024**2 <= line.peak_bytes <= 6 * 4 * 1024**2
    assert str(line).startswith("h100: at least 0.00")


def test_one_program_of_the_doctor():
    landing = compile_one("h100", "product", "float16", dense, (512, 512), (512, 512))
    assert landing.became == "f16 x f16 -> f32 by Triton"
    assert landing.flops == 2 * 512**3 and landing.operand_bits == 16 and landing.bound == "memory"
    assert landing.milliseconds is not None and 0 < landing.milliseconds < 1


def test_the_doctor_compiles_every_precision():
    facts = inspect_device("l4")
    assert facts.capability == "8.9" and not facts.error and len(facts.landings) == 10
    assert {landing.precision for landing in facts.landings} == set(facts.peaks)
    product = facts.landings[0]
    assert product.became.startswith("f32 x f32 -> f32 by ") and product.flops == 2 * 4096**3
    assert product.milliseconds == pytest.approx(1e3 * 2 * 4096**3 / facts.peaks["float32"])


def test_no_variable_has_to_be_set():
    """Where JAX has looked for a GPU and found none, its compiler is there all the same."""
    code = (
        "import jax.numpy as jnp, jaxaccel as ja; x = jnp.ones((64, 64));"
        "print(ja.explain(ja.bfloat16(lambda p, x: x @ p), x, x, devices='h100').rows[0]['compiled'])"
    )
    left_out = ("JAX_PLATFORMS", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.stdout == "['bf16 x bf16 -> f32 by Triton']\n", done.stderr[-500:]
