"""What XLA's compiler for GPUs makes of our programs: it takes all, and what is narrow stays so. No GPU is needed.

XLA's compiler is (`pip install 'jaxaccel[cuda]'`); `.ci/gpu` installs the parts of it that compile.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from grids import slow_but

import jaxaccel as ja
from benchmarks import ahead
from benchmarks.networks import NETWORKS, Network
from benchmarks.suite.compiled import describe, find_networks
from jaxaccel import models
from jaxaccel.advisor.roofline import compile_for
from jaxaccel.core import hlo
from jaxaccel.core.hlo.text import list_calls, parse
from jaxaccel.core.unattached import find_devices, find_gpu_compiler
from jaxaccel.distributed import make_mesh

pytestmark = pytest.mark.skipif(
    not find_gpu_compiler(), reason="XLA's compiler for GPUs is not installed; .ci/gpu makes its environment"
)

GPUS = ("h100", "a100", "l4", "t4")
quick_on = [pytest.param(gpu, marks=() if gpu in ("h100", "t4") else pytest.mark.slow) for gpu in GPUS]
"""All of them; two by default."""
WITHOUT = {("t4", "bfloat16"), ("t4", "float8"), ("a100", "float8")}
"""What a GPU has no units for."""
NARROW = {"bfloat16": "bf16", "float16": "f16", "float8": "f8e4m3fn", "int8": "s8"}


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def quantized(params):
    return jax.eval_shape(lambda p: ja.quantize(p, where="kernel"), params)


def transformed(precision, f, params):
    """The function and the shapes of its parameters in a precision."""
    if precision == "int8":
        return ja.int8(f), quantized(params)
    return getattr(ja, precision)(f), params


def convolve(options, params, x):
    options = {
        "window_strides": (1,) * (len(x.shape) - 2),
        "padding": "SAME",
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    } | options
    return jax.lax.conv_general_dilated(x, params["kernel"], **options)


LINES, VOLUMES = ("NHC", "HIO", "NHC"), ("NDHWC", "DHWIO", "NDHWC")
CONVS = {
    "forward": ((8, 28, 28, 64), (3, 3, 64, 64), {}),
    "strided": ((8, 28, 28, 64), (3, 3, 64, 128), {"window_strides": (2, 2)}),
    "pointwise": ((8, 28, 28, 64), (1, 1, 64, 256), {}),
    "pointwise and strided": ((8, 28, 28, 64), (1, 1, 64, 256), {"window_strides": (2, 2)}),
    "stem": ((8, 64, 64, 3), (7, 7, 3, 64), {"window_strides": (2, 2)}),
    "odd channels": ((8, 28, 28, 5), (3, 3, 5, 7), {}),
    "one channel": ((8, 28, 28, 1), (3, 3, 1, 16), {}),
    "patches": ((8, 64, 64, 3), (16, 16, 3, 64), {"window_strides": (16, 16), "padding": "VALID"}),
    "the whole image": ((8, 8, 8, 32), (8, 8, 32, 64), {"padding": "VALID"}),
    "a window larger than the result": ((8, 7, 7, 32), (5, 5, 32, 64), {"padding": "VALID"}),
    "a window larger than the image": ((8, 4, 4, 32), (5, 5, 32, 64), {}),
    "one dimension": ((8, 100, 64), (5, 64, 64), {"dimension_numbers": LINES}),
    "negative padding": ((8, 28, 28, 64), (3, 3, 64, 64), {"padding": ((-1, 1), (0, 0))}),
}
IN_FLOAT32 = {
    "dilated": ((8, 28, 28, 64), (3, 3, 64, 64), {"rhs_dilation": (2, 2)}),
    "transposed": ((8, 14, 14, 64), (3, 3, 64, 64), {"padding": ((1, 2), (1, 2)), "lhs_dilation": (2, 2)}),
    "grouped": ((8, 28, 28, 64), (3, 3, 16, 64), {"feature_group_count": 4}),
    "depthwise": ((8, 28, 28, 64), (3, 3, 1, 64), {"feature_group_count": 64}),
    "three dimensions": ((2, 8, 16, 16, 16), (3, 3, 3, 16, 32), {"dimension_numbers": VOLUMES}),
}
"""Convolutions that have no form of integers for a GPU."""


def compiled_operations(f, *args, gpu):
    return hlo.operations(compile_for(f, *args, devices=gpu).as_text())


@pytest.mark.parametrize("gpu", quick_on)
@pytest.mark.parametrize("x, kernel, options", CONVS.values(), ids=CONVS)
def test_an_int8_convolution_lands_in_int8(x, kernel, options, gpu):
    f, params = transformed("int8", partial(convolve, options), {"kernel": shape(*kernel)})
    found = compiled_operations(f, params, shape(*x), gpu=gpu)
    assert found and {o.operand_dtypes for o in found} == {("s8", "s8")}
    assert {o.upcast_from for o in found} == {None}
    # cuDNN gives int8 convolutions in float32 alone, and has none of integers in the other directions.
    assert {o.dtype for o in found if o.opcode == "convolution"} <= {"f32"}


@pytest.mark.parametrize("gpu", ["h100"])
@pytest.mark.parametrize("x, kernel, options", IN_FLOAT32.values(), ids=IN_FLOAT32)
def test_a_convolution_that_cudnn_has_not_in_int8_is_one_of_float32(x, kernel, options, gpu):
    f, params = transformed("int8", partial(convolve, options), {"kernel": shape(*kernel)})
    found = compiled_operations(f, params, shape(*x), gpu=gpu)
    assert {(*o.operand_dtypes, o.dtype) for o in found} == {("f32", "f32", "f32")}


@pytest.mark.parametrize("gpu", ["h100"])
@pytest.mark.parametrize(
    "x, kernel, options",
    [pytest.param(*c, marks=() if n in ("forward", "strided", "grouped") else pytest.mark.slow)
     for n, c in {**CONVS, **IN_FLOAT32}.items()],
    ids=[*CONVS, *IN_FLOAT32],
)  # fmt: skip
def test_gradients_in_int8_have_no_wider_integers(x, kernel, options, gpu):
    def loss(params, x):
        g = ja.int8(partial(convolve, options), train=True, key=jax.random.key(0))
        return (g(params, x) ** 2).sum()

    found = compiled_operations(
        jax.grad(loss, argnums=(0, 1)), {"kernel": shape(*kernel)}, shape(*x), gpu=gpu
    )
    assert {o.operand_dtypes for o in found} <= {("s8", "s8"), ("f32", "f32")}


@pytest.mark.parametrize("gpu", quick_on)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bit_convolutions_and_their_gradients_stay_so(precision, gpu):
    def loss(params, x):
        return (getattr(ja, precision)(partial(convolve, {}))(params, x) ** 2).sum()

    params = {"kernel": shape(3, 3, 64, 64)}
    found = compiled_operations(jax.grad(loss, argnums=(0, 1)), params, shape(8, 28, 28, 64), gpu=gpu)
    wanted = "f32" if (gpu, precision) in WITHOUT else NARROW[precision]
    assert [(*o.operand_dtypes, o.dtype) for o in found] == [(wanted,) * 3] * 3


PRODUCTS = {
    "matrices": ("ab,bc->ac", (128, 512), (512, 256)),
    "few classes": ("ab,bc->ac", (32, 64), (64, 10)),
    "odd sizes": ("ab,bc->ac", (127, 513), (513, 257)),
    "a transposed one": ("ab,cb->ac", (128, 512), (256, 512)),
    "heads to be made": ("btw,whd->bthd", (8, 197, 384), (384, 6, 64)),
    "heads to be joined": ("bhtd,hdw->btw", (8, 6, 197, 64), (6, 64, 384)),
    "batched": ("eab,ebc->eac", (4, 197, 384), (4, 384, 384)),
    "a batch axis inside": ("aeb,ebc->aec", (197, 4, 384), (4, 384, 384)),
}


@pytest.mark.parametrize("gpu", quick_on)
@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("subscripts, x, kernel", PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_lands_in_its_type(subscripts, x, kernel, precision, gpu):
    if precision == "float8" and (gpu, precision) in WITHOUT:
        pytest.skip("refused there")

    def f(params, x):
        return jnp.einsum(subscripts, x, params["kernel"])

    f, params = transformed(precision, f, {"kernel": shape(*kernel)})
    (found,) = compiled_operations(f, params, shape(*x), gpu=gpu)
    wanted = "f32" if (gpu, precision) in WITHOUT else NARROW[precision]
    assert found.operand_dtypes == (wanted, wanted) and found.upcast_from is None
    assert found.dtype == ("s32" if precision == "int8" else "f32")


def attention_and_product(params, q, k, v):
    """The heads of attention over a number of tokens that no tile divides, joined by a product."""
    x = jax.nn.dot_product_attention(q, k, v)
    return jnp.einsum("bthd,hdw->btw", x, params["kernel"])


@pytest.mark.parametrize("gpu", quick_on)
@pytest.mark.parametrize("precision", ["int8", "float8"])
def test_heads_of_attention_compile_with_any_number_of_tokens(precision, gpu):
    if (gpu, precision) in WITHOUT:
        pytest.skip("refused there")
    for tokens in (128, 197):
        x = shape(32, tokens, 6, 64)
        f, params = transformed(precision, attention_and_product, {"kernel": shape(6, 64, 384)})
        found = compiled_operations(f, params, x, x, x, gpu=gpu)
        narrow = [o for o in found if o.operand_dtypes == (NARROW[precision],) * 2]
        assert len(narrow) == (1 if precision == "int8" else 3)
        # As it was asked for, not what is compiled where XLA fails.
        assert gpu == "t4" or all("triton" in o.inside.kind for o in narrow)


def one(gpu):
    return make_mesh(ahead.MESHES["one"], find_devices(gpu))


TINY_VIT = Network(
    "tiny_vit",
    partial(models.VisionTransformer, width=128, depth=2, heads=4, patch_size=8, image_size=56),
    (56, 56, 3),
)


STEPS = list(itertools.product(GPUS, ["float32", "bfloat16", "float16"]))


@pytest.mark.parametrize("gpu, precision", slow_but([("h100", "bfloat16"), ("t4", "float16")], STEPS))
def test_a_training_step(gpu, precision):
    mesh = one(gpu)
    program = ahead.train(NETWORKS["resnet20"], 128, precision, mesh)
    compiled = ahead.compile_program(program, mesh)
    found = describe(compiled, gpu)
    # Training rounds everywhere as it was asked to; XLA computes in float32 what a GPU has no units for.
    wanted = "f32" if (gpu, precision) in WITHOUT else NARROW.get(precision, "f32")
    assert sum(share for words, share in found["became"].items() if words.startswith(f"{wanted} x ")) > 0.99
    assert found["host_transfers"] == 0
    state, _ = program.args
    # Every array of the state is updated where it lies.
    kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert found["aliased_bytes"] == pytest.approx(kept, rel=0.01)
    # Without units for it, XLA prefers channels first.
    assert layouts(compiled) == ({"bf01"} if gpu == "t4" and wanted == "f32" else {"b01f"})


def layouts(compiled):
    """How the convolutions of cuDNN have their images and results: NHWC is b01f."""
    found = set()
    computations, entry = parse(compiled.as_text())
    for place in list_calls(computations, entry):
        for instruction in place.computation.values():
            labels = instruction.attribute(r"dim_labels=([\w\->]+)")
            if "__cudnn$conv" in instruction.attributes and labels:
                found |= {labels.split("_")[0], labels.split("->")[1]}
    return found


def test_batch_norm_and_relu_are_computed_with_the_convolution():
    def fold(f, variables, network):
        return ja.fold(f, variables, network.examples(1))

    program = ahead.infer(NETWORKS["resnet20"], 32, fold)
    found = describe(ahead.compile_program(program, one("h100")), "h100")
    assert found["convolutions"] == 19 and found["epilogues"] == 19


@pytest.mark.parametrize("gpu, kernels", [("h100", 2), ("a100", 2), ("t4", 0)])
def test_attention_reaches_cudnn(gpu, kernels):
    program = ahead.infer(TINY_VIT, 8, ahead.VARIANTS["float16"])
    compiled = ahead.compile_program(program, one(gpu))
    assert describe(compiled, gpu)["attentions"] == kernels
    weights = [text for text in ("[8,4,50,50]", "[32,50,50]") if text in compiled.as_text()]
    assert bool(weights) == (kernels == 0)


def test_attention_reaches_cudnn_in_a_training_step():
    mesh = one("h100")
    program = ahead.train(TINY_VIT, 8, "bfloat16", mesh)
    found = describe(ahead.compile_program(program, mesh), "h100")
    assert found["attentions"] == 4  # forward and backward


@pytest.mark.parametrize("variant", [
    pytest.param(v, marks=() if v == "int8 training" else pytest.mark.slow)
    for v in ahead.VARIANTS
])  # fmt: skip
@pytest.mark.parametrize("network", [
    TINY_VIT, *(pytest.param(NETWORKS[n], marks=pytest.mark.slow) for n in ("resnet20", "lstm", "encoder"))
], ids=lambda network: network.name)  # fmt: skip
def test_every_precision_of_an_inference_compiles(network, variant):
    found = describe(ahead.compile_program(ahead.infer_in[variant](network, 8), one("h100")), "h100")
    assert found["became"] and found["host_transfers"] == 0


@pytest.mark.parametrize("name", slow_but(["2 data, 4 model"], list(ahead.MESHES)[1:]))
def test_a_step_on_eight_gpus(name):
    mesh = make_mesh(ahead.MESHES[name], find_devices("h100:8"))
    found = describe(ahead.compile_program(ahead.train(TINY_VIT, 64, "bfloat16", mesh), mesh), "h100")
    alone = describe(
        ahead.compile_program(ahead.train(TINY_VIT, 64, "bfloat16", one("h100")), one("h100")), "h100"
    )
    assert found["collectives"] > 0 == alone["collectives"]
    share = sum(found["operations"].values()) / sum(alone["operations"].values())
    assert share == pytest.approx(1 / 8, rel=0.2)


def test_scanned_and_mapped_functions_stay_narrow():
    params = {"kernel": shape(4, 64, 64)}

    def layers(params, x):
        return jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, params["kernel"])[0]

    q = jax.eval_shape(lambda p: ja.quantize(p, where="kernel"), params)
    mapped = jax.vmap(lambda p, x: x @ p["kernel"])
    for f, x in ((layers, shape(32, 64)), (mapped, shape(4, 32, 64))):
        found = compiled_operations(ja.int8(f), q, x, gpu="h100")
        assert {o.operand_dtypes for o in found} == {("s8", "s8")}
        assert sum(o.flops * o.trips for o in found) == 4 * 2 * 32 * 64 * 64


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", find_networks(["all"]), ids=lambda network: network.name)
def test_every_model_trains(network, precision, gpu):
    mesh = one(gpu)
    found = describe(ahead.compile_program(ahead.train(network, 32, precision, mesh), mesh), gpu)
    wanted = "f32" if (gpu, precision) in WITHOUT else NARROW.get(precision, "f32")
    assert sum(share for words, share in found["became"].items() if words.startswith(f"{wanted} x ")) > 0.95
