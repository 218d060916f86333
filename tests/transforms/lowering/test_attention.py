"""Attention as one operation: its values, and who computes it where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

import jaxaccel as ja
from jaxaccel.core.unattached import GPUS, find_gpu_compiler
from jaxaccel.models.layers.attention import attend
from jaxaccel.transforms.lowering.attention import CALLS, why_not_by_cudnn

B, T, S, N, H = 2, 7, 5, 3, 8


def draw(mask=None):
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (B, T, N, H))
    k, v = (jax.random.normal(key, (B, S, N, H)) for key in keys[1:])
    return q, k, v


def by_numpy(q, k, v, mask=None, causal=False):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bqnh,bknh->bnqk", q, k) / np.sqrt(H)
    allowed = np.ones(scores.shape, bool)
    if mask is not None:
        allowed &= np.asarray(mask)
    if causal:
        allowed &= np.tril(np.ones(scores.shape[-2:], bool))
    scores = np.where(allowed, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnqk,bknh->bqnh", weights / weights.sum(-1, keepdims=True), v)


MASK = np.arange(S) < np.array([[[[3]]], [[[5]]]])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "lengths"])
def test_values_are_those_of_numpy(mask, causal):
    q, k, v = draw()
    np.testing.assert_allclose(
        attend(q, k, v, mask, causal=causal), by_numpy(q, k, v, mask, causal), atol=1e-6
    )


def test_gradients_are_those_of_jax():
    def total(f, *args):
        return (f(*args) ** 2).sum()

    q, k, v = draw()
    got = jax.grad(lambda *x: total(attend, *x), argnums=(0, 1, 2))(q, k, v)
    want = jax.grad(lambda *x: total(jax.nn.dot_product_attention, *x), argnums=(0, 1, 2))(q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def f(params, q, k, v):
    return attend(q, k, v) @ params["kernel"]


PARAMS = {"kernel": jnp.ones((H, 4))}


def on(name):
    device = AbstractDevice(device_kind=GPUS[name].name, num_cores=None, platform="cuda")
    mesh = AbstractMesh((1,), ("data",), (AxisType.Auto,), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def explained(transformed, params=PARAMS):
    return [(row["site"], row["lowering"]) for row in ja.explain(transformed, params, *draw()).rows]


@pytest.mark.parametrize("transformation", [ja.bfloat16, ja.float16])
def test_a_cpu_computes_its_products(transformation):
    rows = explained(transformation(f))
    assert [site for site, _ in rows] == ["dot_general[0]", "dot_general[1]", "kernel"]
    q, k, v = draw()
    np.testing.assert_allclose(transformation(f)(PARAMS, q, k, v), f(PARAMS, q, k, v), atol=0.05)


def test_it_stays_whole_in_other_transformations():
    q = ja.quantize(PARAMS)
    text = str(jax.make_jaxpr(ja.int8(f))(q, *draw()))
    assert "name=_jaxaccel_attention" in text


@pytest.mark.parametrize("causal", [False, True])
def test_the_name_of_the_call_is_the_one_that_rules_know(causal):
    program = jax.make_jaxpr(lambda *x: attend(*x, causal=causal))(*draw())
    (call,) = program.jaxpr.eqns
    assert CALLS[f"call:{call.params['name']}"] is causal


@pytest.mark.skipif(not find_gpu_compiler(), reason="cuDNN is not installed")
def test_a_gpu_computes_it_by_one_kernel():
    for name, fused in (("h100", True), ("a100", True), ("t4", False)):
        with on(name):
            for transformation in (ja.bfloat16, ja.float16):
                rows = explained(transformation(f))
                assert (("_jaxaccel_attention[0]", "one kernel of cuDNN") in rows) == fused
            assert all("cuDNN" not in lowering for _, lowering in explained(ja.int8(f), ja.quantize(PARAMS)))


@pytest.mark.skipif(not find_gpu_compiler(), reason="cuDNN is not installed")
def test_what_cudnn_has_no_kernel_for_is_said():
    wide = jax.ShapeDtypeStruct((B, T, N, 12), jnp.bfloat16)
    assert "multiple of 8, but got 12" in why_not_by_cudnn(wide, wide, wide, None, causal=False)


@pytest.mark.skipif(bool(find_gpu_compiler()), reason="cuDNN is installed")
def test_without_cudnn_a_gpu_computes_its_products():
    with on("h100"):
        assert [site for site, _ in explained(ja.bfloat16(f))][:2] == ["dot_general[0]", "dot_general[1]"]
