"""What compression leaves of a network, exported: every kind of compressed array, and smaller networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from onnx_checks import assert_same, families, open_session, operators, run

import jaxaccel as ja
from jaxaccel.core.interpret import is_compressed
from jaxaccel.deployment.onnx import to_onnx
from jaxaccel.transforms.compressed import compressed
from jaxaccel.transforms.params.prune import masked


@pytest.fixture(scope="module")
def network():
    """(function, parameters, images) of a small residual network with BatchNorm folded."""
    model, images = families.filled_small("resnet_cifar")
    model.eval()
    graph, state = nnx.split(model)
    folded, params = ja.fold(lambda state, x: nnx.merge(graph, state)(x), state, images)
    return folded, params, images


ROUTES = {
    "prune": lambda params: masked(params, ja.prune(params, 0.5)),
    "low_rank": lambda params: ja.low_rank(params, rank=2),
    "share": lambda params: ja.params.share(params, bits=4),
}


@pytest.mark.parametrize("name", ROUTES)
def test_route(name, network):
    f, params, images = network
    small = ROUTES[name](params)
    model = to_onnx(f, small, [images])
    want = np.asarray(jax.jit(compressed(f))(small, images))
    got = run(open_session(model), [images])[0]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    kinds = [x for x in jax.tree.leaves(small, is_leaf=is_compressed) if is_compressed(x)]
    if name == "low_rank":
        assert operators(model)["Conv"] > 7  # two thinner ones for one
    if name == "share":
        assert operators(model)["Gather"] == len(kinds) > 0
        assert model.ByteSize() < 0.6 * to_onnx(f, params, [images]).ByteSize()


def test_low_rank_factors_of_integers(network):
    f, params, images = network
    small = ja.low_rank(params, rank=2)
    calibration = ja.calibrate(f, small, [images])
    q = ja.quantize(small, "**/{kernel,left,right}")
    model = to_onnx(f, q, [images], calibration=calibration)
    want = np.asarray(jax.jit(ja.int8(f, calibration=calibration, lowering="int8"))(q, images))
    got = run(open_session(model), [images])[0]
    assert np.abs(got - want).max() < 0.1 * np.abs(want).max()


def test_unfolded_weights_scale_with_their_integers():
    model, images = families.filled_small("resnet_cifar")
    model.eval()
    graph, state = nnx.split(model)
    params = nnx.to_pure_dict(state)

    def f(params, x):
        whole = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(whole, params)
        return nnx.merge(graph, whole)(x)

    q = ja.quantize(params)
    exported = to_onnx(f, q, [images], activations="none")
    want = np.asarray(jax.jit(ja.int8(f, activations="none"))(q, images))
    np.testing.assert_allclose(
        run(open_session(exported), [images])[0], want, rtol=0, atol=1e-5 * np.abs(want).max()
    )


def test_embeddings_of_integers():
    table = {"embedding": jnp.asarray(np.random.default_rng(0).standard_normal((9, 6)), jnp.float32)}
    q = ja.quantize(table)
    tokens = np.arange(12, dtype=np.int32).reshape(4, 3) % 9
    f = lambda w, x: w["embedding"][x].mean(1)  # noqa: E731
    got = run(open_session(to_onnx(f, q, [tokens])), [tokens])[0]
    want = np.asarray(q["embedding"].materialize())[tokens].mean(1)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_fewer_channels(network):
    f, params, images = network
    assert_same(f, ja.remove_channels(f, params, images, flops=0.6).params, [images])
