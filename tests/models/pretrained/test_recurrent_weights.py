"""PyTorch's LSTMs and GRUs as ours, against what its documentation says of them, in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import jaxaccel as ja
from jaxaccel.models.layers.recurrent import Gru, Lstm
from jaxaccel.models.pretrained.recurrent import split_recurrent

GATES = {Lstm: 4, Gru: 3}


class Both(nnx.Module):
    """A layer of each direction."""

    def __init__(self, kind):
        self.forward = nnx.List([kind(3, 5, rngs=nnx.Rngs(0))])
        self.backward = nnx.List([kind(3, 5, reverse=True, rngs=nnx.Rngs(1))])


def draw(gates, before="rnn.", ends=("_l0", "_l0_reverse"), seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "weight_ih": (gates * 5, 3), "weight_hh": (gates * 5, 5), "bias_ih": (gates * 5,), "bias_hh": (gates * 5,)
    }  # fmt: skip
    return {
        f"{before}{name}{end}": rng.standard_normal(shape).astype(np.float32)
        for end in ends
        for name, shape in shapes.items()
    }


def run_torch(weights, end, x):
    """Outputs (T, 5) of one direction for (T, 3), as torch.nn.LSTM and GRU define them."""
    w, u, b, a = (
        weights[f"rnn.{name}{end}"].astype(np.float64)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    gates, outputs = len(w) // 5, np.zeros((len(x), 5))
    h, c = np.zeros(5), np.zeros(5)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    for t in reversed(range(len(x))) if end.endswith("reverse") else range(len(x)):
        one, other = np.split(w @ x[t] + b, gates), np.split(u @ h + a, gates)
        if gates == 4:
            i, f, g, o = (p + q for p, q in zip(one, other, strict=True))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            r, z = (sigmoid(p + q) for p, q in zip(one[:2], other[:2], strict=True))
            h = (1 - z) * np.tanh(one[2] + r * other[2]) + z * h
        outputs[t] = h
    return outputs


@pytest.mark.parametrize("kind", GATES)
def test_torch_layers_are_ours(tmp_path, kind):
    weights = draw(GATES[kind])
    save_file(weights, tmp_path / "rnn.safetensors")
    model = Both(kind)
    loaded = ja.models.load_pretrained(model, tmp_path / "rnn.safetensors")
    assert not loaded.unused and not loaded.fresh
    x = np.random.default_rng(5).standard_normal((7, 3)).astype(np.float32)
    for layer, end in ((model.forward[0], "_l0"), (model.backward[0], "_l0_reverse")):
        outputs = layer(jnp.asarray(x)[None])[0][0]
        np.testing.assert_allclose(outputs, run_torch(weights, end, x), rtol=1e-5, atol=1e-5)


def test_names():
    found = split_recurrent(draw(4, "enc.rnn.", ("_l0", "_l1_reverse")))
    assert list(found) == [
        f"enc.rnn.{place}.{part}"
        for place in ("forward.0", "backward.1")
        for part in ("input.weight", "recurrent.weight", "input.bias")
    ]
    assert list(split_recurrent(draw(3, "cell.", ("",)))) == [
        f"cell.{part}.{role}" for role in ("weight", "bias") for part in ("input", "recurrent")
    ]


@pytest.mark.parametrize("gates", [1, 2])
def test_other_layers_stay_as_they_are(gates):
    """A plain RNN, and arrays that are only called so."""
    weights = draw(gates) | {"weight_ih": np.ones((4, 2), np.float32), "norm.bias": np.ones(3, np.float32)}
    assert split_recurrent(weights).keys() == weights.keys()
