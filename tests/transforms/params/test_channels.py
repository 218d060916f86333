"""Channels removed for good: what belongs together, budgets, and equal outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxaccel as ja
from jaxaccel import models
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model
from jaxaccel.models.vision.efficientnet import Stage
from jaxaccel.models.vision.mobilenet import Block
from jaxaccel.transforms.params.channels import remove as channels


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def conv(x, kernel, strides=(1, 1)):
    groups = x.shape[-1] // kernel.shape[2]
    return jax.lax.conv_general_dilated(
        x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def norm(x, p):
    return (x - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


def batch_norm(n, seed=0):
    return {"scale": 1 + random(n, seed=seed) / 3, "bias": random(n, seed=seed + 1), "mean": random(n, seed=seed + 2),
            "var": 1 + random(n, seed=seed + 3) ** 2}  # fmt: skip


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def linear(n, m, seed=0):
    return {"kernel": random(n, m, seed=seed), "bias": random(m, seed=seed + 1)}


def residual(p, x):
    x = jax.nn.relu(norm(conv(x, p["stem"]), p["stem_norm"]))
    y = jax.nn.relu(norm(conv(x, p["a"]), p["a_norm"]))
    x = jax.nn.relu(x + norm(conv(y, p["b"]), p["b_norm"]))
    return dense(x.mean((1, 2)), p["head"])


RESIDUAL = {
    "stem": random(3, 3, 3, 8), "stem_norm": batch_norm(8), "a": random(3, 3, 8, 12, seed=1),
    "a_norm": batch_norm(12, 4),
    "b": random(3, 3, 12, 8, seed=2), "b_norm": batch_norm(8, 8), "head": linear(8, 5, 3),
}  # fmt: skip


def concatenated(p, x):
    parts = [jax.nn.relu(conv(x, p[name])) for name in ("a", "b")]
    return conv(jnp.concatenate(parts, -1), p["c"]).mean((1, 2))


def flattened(p, x):
    y = jax.nn.relu(conv(x, p["a"]))
    return dense(y.reshape(y.shape[0], -1), p["head"])


def depthwise(p, x):
    y = conv(x, p["wide"])
    y = norm(conv(y, p["depthwise"]), p["norm"])
    gate = jax.nn.sigmoid(dense(jax.nn.relu(dense(y.mean((1, 2)), p["squeeze"])), p["excite"]))
    return conv(y * gate[:, None, None], p["narrow"]).mean((1, 2))


def attention(p, x):
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[n]) + p[n + "_bias"] for n in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5, -1)
    return jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", weights, v), p["out"])


def scanned(p, x):
    def block(x, layer):
        return x + jnp.tanh(x @ layer["up"]) @ layer["down"], None

    return jax.lax.scan(block, x, p["layers"])[0] @ p["head"]


def split(p, x):
    a, b = jnp.split(x @ p["both"], 2, -1)
    return (a * jax.nn.sigmoid(b)) @ p["out"]


CASES = {
    "residual": (residual, RESIDUAL, (2, 8, 8, 3), {("a", 3), ("a_norm/scale", 0), ("b", 2)}),
    "concatenated": (
        concatenated, {"a": random(3, 3, 3, 6), "b": random(1, 1, 3, 4), "c": random(1, 1, 10, 5)}, (2, 6, 6, 3),
        {("a", 3), ("c", 2)},
    ),
    "flattened": (
        flattened, {"a": random(3, 3, 3, 6), "head": linear(6 * 16, 5)}, (2, 4, 4, 3),
        {("a", 3), ("head/kernel", 0)},
    ),
    "depthwise": (
        depthwise,
        {"wide": random(1, 1, 4, 12), "depthwise": random(3, 3, 1, 12), "norm": batch_norm(12),
         "squeeze": linear(12, 6), "excite": linear(6, 12, 2), "narrow": random(1, 1, 12, 5)},
        (2, 6, 6, 4),
        {("wide", 3), ("depthwise", 3), ("excite/kernel", 1), ("narrow", 2), ("squeeze/kernel", 0)},
    ),
    "attention": (
        attention,
        {"query": random(16, 4, 3), "key": random(16, 4, 3, seed=1), "value": random(16, 4, 3, seed=2),
         "query_bias": random(4, 3), "key_bias": random(4, 3, seed=4), "value_bias": random(4, 3, seed=5),
         "out": random(4, 3, 16, seed=3)},
        (2, 5, 16), {("query", 1), ("key_bias", 0), ("out", 0)},
    ),
    "scanned": (
        scanned, {"layers": {"up": random(3, 8, 10), "down": random(3, 10, 8, seed=1)}, "head": random(8, 4)}, (2, 8),
        {("layers/up", 2), ("layers/down", 1)},
    ),
    "split": (split, {"both": random(6, 16), "out": random(8, 3)}, (4, 6), {("both", 1), ("out", 0)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_smaller_parameters_compute_what_masked_ones_do(name):
    f, params, shape, together = CASES[name]
    x = random(*shape, seed=9)
    removed = ja.remove_channels(f, params, x, parameters=0.7, scope="layer")
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(p)) for p in (params, removed.params)]
    assert sizes[1] <= 0.7 * sizes[0]
    # By hand: zeros wherever something went.
    masked = jax.tree_util.tree_map_with_path(
        lambda path, w: _blank(w, removed.kept.get(_text(path), {})), params
    )
    np.testing.assert_allclose(f(removed.params, x), f(masked, x), rtol=1e-3, atol=1e-3)
    assert np.abs(f(removed.params, x) - f(params, x)).max() > 1e-3  # and something did go
    for path, axis in together:
        assert axis in removed.kept[path], path
    lengths = {(path, axis): len(removed.kept[path][axis]) for path, axis in together}
    flat = {"flattened": ("head/kernel", 0), "concatenated": ("c", 2), "split": ("both", 1)}.get(name)
    assert len({n for place, n in lengths.items() if place != flat}) == 1


def _text(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _blank(w, kept):
    for axis, positions in kept.items():
        gone = np.setdiff1d(np.arange(w.shape[axis]), positions)
        w = w.at[(slice(None),) * axis + (gone,)].set(0)
    return w


def test_the_least_go_first():
    params = jax.tree.map(lambda x: x, RESIDUAL)
    params["a"] = params["a"].at[..., [2, 7]].multiply(1e-3)
    params["b"] = params["b"].at[:, :, [2, 7]].multiply(1e-3)
    removed = ja.remove_channels(residual, params, random(2, 8, 8, 3), parameters=0.87, where="a")
    assert sorted(set(range(12)) - set(removed.kept["a"][3].tolist())) == [2, 7]


def test_taylor_spares_what_the_loss_needs():
    x = random(4, 8, 8, 3, seed=5)
    grads = jax.grad(lambda p: jnp.sum(residual(p, x)[:, 0] ** 2))(RESIDUAL)
    silent = jax.tree.map(lambda g: g, grads)
    for leaf, axis in (("a", 3), ("b", 2)):
        silent[leaf] = jnp.moveaxis(jnp.moveaxis(grads[leaf], axis, 0).at[4].set(0), 0, axis)
    for leaf in ("scale", "bias", "mean", "var"):
        silent["a_norm"][leaf] = grads["a_norm"][leaf].at[4].set(0)
    removed = ja.remove_channels(
        residual, RESIDUAL, x, parameters=0.97, where="a", criterion="taylor", grads=silent
    )
    assert 4 not in removed.kept["a"][3]


@pytest.mark.parametrize("budget", ["flops", "parameters"])
def test_budgets(budget):
    x = random(2, 8, 8, 3)
    removed = ja.remove_channels(residual, RESIDUAL, x, **{budget: 0.5})
    cost = {
        "flops": lambda p: sum(ja.params.count_multiply_adds(residual, p, x).values()),
        "parameters": lambda p: sum(leaf.size for leaf in jax.tree.leaves(p)),
    }[budget]
    assert 0.35 < cost(removed.params) / cost(RESIDUAL) <= 0.5
    assert "->" in removed.report()


def test_a_budget_of_measured_latency(monkeypatch):
    measured = []

    def clock(call, rounds):
        """As if every number that is multiplied took a second: nothing here depends on how busy the machine is."""
        measured.append(jax.tree.map(jnp.shape, call()))
        return float(sum(x.size for x in call.args[0]))

    monkeypatch.setattr(channels, "time_call", clock)
    x = random(2, 8, 8, 3)
    params = {"a": random(3, 3, 3, 64), "b": random(3, 3, 64, 8)}
    f = lambda p, x: conv(jax.nn.relu(conv(x, p["a"])), p["b"]).mean((1, 2))  # noqa: E731
    removed = ja.remove_channels(f, params, x, latency=0.6)
    assert 0.5 < removed.params["a"].shape[3] / 64 <= 0.6
    assert set(measured) == {(2, 8)} and len(measured) < 20


def test_multiples():
    removed = ja.remove_channels(residual, RESIDUAL, random(2, 8, 8, 3), parameters=0.7, multiple=4)
    assert all(n % 4 == 0 for n in removed.after.values())


def network(factory, **options):
    """(f, {"params", "state"}): in inference, with random numbers; initializers would have to be compiled."""
    model = as_model(factory, {"classes": 10, "channels": 3, **options}, ())
    rng = np.random.default_rng(0)

    def fill(path, x):
        noise = 0.3 * rng.standard_normal(x.shape)
        values = np.abs(noise) + 0.5 if "var" in _text(path) else noise + ("scale" in _text(path))
        return jnp.asarray(values, x.dtype)

    params, state = jax.tree_util.tree_map_with_path(fill, jax.eval_shape(model.init, jax.random.key(0)))

    def f(both, x):
        return model.apply(both["params"], both["state"], x, key=jax.random.key(0), train=False)[0]

    return f, {"params": params, "state": state}


@pytest.mark.slow
def test_state_and_optimizer_are_cut_alike():
    f, both = network(models.ResNetCifar, depth=8, width=8)
    params, x = both["params"], random(2, 16, 16, 3)
    opt_state = optax.adam(1e-3).init(params)
    removed = ja.remove_channels(f, both, x, flops=0.6, along=({"params": opt_state[0].mu},))
    smaller, mu = removed.params["params"], removed.along[0]["params"]
    assert jax.tree.map(jnp.shape, smaller) == jax.tree.map(jnp.shape, mu)
    assert (
        removed.params["state"]["stages"][0][0]["norm1"]["mean"].shape
        == smaller["stages"][0][0]["norm1"]["scale"].shape
    )
    assert jax.eval_shape(f, removed.params, x).shape == (2, 10)
    tx = optax.adam(1e-3)
    tx.update(jax.tree.map(jnp.zeros_like, smaller), tx.init(smaller), smaller)


def test_padding_shortcuts_keep_what_they_pad():
    f, both = network(models.ResNetCifar, depth=8, width=8)
    removed = ja.remove_channels(f, both, random(2, 16, 16, 3), parameters=0.9, where="**/stem/conv/kernel")
    gone = 8 - removed.params["params"]["stem"]["conv"]["kernel"].shape[-1]
    widths = [removed.params["params"]["stages"][i][0]["conv2"]["kernel"].shape[-1] for i in range(3)]
    assert gone > 0 and widths == [8 - gone, 16 - gone, 32 - gone]
    whole = ja.remove_channels(f, both, random(2, 16, 16, 3), parameters=0.9).fixed
    assert whole["params/stages/1/0/conv2/kernel"] == "add needs 8 of its 16 outputs"


DEPTHWISE = "params/blocks/1/depthwise/conv/kernel"
NETWORKS = {
    "mobilenet_v2": (
        models.MobileNetV2, {"stages": ((1, 8, 1, 1), (4, 16, 2, 2)), "width": 0.5, "dropout": 0.0}, DEPTHWISE,
    ),
    "mobilenet_v3": (
        models.MobileNetV3,
        {"blocks": [Block(3, 16, 8, True, nnx.relu, 2), Block(5, 32, 8, True, nnx.hard_swish, 1)], "hidden": 8},
        DEPTHWISE,
    ),
    "efficientnet": (
        models.EfficientNet,
        {"stages": [Stage(2, 3, 1, 8, 1, True), Stage(4, 5, 2, 8, 1)], "stem": 8, "last": 16},
        DEPTHWISE,
    ),
    "resnext": (
        models.ResNet, {"blocks": (1, 1), "bottleneck": True, "width": 4, "groups": 4, "group_width": 2},
        "params/stages/0/0/conv1/kernel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_grouped_convolutions_shrink(name):
    factory, options, wide = NETWORKS[name]
    f, both = network(factory, **options)
    x = random(2, 16, 16, 3)
    removed = ja.remove_channels(f, both, x, flops=0.5)  # which compares it with the masked network
    costs = [sum(ja.params.count_multiply_adds(f, p, x).values()) for p in (both, removed.params)]
    assert costs[1] <= 0.5 * costs[0]
    assert removed.after[wide] < removed.before[wide] and wide in removed.report()
    assert set(removed.fixed) == {"params/head/kernel"}  # the classes


def layer_normed(p, x):
    y = x @ p["a"]
    y = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5)
    return jax.nn.relu(y @ p["b"]) @ p["c"]


def test_what_a_norm_averages_over_stays_whole():
    params = {"a": random(6, 10), "b": random(10, 12), "c": random(12, 4)}
    removed = ja.remove_channels(layer_normed, params, random(3, 6), parameters=0.7)
    assert removed.params["a"].shape == (6, 10) and removed.params["b"].shape[1] < 12
    assert removed.fixed == {
        "a": "reduce_sum needs 10 of its 10 outputs",
        "c": "the result needs 4 of its 4 outputs",
    }


def test_a_size_that_the_function_insists_on_stays():
    def f(p, x):
        return (x @ p["a"]).reshape(-1, 2, 5).sum(1) @ p["b"] + jnp.tanh(x @ p["c"]) @ p["d"]

    params = {"a": random(6, 10), "b": random(5, 4), "c": random(6, 12), "d": random(12, 4)}
    removed = ja.remove_channels(f, params, random(3, 6), parameters=0.7)
    assert removed.params["a"].shape == (6, 10) and removed.params["c"].shape[1] < 12


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "exactly one of flops, parameters, latency"),
        ({"flops": 1.2}, "between 0 and 1"),
        ({"flops": 0.001}, "cannot be reached"),
        ({"flops": 0.5, "where": "c"}, "matches none"),
        ({"flops": 0.5, "criterion": "taylor"}, "needs grads="),
        ({"flops": 0.5, "where": "head/bias"}, "nothing of this function's parameters can be removed"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(options, says):
    with pytest.raises(UserError, match=says):
        ja.remove_channels(residual, RESIDUAL, random(2, 8, 8, 3), **options)


def test_numbers_and_texts_among_the_parameters_are_constants():
    """A function may count layers by one of them, or look an activation up by its name."""
    a, b = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(6, 8), (8, 3)]))
    params = {"a": a, "b": b, "layers": 2, "act": "relu", "eps": 1e-3, "head": True}

    def f(p, x):
        h = x @ p["a"]
        for _ in range(p["layers"]):
            h = getattr(jax.nn, p["act"])(h + p["eps"])
        return h @ p["b"] if p["head"] else h

    x = jnp.ones((4, 6))
    removed = ja.remove_channels(f, params, x, flops=0.5)
    assert {name: removed.params[name] for name in ("layers", "act", "eps", "head")} == {
        name: params[name] for name in ("layers", "act", "eps", "head")
    }
    assert removed.params["a"].shape == (6, 4)
    kept = removed.kept["a"][1]
    np.testing.assert_allclose(
        f(removed.params, x), f(params | {"a": a[:, kept], "b": b[kept]}, x), rtol=1e-6
    )
    ja.remove_channels(f, params, x, parameters=0.5)


def test_compressed_parameters_come_later():
    with pytest.raises(UserError, match="remove channels first"):
        ja.remove_channels(
            flattened,
            ja.quantize({"a": random(3, 3, 3, 6), "head": linear(96, 5)}, where="a"),
            random(2, 4, 4, 3),
            flops=0.5,
        )
