import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxaccel.models.layers.recurrent import Lstm


def made(reverse=False):
    layer = Lstm(3, 4, reverse=reverse, rngs=nnx.Rngs(0))
    layer.input.bias[...] += 0.1 * jnp.arange(16.0)
    return layer


def numpy_lstm(layer, x, carry=None):
    """One sequence (T, inputs) by loops, in float64: outputs (T, features) and the last carry."""
    w, b, u = (
        np.asarray(v[...], np.float64) for v in (layer.input.kernel, layer.input.bias, layer.recurrent.kernel)
    )
    h, c = carry or (np.zeros(4), np.zeros(4))
    outputs = np.zeros((len(x), 4))
    for t in reversed(range(len(x))) if layer.reverse else range(len(x)):
        i, f, g, o = np.split(x[t] @ w + b + h @ u, 4)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        outputs[t] = h
    return outputs, (h, c)


@pytest.mark.parametrize("reverse", [False, True])
def test_it_equals_numpy(reverse):
    layer, lengths = made(reverse), (5, 1, 3)
    x = np.random.default_rng(0).standard_normal((3, 6, 3)).astype(np.float32)
    mask = np.arange(6) < np.array(lengths)[:, None]
    outputs, (h, c) = layer(jnp.where(mask[..., None], x, 1e9), jnp.asarray(mask))
    for row, n in enumerate(lengths):
        expected, (last_h, last_c) = numpy_lstm(layer, x[row, :n].astype(np.float64))
        np.testing.assert_allclose(outputs[row, :n], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(h[row], last_h, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(c[row], last_c, rtol=1e-5, atol=1e-5)
        assert not outputs[row, n:].any()


def test_pieces_equal_the_whole():
    layer = made()
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 3)), jnp.float32)
    whole, last = layer(x)
    one, carry = layer(x[:, :3])
    other, end = layer(x[:, 3:], carry=carry)
    np.testing.assert_allclose(jnp.concatenate([one, other], axis=1), whole, rtol=1e-6, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), end, last)


def test_the_forget_gate_starts_open():
    layer = Lstm(3, 4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.input.bias[...], [0] * 4 + [1] * 4 + [0] * 8)
    u = layer.recurrent.kernel[...]
    np.testing.assert_allclose(u @ u.T, np.eye(4), atol=1e-5)


def test_only_the_carry_is_multiplied_in_the_loop():
    layer = made()
    program = jax.make_jaxpr(lambda x: layer(x)[0])(jnp.zeros((2, 7, 3)))
    (loop,) = [e for e in program.eqns if e.primitive.name == "scan"]
    inside = [e for e in loop.params["jaxpr"].jaxpr.eqns if e.primitive.name == "dot_general"]
    assert [e.invars[0].aval.shape for e in inside] == [(2, 4)]
    text = str(program)
    assert text.count("dot_general") == 2 and "f32[7,2,16] = dot_general" in text
