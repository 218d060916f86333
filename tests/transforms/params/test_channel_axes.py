"""Channels of axes that operations repeat or cut, of other libraries' layers, and which of them options choose."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grids import thinned
from test_channels import _blank, conv, random

import jaxaccel as ja
from jaxaccel.core.paths import parameter_path
from jaxaccel.errors import UserError


def layer_scaled(p, x):
    return (x @ p["in"] + jax.nn.relu(x @ p["a"]) @ p["b"] * p["scale"]) @ p["out"]


def weight_normed(p, x):
    direction = p["v"] / jnp.sqrt((p["v"] ** 2).sum((0, 1, 2), keepdims=True) + 1e-6)
    return conv(jax.nn.relu(conv(x, direction * p["g"])), p["w"]).mean((1, 2))


def positioned(p, x):
    return jax.nn.relu((x[:, :, None] * p["embed"] + p["position"]) @ p["a"]) @ p["b"]


def excited(p, x):
    y = jax.nn.relu(x @ p["a"])
    gate = jax.nn.sigmoid(jax.nn.relu(y.mean((1, 2), keepdims=True) @ p["squeeze"]) @ p["excite"])
    return (y * gate) @ p["b"]


def halves(cut, act=jnp.tanh):
    def f(p, x):
        u, v = cut(x @ p["a"])
        return act(u) @ p["m"] + v @ p["b"]

    return f


HALVES = {"a": random(6, 16), "m": random(8, 5, seed=1), "b": random(8, 5, seed=2)}
ONES = {
    "scale": (
        lambda p, x: jax.nn.relu((x @ p["a"]) * p["scale"]) @ p["b"],
        {"a": random(6, 16), "scale": random(1, 16, seed=1), "b": random(16, 5, seed=2)}, (4, 6), "a",
    ),
    "layer scale": (
        layer_scaled,
        {"a": random(6, 16), "b": random(16, 12, seed=1), "in": random(6, 12, seed=2), "scale": random(1, 12, seed=3),
         "out": random(12, 3, seed=4)}, (4, 6), "b",
    ),
    "weight norm": (
        weight_normed, {"v": random(3, 3, 3, 16), "g": random(1, 1, 1, 16, seed=1), "w": random(3, 3, 16, 5, seed=2)},
        (2, 6, 6, 3), "v",
    ),
    "positions": (
        positioned,
        {"embed": random(1, 1, 12), "position": random(1, 6, 12, seed=1), "a": random(12, 16, seed=2),
         "b": random(16, 5, seed=3)}, (4, 6), "a",
    ),
    "squeeze and excitation": (
        excited,
        {"a": random(3, 16), "squeeze": random(16, 4, seed=1), "excite": random(4, 16, seed=2),
         "b": random(16, 5, seed=3)}, (2, 6, 6, 3), "a",
    ),
    "free halves": (halves(lambda h: jnp.split(h, 2, -1)), HALVES, (4, 6), "a"),
    "linear halves": (halves(lambda h: jnp.split(h, 2, -1), lambda x: x), HALVES, (4, 6), "a"),
    "sliced halves": (
        halves(lambda h: (h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2 :])), HALVES, (4, 6), "a",
    ),
    "a first part of fixed size": (
        halves(lambda h: jnp.split(h, [4], -1)),
        {"a": random(6, 16), "m": random(4, 5, seed=1), "b": random(12, 5, seed=2)}, (4, 6), "a",
    ),
    "every other one": (halves(lambda h: (h[:, ::2], h[:, 1::2])), HALVES, (4, 6), "a"),
    "glu": (lambda p, x: jax.nn.glu(x @ p["a"]) @ p["m"], {k: HALVES[k] for k in "am"}, (4, 6), "a"),
}  # fmt: skip


def check(f, params, x, **options):
    """Removes channels, and compares f on what is left with f on zeros by hand."""
    removed = ja.remove_channels(f, params, x, **{"parameters": 0.75, **options})
    masked = jax.tree_util.tree_map_with_path(
        lambda path, w: _blank(w, removed.kept.get(parameter_path(path), {})), params
    )
    np.testing.assert_allclose(f(removed.params, x), f(masked, x), rtol=1e-3, atol=1e-3)
    return removed


@pytest.mark.parametrize(("name", "scope"), thinned(2, ONES, ["layer", "global"]))
def test_axes_of_size_1_and_halves(name, scope):
    f, params, shape, thinner = ONES[name]
    removed = check(f, params, random(*shape, seed=9), scope=scope)
    assert removed.params[thinner].shape[-1] < params[thinner].shape[-1]
    for path, kept in removed.kept.items():  # what is repeated is never cut along that axis
        assert all(params[path].shape[axis] > 1 for axis in kept)
    if "halves" in name:
        assert removed.params["m"].shape == removed.params["b"].shape


STAYS = {
    "a half of fixed size": (lambda h: (h[:, :8], h[:, 8:]), 8, 8),
    "all but the first": (lambda h: (h[:, 1:], h[:, :-1]), 15, 15),
    "a window": (lambda h: (h[:, 2:10], h[:, 5:13]), 8, 8),
}


@pytest.mark.parametrize("name", STAYS)
def test_other_parts_stay_whole_and_are_told(name):
    cut, m, b = STAYS[name]
    inner = halves(cut)
    params = {"a": random(6, 16), "m": random(m, 5, seed=1), "b": random(b, 5, seed=2), "c": random(6, 64, seed=3),
              "d": random(64, 5, seed=4)}  # fmt: skip
    removed = check(lambda p, x: inner(p, x) + jax.nn.relu(x @ p["c"]) @ p["d"], params, random(4, 6, seed=9))
    assert removed.params["a"].shape == (6, 16) and removed.params["c"].shape[1] < 64
    assert "a" in removed.fixed or "m" in removed.fixed or "b" in removed.fixed
    with pytest.raises(UserError, match="nothing of this function's parameters can be removed"):
        ja.remove_channels(inner, {k: params[k] for k in "amb"}, random(4, 6), parameters=0.75)


def normalized(p, x):
    direction = p["v"] / jnp.linalg.norm(p["v"], axis=0)  # 0 / 0 of a column of zeros
    return jax.nn.relu(x @ direction) @ p["w"]


def test_a_channel_that_is_divided_by_its_norm_is_checked_all_the_same():
    params, x = {"v": random(6, 16), "w": random(16, 5, seed=1)}, random(4, 6, seed=9)
    removed = ja.remove_channels(normalized, params, x, parameters=0.75)
    rows = {**params, "w": _blank(params["w"], {0: removed.kept["w"][0]})}
    np.testing.assert_allclose(normalized(removed.params, x), normalized(rows, x), rtol=1e-4, atol=1e-5)

    def counted(p, x):
        return normalized(p, x) * p["v"].shape[1]

    with pytest.raises(UserError, match="computes something else"):
        ja.remove_channels(counted, params, x, parameters=0.75)


def test_a_result_that_is_no_number_cannot_be_checked():
    params = {"v": random(6, 16), "w": random(16, 5, seed=1)}
    with pytest.raises(UserError, match="gives NaN; give arguments"):
        ja.remove_channels(
            lambda p, x: jnp.log(-jax.nn.relu(x @ p["v"]) - 1) @ p["w"], params, random(4, 6), flops=0.7
        )
    # What is infinite in both is equal: a mask of logits.
    masked = lambda p, x: jnp.where(jnp.arange(5) > 3, -jnp.inf, jax.nn.relu(x @ p["v"]) @ p["w"])  # noqa: E731
    assert ja.remove_channels(masked, params, random(4, 6), flops=0.7).params["v"].shape[1] < 16


class Recurrent(eqx.Module):
    before: eqx.nn.Linear
    cell: eqx.Module
    after: eqx.nn.Linear

    def __call__(self, x):
        zeros = jnp.zeros(self.cell.weight_hh.shape[1])  # a size that follows the weights
        lstm = isinstance(self.cell, eqx.nn.LSTMCell)
        step = lambda h, x: (self.cell(jax.nn.relu(self.before(x)), h), None)  # noqa: E731
        h, _ = jax.lax.scan(step, (zeros, zeros) if lstm else zeros, x)
        return self.after(h[0] if lstm else h)


class Convolutions(eqx.Module):
    a: eqx.nn.Conv2d
    b: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __call__(self, x):
        return self.head(jax.nn.relu(self.b(jax.nn.relu(self.a(x)))).mean((1, 2)))


class Attention(eqx.Module):
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP

    def __call__(self, x):
        y = jax.vmap(self.norm)(x)
        return jax.vmap(self.mlp)(x + self.attention(y, y, y))


KEY = jax.random.split(jax.random.key(7), 3)
EQUINOX = {
    "mlp": (lambda: eqx.nn.MLP(6, 4, 16, 2, key=KEY[0]), (4, 6)),
    "convolutions": (
        lambda: Convolutions(
            eqx.nn.Conv2d(3, 16, 3, padding=1, key=KEY[0]), eqx.nn.Conv2d(16, 12, 3, padding=1, key=KEY[1]),
            eqx.nn.Linear(12, 4, key=KEY[2]),
        ), (2, 3, 6, 6),
    ),
    "gru": (lambda: _recurrent(eqx.nn.GRUCell), (2, 5, 6)),
    "lstm": (lambda: _recurrent(eqx.nn.LSTMCell), (2, 5, 6)),
    "attention": (
        lambda: Attention(
            eqx.nn.LayerNorm(8), eqx.nn.MultiheadAttention(2, 8, key=KEY[0]), eqx.nn.MLP(8, 8, 24, 1, key=KEY[1])
        ), (2, 5, 8),
    ),
}  # fmt: skip


def _recurrent(cell):
    return Recurrent(
        eqx.nn.Linear(6, 16, key=KEY[0]), cell(16, 8, key=KEY[1]), eqx.nn.Linear(8, 3, key=KEY[2])
    )


@pytest.mark.parametrize("name", EQUINOX)
def test_layers_of_equinox(name):
    make, shape = EQUINOX[name]
    params, static = eqx.partition(make(), eqx.is_array)
    removed = check(
        lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, random(*shape, seed=9), parameters=0.9
    )
    assert any(removed.after[name] < removed.before[name] for name in removed.before)


def _normed(train):
    def net(x):
        y = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(16, 3)(x), is_training=train)
        return hk.Conv2D(5, 3)(jax.nn.relu(y)).mean((1, 2))

    return net


def _attended(train):
    def net(x):
        y = x + hk.MultiHeadAttention(4, 4, w_init=hk.initializers.VarianceScaling(), model_size=16)(x, x, x)
        return y + hk.Linear(16)(jax.nn.gelu(hk.Linear(32)(y)))

    return net


def _gated(cell, state):
    def net(x):
        y = jnp.tanh(hk.Linear(12)(x))
        return hk.Linear(3)(hk.dynamic_unroll(cell(8), y, state(x.shape[1]))[0])

    return lambda train: net


HAIKU = {
    "batch norm": (_normed, (2, 6, 6, 3)),
    "mlp": (lambda train: lambda x: hk.nets.MLP([16, 8, 4])(x), (4, 6)),
    "attention": (_attended, (2, 5, 16)),
    "gru": (_gated(hk.GRU, lambda n: jnp.zeros((n, 8))), (5, 2, 6)),
    "lstm": (_gated(hk.LSTM, lambda n: hk.LSTMState(jnp.zeros((n, 8)), jnp.zeros((n, 8)))), (5, 2, 6)),
}


@pytest.mark.parametrize("name", HAIKU)
def test_layers_of_haiku(name):
    """Haiku checks the shapes of parameters against its modules' sizes: what it refuses stays whole and is told."""
    make, shape = HAIKU[name]
    train, serve = (hk.without_apply_rng(hk.transform_with_state(make(train))) for train in (True, False))
    x = random(*shape, seed=9)
    both = train.init(jax.random.key(0), x)
    f = lambda both, x: serve.apply(*both, x)[0]  # noqa: E731
    with pytest.raises(UserError, match=r"can be removed: the function fixes its size|cannot be reached"):
        ja.remove_channels(f, both, x, parameters=0.9)


# Options decide what is chosen.


def two_layers(p, x):
    return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]


def graded():
    """The channels of `a` matter about equally; three in four of `b` matter next to nothing."""
    params = {"a": jnp.ones((6, 16)), "b": jnp.ones((16, 16)), "c": jnp.ones((16, 5))}
    params["a"] = params["a"] * (1 + jnp.arange(16) / 100)
    little = jnp.where(jnp.arange(16) % 4 == 0, 1.0, 1e-3) * (1 + jnp.arange(16) / 1000)
    return params | {"b": params["b"] * little, "c": params["c"] * little[:, None]}


@pytest.mark.parametrize("budget", ["parameters", "flops"])
def test_scope_decides_where_channels_go(budget):
    x, params = random(4, 6, seed=9), graded()
    options = {"parameters": None, budget: 0.5}
    least = {scope: check(two_layers, params, x, scope=scope, **options) for scope in ("global", "layer")}
    widths = {scope: (r.params["a"].shape[1], r.params["c"].shape[0]) for scope, r in least.items()}
    assert widths["global"][0] == 16 and widths["global"][1] < 8  # all from where they matter least
    assert abs(widths["layer"][0] - widths["layer"][1]) <= 1 and widths["layer"][0] < 16  # as many everywhere
    kept = least["global"].kept["b"][1].tolist()
    assert set(range(0, 16, 4)) <= set(kept)  # and of those the ones that matter stay


def test_criterion_decides_which_channels_go():
    x, params = random(4, 6, seed=9), graded()
    options = {"parameters": 0.9, "where": "b", "scope": "layer"}
    slopes = jax.tree.map(jnp.ones_like, params)
    slopes["b"] = jnp.ones_like(params["b"]).at[:, ::4].set(0)  # the loss does not need what is large
    slopes["c"] = jnp.ones_like(params["c"]).at[::4].set(0)
    gone = {
        name: np.setdiff1d(np.arange(16), check(two_layers, params, x, **options, **more).kept["b"][1])
        for name, more in {
            "magnitude": {}, "taylor": {"criterion": "taylor", "grads": slopes},
            "random": {"criterion": "random", "key": jax.random.key(0)},
            "random again": {"criterion": "random", "key": jax.random.key(0)},
            "other random": {"criterion": "random", "key": jax.random.key(1)},
        }.items()
    }  # fmt: skip
    assert not set(gone["magnitude"]) & {0, 4, 8, 12} and set(gone["taylor"]) <= {0, 4, 8, 12}
    assert list(gone["random"]) == list(gone["random again"]) != list(gone["other random"])


def test_least_and_multiple_decide_how_many_stay():
    x, params = random(4, 6, seed=9), graded()
    removed = check(two_layers, params, x, parameters=0.3, least=0.25)
    assert min(removed.after.values()) >= 4
    removed = check(two_layers, params, x, parameters=0.5, multiple=8)
    assert set(removed.after.values()) <= {8, 16}
