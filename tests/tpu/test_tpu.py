"""What the TPU's own compiler makes of bfloat16 and int8 variants of a function. No TPU is needed.

libtpu is (`pip install 'jaxaccel[tpu]'`), which slows `import jax`, so it has an environment of its own: `.ci/tpu`.
"""

import importlib.util
import time

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.advisor.roofline import compile_for, roofline
from jaxaccel.core import hlo
from jaxaccel.errors import UserError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; .ci/tpu makes its environment",
)

CHIPS = 4
BATCH = 128 * CHIPS
# In which type the products of a variant must be computed.
PRODUCTS = {"bfloat16": "bf16", "int8": "s8"}


def struct(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


def variants(f, params, image):
    """Functions of (params, images) in bfloat16 and in int8, with shapes of arguments.

    int8 is static, folded, with the products of two activations in bfloat16.
    """
    images = struct((BATCH, *image.shape[1:]), jnp.float32)
    g, folded = ja.fold(f, params, image)
    ranges = ja.calibrate(g, folded, [image])
    static = ja.bfloat16(ja.int8(g, calibration=ranges))
    return {
        "bfloat16": (ja.bfloat16(f), shapes(params), images),
        "int8": (static, shapes(ja.quantize(folded)), images),
    }


def shapes(tree):
    return jax.tree.map(lambda x: struct(x.shape, x.dtype), tree)


def small_net(dtype, sums):
    """A 3x3 convolution, a rescaling and a matrix product; operands have `dtype`, sums have `sums`."""

    def net(params, x):
        conv, dense = params
        labels = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, conv, (1, 1), "SAME", dimension_numbers=labels, preferred_element_type=sums
        )
        y = jnp.clip(jnp.maximum(y.astype(jnp.float32), 0) * 0.01, 0, 127)
        if dtype == jnp.int8:
            y = jnp.round(y)
        return lax.dot(y.astype(dtype).reshape(-1, dense.shape[0]), dense, preferred_element_type=sums)

    return (
        net,
        (struct((3, 3, 128, 256), dtype), struct((256, 512), dtype)),
        struct((BATCH, 14, 14, 128), dtype),
    )


def net(make):
    model = make(rngs=nnx.Rngs(0))
    model.eval()
    graph, params = nnx.split(model)
    image = jax.random.normal(jax.random.key(0), (1, 224, 224, 3))
    return lambda params, x: nnx.merge(graph, params)(x), params, image


def share(line, dtype):
    """The part of all operations that is computed in `dtype`."""
    return line.flops.get(dtype, 0) / sum(line.flops.values())


def test_int8_is_multiplied_as_int8():
    lines = {}
    for name, dtype, sums, wanted in (
        ("int8", jnp.int8, jnp.int32, ("s8", "s8", "s32")),
        ("bfloat16", jnp.bfloat16, jnp.float32, ("bf16", "bf16", "f32")),
    ):
        program = compile_for(*small_net(dtype, sums), devices="v5e:2x2")
        products = hlo.operations(program.as_text() or "")
        assert [(*p.operand_dtypes, p.dtype) for p in products] == [wanted] * 2
        assert {p.upcast_from for p in products} == {None}
        assert {p.opcode for p in products} == {"convolution"}  # the TPU knows nothing else
        lines[name] = roofline(program, "v5e")
    int8, bfloat16 = lines["int8"], lines["bfloat16"]
    assert list(int8.flops.values()) == list(bfloat16.flops.values())
    assert int8.bytes_accessed < bfloat16.bytes_accessed
    assert int8.reported_bytes < bfloat16.reported_bytes
    assert int8.seconds_compute == pytest.approx(bfloat16.seconds_compute * 197 / 393)
    assert int8.seconds < bfloat16.seconds


@pytest.mark.parametrize("make", [models.resnet50, models.vit_s16], ids=["resnet50", "vit_s16"])
def test_a_net_in_int8_moves_less_and_is_faster_than_in_bfloat16(make, capsys):
    lines = {}
    for name, (f, params, x) in variants(*net(make)).items():
        start = time.perf_counter()
        program = compile_for(f, params, x, devices="v5e:2x2")
        seconds = time.perf_counter() - start
        lines[name] = line = roofline(program, "v5e")
        with capsys.disabled():
            print(
                f"\n{make.__name__} {name}: {seconds:.0f} s to compile, {line}, {line.seconds * 1e3:.2f} ms"
            )
        # Attention multiplies activations: 8 % of a ViT, in bfloat16 also beside int8.
        assert share(line, PRODUCTS[name]) > 0.9
    int8, bfloat16 = lines["int8"], lines["bfloat16"]
    assert int8.bytes_accessed < bfloat16.bytes_accessed
    assert int8.reported_bytes < bfloat16.reported_bytes
    assert int8.seconds < bfloat16.seconds


def test_one_chip_has_the_share_of_one_chip():
    f, params, x = small_net(jnp.bfloat16, jnp.float32)
    whole = roofline(compile_for(f, params, x, chips=1), "v5e")
    part = roofline(compile_for(f, params, x), "v5e")
    assert whole.flops["bf16"] == CHIPS * part.flops["bf16"]


@pytest.mark.parametrize(
    "options, says",
    [
        ({"devices": "v9:2x2"}, "no device 'v9:2x2'"),
        ({"devices": "v5e:2x3"}, "no TPU topology 'v5e:2x3'"),
        ({"chips": 5}, "has 4 chips"),
        ({"chips": 3}, "does not divide over 3 chips"),
    ],
)
def test_refused(options, says):
    with pytest.raises(UserError, match=says):
        compile_for(lambda x: x, struct((BATCH, 8), jnp.float32), **options)
