"""Quantized weights in ONNX: the integers of `ja.int8`, as engines compute them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from onnx_checks import families, open_session, operators, optimized, run

import jaxaccel as ja
from jaxaccel.deployment.onnx import to_onnx


def quantized(name):
    """(function, quantized weights, images, calibration) of a small model with BatchNorm folded."""
    model, images = families.filled_small(name)
    model.eval()
    graph, state = nnx.split(model)
    folded, params = ja.fold(lambda state, x: nnx.merge(graph, state)(x), state, images)
    return folded, ja.quantize(params), images, ja.calibrate(folded, params, [images])


def mlp(params, x):
    hidden = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"])
    return hidden @ params["b"]["kernel"] + params["b"]["bias"]


def draw_mlp(width=32):
    rng = np.random.default_rng(0)
    params = {
        name: {"kernel": rng.standard_normal(shape) / 4, "bias": rng.standard_normal(shape[-1:])}
        for name, shape in {"a": (16, width), "b": (width, 10)}.items()
    }
    x = rng.standard_normal((40, 16))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, x))


def test_static_products_have_the_integers_of_int8(tmp_path):
    params, x = draw_mlp()
    q, calibration = ja.quantize(params), ja.calibrate(mlp, params, [draw_mlp()[1]])
    model = to_onnx(mlp, q, [x], calibration=calibration)
    assert optimized(model, tmp_path)["QGemm"] == 2
    want = jax.jit(ja.int8(mlp, calibration=calibration))(q, x)
    got = run(open_session(model), [x])[0]
    # A step of the hidden activations, times the largest weight, for the few that round to another side.
    step = float(calibration.range_of("b/kernel")) / 127
    difference = np.abs(got - np.asarray(want))
    assert difference.max() <= step * float(jnp.abs(params["b"]["kernel"]).max())
    assert np.median(difference) < 1e-4


def test_biases_are_int32(tmp_path):
    params, x = draw_mlp()
    model = to_onnx(mlp, ja.quantize(params), [x], calibration=ja.calibrate(mlp, params, [x]))
    dtypes = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    gemms = [node for node in model.graph.node if node.op_type == "Gemm"]
    assert [dtypes[made[node.input[2]].input[0]] for node in gemms] == [6, 6]  # TensorProto.INT32


@pytest.mark.parametrize("name", ["resnet_cifar", "mobilenet"])
def test_static_convolutions_stay_integers(name, tmp_path):
    folded, q, images, calibration = quantized(name)
    model = to_onnx(folded, q, [images], calibration=calibration)
    found = optimized(model, tmp_path)
    # All but the last one, whose result is averaged and not quantized.
    left = found["Conv"] + found["FusedConv"]
    assert found["QLinearConv"] >= 4 and found["QLinearAdd"] >= 1 and left <= 1
    want = np.asarray(jax.jit(ja.int8(folded, calibration=calibration, lowering="int8"))(q, images))
    exact = np.asarray(jax.jit(ja.int8(folded, activations="none"))(q, images))
    got = run(open_session(model), [images])[0]
    # Not further from int8 than int8 is from its weights in floating point.
    assert np.abs(got - want).max() < 1.5 * np.abs(want - exact).max()
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", ["vit", "mixer"])
def test_static_matrix_products_stay_integers(name, tmp_path):
    folded, q, images, calibration = quantized(name)
    model = to_onnx(folded, q, [images], calibration=calibration)
    assert optimized(model, tmp_path)["MatMulIntegerToFloat"] >= 5
    want = np.asarray(jax.jit(ja.int8(folded, calibration=calibration))(q, images))
    np.testing.assert_allclose(
        run(open_session(model), [images])[0], want, rtol=0, atol=0.01 * np.abs(want).max()
    )


def test_dynamic_products_are_of_integers(tmp_path):
    params, x = draw_mlp()
    q = ja.quantize(params)
    model = to_onnx(mlp, q, [x])
    assert operators(model)["MatMulInteger"] == operators(model)["DynamicQuantizeLinear"] == 2
    assert optimized(model, tmp_path)["DynamicQuantizeMatMul"] == 2
    want, got = np.asarray(mlp(params, x)), run(open_session(model), [x])[0]
    assert 0 < np.abs(got - want).max() < 0.03 * np.abs(want).max()


def test_dynamic_convolutions_are_of_integers():
    folded, q, images, _ = quantized("resnet_cifar")
    model = to_onnx(folded, q, [images])
    assert operators(model)["ConvInteger"] == 7
    want = np.asarray(jax.jit(folded)(jax.tree.map(_dense, q, is_leaf=_is_quantized), images))
    assert np.abs(run(open_session(model), [images])[0] - want).max() < 0.05 * np.abs(want).max()


def _is_quantized(x):
    return isinstance(x, ja.arrays.QuantArray)


def _dense(x):
    return x.materialize() if _is_quantized(x) else x


@pytest.mark.parametrize(
    "options", [{"bits": 8}, {"bits": 4}, {"bits": 4, "block": 8}, {"bits": 8, "channels": None}]
)
def test_weights_alone(options):
    params, x = draw_mlp()
    q = ja.quantize(params, **options)
    model = to_onnx(mlp, q, [x], activations="none")
    assert operators(model)["DequantizeLinear"] == 2
    want = mlp(jax.tree.map(_dense, q, is_leaf=_is_quantized), x)
    np.testing.assert_allclose(run(open_session(model), [x])[0], want, atol=1e-5)


def test_what_contradicts():
    params, x = draw_mlp()
    with pytest.raises(ja.UserError, match="go together"):
        to_onnx(mlp, params, [x], activations="static")
