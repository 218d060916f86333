"""Training for quantization: the numbers that int8 will compute, and gradients that pass through."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from grids import thinned

import jaxaccel as ja
from jaxaccel.core import numerics

NHWC = ("NHWC", "HWIO", "NHWC")
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "conv": {"kernel": jax.random.normal(KEYS[0], (3, 3, 32, 40)) * 0.1},
    "dense": {"kernel": jax.random.normal(KEYS[1], (40, 16)) * 0.1},
    "emb": {"embedding": jax.random.normal(KEYS[2], (10, 16))},
}
X = jax.random.normal(KEYS[3], (4, 8, 8, 32))


def f(params, x):
    y = jax.lax.conv_general_dilated(x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=NHWC)
    y = jax.nn.relu(y).mean((1, 2)) @ params["dense"]["kernel"]
    return (y + params["emb"]["embedding"][jnp.arange(len(x))]) @ params["emb"]["embedding"].T


QUANTIZED = [{}, {"bits": 4}, {"bits": 4, "block": 8}, {"channels": ()}, {"range": "mse"}]


@pytest.mark.parametrize(("options", "mode"), thinned(3, QUANTIZED, ["dynamic", "static", "none"]), ids=str)
def test_it_equals_int8_within_a_step(options, mode):
    calibration = ja.calibrate(f, PARAMS, [X]) if mode == "static" else None
    faked = ja.fake_int8(f, **options, activations=mode, calibration=calibration)(PARAMS, X)
    real = ja.int8(f, activations=mode, calibration=calibration)(ja.quantize(PARAMS, **options), X)
    # One step of the last product: its activations' step times the sum of the weights it meets.
    step = float(jnp.abs(real).max()) / 127
    assert float(jnp.abs(faked - real).max()) < step
    assert (
        float(jnp.mean(jnp.abs(faked - real))) < 0.1 * step
    )  # a rounding here and there falls the other way


def test_gradients_pass_straight_through():
    """Of a linear loss: the gradient of a weight is what multiplies its rounded value, as if nothing were rounded."""
    w, x = {"kernel": jax.random.normal(KEYS[0], (8, 4))}, jax.random.normal(KEYS[1], (5, 8))
    grad = jax.grad(lambda w: ja.fake_int8(lambda w, x: x @ w["kernel"])(w, x).sum())(w)["kernel"]
    scale = numerics.scale_of(numerics.absmax(x, [1]))
    want = (numerics.to_integers(x, scale) * scale).sum(0)[:, None].repeat(4, 1)
    np.testing.assert_allclose(grad, want, rtol=1e-5)


def test_ranges_can_be_learned():
    """The gradient of a range is that of LSQ (arXiv:1902.08153, equation 3), by its own formula in NumPy."""
    w, x = {"kernel": jnp.eye(4)}, jax.random.normal(KEYS[1], (50, 4)) * 2

    def loss(calibration):
        g = ja.fake_int8(lambda w, x: x @ w["kernel"], calibration=calibration)
        return jnp.sum(g(w, x) * jnp.arange(4.0))

    got = jax.grad(loss)(ja.transforms.Calibration({"kernel": jnp.float32(2.5)})).ranges["kernel"]
    scale = 2.5 / 127
    v = np.asarray(x, np.float64) / scale
    by_formula = np.where(np.abs(np.round(v)) <= 127, np.round(v) - v, np.sign(v) * 127)
    np.testing.assert_allclose(got, (by_formula * np.arange(4)).sum() / 127, rtol=1e-3)


def test_running_ranges_follow_what_is_seen():
    ranges = ja.transforms.RunningRanges(decay=0.9)
    _, seen = ja.fake_int8(f, observe=True)(PARAMS, X)
    state = ranges.init(seen)
    assert set(state.ranges) == {"conv/kernel", "dense/kernel", "emb/embedding#2"}
    np.testing.assert_allclose(state.ranges["conv/kernel"], jnp.abs(X).max())

    @jax.jit
    def update(state, x):
        _, seen = ja.fake_int8(f, calibration=state, observe=True)(PARAMS, x)
        return ranges.update(state, seen)

    after = update(state, 2 * X)
    np.testing.assert_allclose(after.ranges["conv/kernel"], 1.1 * jnp.abs(X).max(), rtol=1e-6)
    assert update(state, X.at[0, 0, 0, 0].set(jnp.nan)).ranges["conv/kernel"] == state.ranges["conv/kernel"]
    ja.int8(f, calibration=after)(ja.quantize(PARAMS), X)


def test_folding_batch_norm_and_rounding_commute():
    """Rounded then folded equals folded then rounded, so training before folding is training for what is served."""
    w = jax.random.normal(KEYS[0], (16, 8))
    factor = jnp.linspace(-2, 2, 8) + 0.1
    before = ja.quantize({"kernel": w})["kernel"].materialize() * factor
    after = ja.quantize({"kernel": w * factor})["kernel"].materialize()
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)


def test_a_network_with_batch_norm_learns_what_int8_then_computes():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(4, 32, (3, 3), use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(32, rngs=rngs)
            self.out = nnx.Linear(32, 3, rngs=rngs)

        def __call__(self, x):
            return self.out(jax.nn.relu(self.norm(self.conv(x))).mean((1, 2)))

    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    x = jax.random.normal(KEYS[0], (48, 8, 8, 4))
    labels = jnp.argmax(x.mean((1, 2))[:, :3], -1)

    def loss(params, rest):
        net = nnx.merge(graph, params, rest)
        net.train()
        logits = net(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), nnx.split(
            net, nnx.Param, ...
        )[2]

    tx = optax.adam(0.02)

    @jax.jit
    def step(params, rest, opt_state):
        grads, rest = jax.grad(ja.fake_int8(loss, bits=4, lowering="int8"), has_aux=True)(params, rest)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), rest, opt_state

    opt_state = tx.init(params)
    for _ in range(60):
        params, rest, opt_state = step(params, rest, opt_state)

    def serve(variables, x):
        net = nnx.merge(graph, *variables)
        net.eval()
        return net(x)

    g, folded = ja.fold(serve, (params, rest), x)
    logits = ja.int8(g, lowering="int8")(ja.quantize(folded, bits=4), x)
    assert float(jnp.mean(jnp.argmax(logits, -1) == labels)) > 0.9


def test_mistakes_get_one_line():
    with pytest.raises(ja.UserError, match="nearest"):
        ja.fake_int8(f, "**/kernl")(PARAMS, X)
    with pytest.raises(ja.UserError, match="go together"):
        ja.fake_int8(f, activations="static")
