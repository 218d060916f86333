import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxaccel.models.layers.recurrent import Gru, Lstm

LENGTHS = (5, 1, 3)


def made(kind=Lstm, reverse=False):
    """A layer of 3 inputs and 4 outputs whose biases are not 0."""
    layer = kind(3, 4, reverse=reverse, rngs=nnx.Rngs(0))
    layer.input.bias[...] += 0.1 * jnp.arange(layer.input.bias.shape[0])
    if layer.recurrent.bias is not None:
        layer.recurrent.bias[...] += 0.3 - 0.05 * jnp.arange(layer.recurrent.bias.shape[0])
    return layer


def arrays_of(layer):
    return [np.asarray(v, np.float64) for v in jax.tree.leaves(nnx.to_pure_dict(nnx.state(layer)))]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_lstm(arrays, x, reverse):
    """One sequence (T, inputs) by loops, in float64: outputs (T, features) and the last carry."""
    b, w, u = arrays  # input/bias, input/kernel, recurrent/kernel
    h, c = np.zeros(4), np.zeros(4)
    outputs = np.zeros((len(x), 4))
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        i, f, g, o = np.split(x[t] @ w + b + h @ u, 4)
        c = c * sigmoid(f) + np.tanh(g) * sigmoid(i)
        outputs[t] = h = np.tanh(c) * sigmoid(o)
    return outputs, (h, c)


def numpy_gru(arrays, x, reverse):
    """The same of a GRU."""
    b, w, a, u = arrays  # input/bias, input/kernel, recurrent/bias, recurrent/kernel
    h, outputs = np.zeros(4), np.zeros((len(x), 4))
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        (r, z, n), (s, y, m) = np.split(x[t] @ w + b, 3), np.split(h @ u + a, 3)
        n = np.tanh(n + sigmoid(r + s) * m)
        outputs[t] = h = n + sigmoid(z + y) * (h - n)
    return outputs, (h,)


REFERENCE = {Lstm: numpy_lstm, Gru: numpy_gru}


def draw_batch():
    x = np.random.default_rng(0).standard_normal((3, 6, 3)).astype(np.float32)
    return x, np.arange(6) < np.array(LENGTHS)[:, None]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", REFERENCE)
def test_it_equals_numpy(kind, reverse):
    layer, (x, mask) = made(kind, reverse), draw_batch()
    outputs, carry = layer(jnp.where(mask[..., None], x, 1e9), jnp.asarray(mask))
    for row, n in enumerate(LENGTHS):
        expected, last = REFERENCE[kind](arrays_of(layer), x[row, :n].astype(np.float64), reverse)
        np.testing.assert_allclose(outputs[row, :n], expected, rtol=1e-5, atol=1e-5)
        for found, wanted in zip(jax.tree.leaves(carry), last, strict=True):
            np.testing.assert_allclose(found[row], wanted, rtol=1e-5, atol=1e-5)
        assert not outputs[row, n:].any()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", REFERENCE)
def test_gradients_are_the_slopes_of_numpy(kind, reverse):
    """Gradients of a batch with padding, against differences of the loop in float64."""
    layer, (x, mask) = made(kind, reverse), draw_batch()
    graph, state = nnx.split(layer)
    weights = np.random.default_rng(1).standard_normal((3, 6, 4))

    def loss(state, x):
        outputs, _ = nnx.merge(graph, state)(x, jnp.asarray(mask))
        return (outputs * weights).sum()

    by_state, by_x = jax.grad(loss, argnums=(0, 1))(state, jnp.asarray(x))
    assert not by_x[~mask].any() and by_x[mask].all()
    arrays = [*arrays_of(layer), x.astype(np.float64)]

    def reference(arrays):
        rows = [
            (REFERENCE[kind](arrays[:-1], arrays[-1][row, :n], reverse)[0] * weights[row, :n]).sum()
            for row, n in enumerate(LENGTHS)
        ]
        return sum(rows)

    found = [*jax.tree.leaves(nnx.to_pure_dict(by_state)), by_x]
    for array, gradient in zip(arrays, found, strict=True):
        slopes = np.zeros(array.shape)
        for at in np.ndindex(array.shape):
            before = array[at]
            ends = []
            for array[at] in (before + 1e-5, before - 1e-5):
                ends.append(reference(arrays))
            array[at] = before
            slopes[at] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", REFERENCE)
def test_pieces_equal_the_whole(kind):
    layer = made(kind)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 3)), jnp.float32)
    whole, last = layer(x)
    one, carry = layer(x[:, :3], carry=layer.start(2))
    other, end = layer(x[:, 3:], carry=carry)
    np.testing.assert_allclose(jnp.concatenate([one, other], axis=1), whole, rtol=1e-6, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), end, last)


def test_the_forget_gate_starts_open():
    layer = Lstm(3, 4, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.input.bias[...], [0] * 4 + [1] * 4 + [0] * 8)
    u = layer.recurrent.kernel[...]
    np.testing.assert_allclose(u @ u.T, np.eye(4), atol=1e-5)


@pytest.mark.parametrize(("kind", "gates"), [(Lstm, 4), (Gru, 3)])
def test_only_the_carry_is_multiplied_in_the_loop(kind, gates):
    layer = made(kind)
    program = jax.make_jaxpr(lambda x: layer(x)[0])(jnp.zeros((2, 7, 3)))
    (loop,) = [e for e in program.eqns if e.primitive.name == "scan"]
    inside = [e for e in loop.params["jaxpr"].jaxpr.eqns if e.primitive.name == "dot_general"]
    assert [e.invars[0].aval.shape for e in inside] == [(2, 4)]
    text = str(program)
    assert text.count("dot_general") == 2 and f"f32[7,2,{4 * gates}] = dot_general" in text
