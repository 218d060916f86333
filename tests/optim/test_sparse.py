"""Training of sparse weights: schedules, methods and exact zeros, step by step."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxaccel as ja
from jaxaccel.errors import UserError
from jaxaccel.optim import Optimizer, Sparse, sparse
from jaxaccel.optim.sharpness import sharpness_aware
from jaxaccel.transforms.params.prune import sparsity_of

STEPS = 40


def problem():
    w = jax.random.normal(jax.random.key(0), (12, 8))
    x = jax.random.normal(jax.random.key(1), (64, 12))
    params = {"layer": {"kernel": jax.random.normal(jax.random.key(2), (12, 8)), "bias": jnp.ones(8)}}
    return params, lambda p: jnp.mean((x @ p["layer"]["kernel"] + p["layer"]["bias"] - x @ w) ** 2)


def trained(how, tx=None, steps=STEPS, params=None, seed=0, of=STEPS):
    """(parameters, state) after each of the first `steps` steps of a run of `of`."""
    start, loss = problem()
    params = start if params is None else params
    tx = sparse(tx or optax.adam(0.02), how, of, seed)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    rows = []
    for _ in range(steps):
        params, state = step(params, state)
        rows.append((params, state))
    return rows


def zeros(params):
    return int((params["layer"]["kernel"] == 0).sum())


def test_without_pruning_it_is_the_optimizer_itself():
    params, loss = problem()
    tx = optax.adam(0.02)
    state = tx.init(params)
    for found, _ in trained(Sparse(0.5, "one_shot", begin=1.0, end=1.0), steps=5):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, params)


def test_one_shot():
    rows = trained(Sparse(0.75, "one_shot", begin=0.25))
    assert [zeros(p) for p, _ in rows[:9]] == [0] * 9
    assert {zeros(p) for p, _ in rows[9:]} == {72}
    masks = [np.asarray(state.masks["layer"]["kernel"]) for _, state in rows]
    assert (masks[9] == masks[-1]).all() and rows[0][1].masks["layer"]["bias"] is None
    assert (rows[-1][0]["layer"]["bias"] != 1).all()  # the rest goes on learning


def test_gradual_follows_the_cubic():
    how = Sparse(0.8, "gradual", begin=0.1, end=0.6, every=4)
    counts = [zeros(p) for p, _ in trained(how)]
    begin, end = 4, 24
    for step in range(1, STEPS + 1):
        if step < begin:
            assert counts[step - 1] == 0
            continue
        last = min(begin + (step - begin) // 4 * 4, end)
        expected = 0.8 * (1 - (1 - (last - begin) / (end - begin)) ** 3)
        assert counts[step - 1] == 96 - round(96 * (1 - expected)), step


def test_straight_through_lets_weights_come_back():
    rows = trained(Sparse(0.5, "straight_through", end=1.0, every=1))
    assert {zeros(p) for p, _ in rows} == {48}
    masks = [np.asarray(state.masks["layer"]["kernel"]) for _, state in rows]
    assert (~masks[0] & masks[-1]).any()
    params, loss = problem()
    # By hand: gradients where the weights are masked, taken to the weights as they are.
    tx, dense = optax.adam(0.02), params
    state = tx.init(params)
    for i, (found, _) in enumerate(rows[:6]):
        here = params if i == 0 else ja.params.masked(dense, ja.prune(dense, 0.5))
        updates, state = tx.update(jax.grad(loss)(here), state, dense)
        dense = optax.apply_updates(dense, updates)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found,
            ja.params.masked(dense, ja.prune(dense, 0.5)),
        )  # fmt: skip


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_regrowth_keeps_the_count_and_moves_the_weights(method):
    rows = trained(Sparse(0.75, method, end=0.5, every=5, regrow=0.5))
    assert all(zeros(p) >= 72 for p, _ in rows)  # what grows starts at 0
    masks = [np.asarray(state.masks["layer"]["kernel"]) for _, state in rows]
    assert {int(m.sum()) for m in masks} == {24}
    assert (masks[0] != masks[20]).any() and (masks[20] == masks[-1]).all()
    changed = [i + 1 for i in range(1, STEPS) if (masks[i] != masks[i - 1]).any()]
    assert set(changed) <= {5, 10, 15, 20} and changed


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_the_seed_decides_what_is_random(method):
    how = Sparse(0.75, method, end=1.0, every=2, regrow=0.5)
    runs = [trained(how, steps=4, seed=seed) for seed in (3, 3, 8)]
    first, again, other = ([np.asarray(state.masks["layer"]["kernel"]) for _, state in rows] for rows in runs)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any()


def test_set_grows_by_seed_and_step():
    params, loss = problem()
    grads, how = jax.grad(loss)(params), Sparse(0.75, "set", end=1.0, every=1, regrow=1.0)
    start = sparse(optax.sgd(0.0), how, STEPS).init(params)

    @jax.jit
    def grown(seed, step):
        _, state = sparse(optax.sgd(0.0), how, STEPS, seed).update(grads, start._replace(step=step), params)
        return state.masks["layer"]["kernel"] & ~start.masks["layer"]["kernel"]

    assert (grown(3, 4) == grown(3, 4)).all()
    assert (grown(3, 4) != grown(8, 4)).any() and (grown(3, 4) != grown(3, 5)).any()


def test_rigl_grows_where_the_gradient_is_largest():
    params, loss = problem()
    how = Sparse(0.75, "rigl", end=1.0, every=1, regrow=1.0)
    tx = sparse(optax.sgd(0.0), how, STEPS)
    state = tx.init(params)
    before = np.asarray(state.masks["layer"]["kernel"])
    grads = jax.grad(loss)(params)
    _, state = tx.update(grads, state, params)
    after, size = np.asarray(state.masks["layer"]["kernel"]), np.abs(grads["layer"]["kernel"])
    grown = after & ~before
    assert grown.any() and size[grown].min() >= size[~after & ~before].max()


def test_lottery_rounds_go_back_to_the_weights_of_the_start():
    how = Sparse(0.75, "lottery", begin=0.1, end=0.6, every=10)
    rows = trained(how)
    start = rows[3][0]  # after step 4
    assert [zeros(rows[i][0]) for i in (3, 12, 13, 22, 23, 39)] == [0, 0, 48, 48, 72, 72]
    for step in (14, 24):
        params, state = rows[step - 1]
        mask = state.masks["layer"]["kernel"]
        np.testing.assert_allclose(
            params["layer"]["kernel"], jnp.where(mask, start["layer"]["kernel"], 0), atol=1e-7
        )
        assert int(state.inner[0].count) == 0


@pytest.mark.parametrize("method", ["one_shot", "gradual", "straight_through"])
def test_patterns_hold_after_every_step(method):
    rows = trained(Sparse(0.0, method, pattern="2:4", end=0.5, every=5))
    groups = np.asarray(rows[-1][0]["layer"]["kernel"]).reshape(3, 4, 8)
    assert ((groups != 0).sum(1) == 2).all()


def test_removed_weights_are_exactly_zero_whatever_the_optimizer():
    for tx in (
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.adamw(0.05, weight_decay=0.1),
        optax.lion(0.01),
    ):
        params, state = trained(Sparse(0.5, "one_shot"), tx)[-1]
        assert not np.asarray(params["layer"]["kernel"])[~np.asarray(state.masks["layer"]["kernel"])].any()


def test_optax_sam_around_its_own_way():
    params = {"a": {"kernel": jnp.array([[0.0, 2.0], [3.0, 0.0]])}}
    opaque = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2, opaque_mode=True)
    tx = sparse(opaque, Sparse(method="fixed"), 10)
    seen = []

    def grad_fn(params, _):
        seen.append(params["a"]["kernel"])
        return jax.tree.map(jnp.ones_like, params)

    updates, _ = tx.update(grad_fn(params, 0), tx.init(params), params, grad_fn=grad_fn)
    assert len(seen) > 1 and all(((x == 0) == (params["a"]["kernel"] == 0)).all() for x in seen)
    assert ((optax.apply_updates(params, updates)["a"]["kernel"] == 0) == (params["a"]["kernel"] == 0)).all()


def test_straight_through_values_are_those_of_the_sparse_weights():
    def update(updates, state, params=None, *, value_fn, **_):
        del params
        return updates, value_fn({"a": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}})

    asking = optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0), update)
    params = {"a": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}}
    tx = sparse(asking, Sparse(0.5, "straight_through", end=0.1), 10)
    state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):
        _, state = tx.update(zeros, state, params, value_fn=lambda p: p["a"]["kernel"].sum())
    assert float(state.inner) == 7.0


@pytest.mark.parametrize("method", ["fixed", "straight_through"])
def test_a_sharpness_aware_optimizer_looks_at_the_sparse_weights(method):
    params = {"a": {"kernel": jnp.array([[0.0, 2.0], [3.0, 0.0]])}}
    how = Sparse(method="fixed") if method == "fixed" else Sparse(0.5, "straight_through", end=0.1)
    tx = sparse(sharpness_aware(optax.sgd(0.1, momentum=0.9), 0.05), how, 10)
    asked = []

    def grad_fn(params):
        asked.append(params["a"]["kernel"])
        return jax.tree.map(lambda p: p + 1.0, params)

    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
    gone = np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(asked[-1] == 0, gone)
    trace = jax.tree.leaves(state.inner)[0]
    assert ((trace == 0) == gone).all() if method == "fixed" else (trace != 0).all()


def test_zeros_stay_zeros():
    params, _ = problem()
    params = ja.params.masked(params, ja.prune(params, 0.75))
    rows = trained(Sparse(method="fixed"), params=params)
    for found, _ in rows:
        np.testing.assert_array_equal(found["layer"]["kernel"] == 0, params["layer"]["kernel"] == 0)
    assert not np.allclose(rows[-1][0]["layer"]["kernel"], params["layer"]["kernel"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 1.0}, r"must lie in \[0, 1\)"),
        ({"sparsity": 0.5, "begin": 0.9, "end": 0.5}, "begin 0.9 must not come after end 0.5"),
        ({"sparsity": 0.5, "pattern": "3-4"}, "pattern must be"),
        ({"sparsity": 0.5, "every": 0}, "every must be at least 1, got 0"),
        ({"sparsity": 0.8, "pattern": "2:4"}, "2:4 is a sparsity of 0.5, not 0.8: leave out sparsity"),
        ({"pattern": "2:4", "scope": "erk"}, "every layer alike: leave out scope"),
        ({"pattern": "2:4", "method": "lottery"}, "choose method=.one_shot"),
        ({"pattern": "2:4", "method": "set"}, "set regrows single weights: leave out pattern"),
        (
            {"sparsity": 0.5, "pattern": "block", "method": "rigl"},
            "rigl regrows single weights: leave out pattern",
        ),
        ({"sparsity": 0.5, "scope": "global", "method": "set"}, "choose scope=.layer. or erk"),
        ({"sparsity": 0.5, "method": "fixed"}, "leave out sparsity and pattern"),
        ({"pattern": "2:4", "method": "fixed"}, "fixed keeps the zeros that there are"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(options, says):
    with pytest.raises(UserError, match=says):
        Sparse(**options)


def test_a_pattern_may_repeat_its_sparsity():
    assert Sparse(0.5, pattern="2:4").on and Sparse(0.75, pattern="1:4").on


@pytest.mark.parametrize(("every", "steps"), [(100, 50), (31, 40)])
def test_rounds_that_do_not_fit(every, steps):
    how = Sparse(0.8, "lottery", every=every)
    with pytest.raises(UserError, match=f"lower every to at most {round(0.75 * steps)}"):
        sparse(optax.sgd(0.1), how, steps)
    with pytest.raises(UserError, match="rigl: no round of"):
        sparse(optax.sgd(0.1), dataclasses.replace(how, method="rigl"), steps)
    how = dataclasses.replace(how, every=round(0.75 * steps))
    assert zeros(trained(how, steps=how.every, of=steps)[-1][0]) == 77


def test_a_pattern_that_does_not_divide():
    with pytest.raises(UserError, match="does not divide layer/kernel"):
        sparse(optax.sgd(0.1), Sparse(pattern="4:8"), STEPS).init(problem()[0])


@pytest.mark.slow
def test_a_recipe_that_prunes(tmp_path):
    recipe = dataclasses.replace(
        ja.load_recipe("digits"), model=partial(ja.models.ConvNet, widths=(8,), hidden=16), epochs=1, augment=(),
        sparse=Sparse(0.8, "gradual", every=2),
    )  # fmt: skip
    result = ja.train(recipe, run=tmp_path / "run")
    kernels = [x for x in jax.tree.leaves(result.state.params) if x.ndim > 1]
    share = sum(int((x == 0).sum()) for x in kernels) / sum(x.size for x in kernels)
    assert abs(share - 0.8) < 0.01
    assert ja.load_recipe(str(tmp_path / "run")).sparse == recipe.sparse
    with pytest.raises(UserError, match="do not go together"):
        dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, ema=0.99))


@pytest.mark.parametrize("method", ["one_shot", "straight_through", "rigl", "lottery", "fixed"])
def test_what_is_frozen_is_not_pruned(method):
    params, loss = problem()
    params = {"stem": params["layer"], "head": params["layer"]}
    zero = params["stem"]["kernel"].at[0].set(0.0)
    params["head"] = {**params["head"], "kernel": zero}
    how = Sparse(0.0 if method == "fixed" else 0.5, method, end=1.0, every=2)
    optimizer = Optimizer("adam", 0.02, freeze=("stem/**",))
    tx = optimizer.build(optax.constant_schedule(0.02), 4, partial(sparse, how=how, steps=4))
    state, moved = tx.init(params), params
    for _ in range(4):
        grads = jax.grad(lambda p: loss({"layer": p["stem"]}) + loss({"layer": p["head"]}))(moved)
        updates, state = tx.update(grads, state, moved)
        moved = optax.apply_updates(moved, updates)
    jax.tree.map(np.testing.assert_array_equal, moved["stem"], params["stem"])
    assert (np.asarray(moved["head"]["kernel"]) == 0).sum() == (8 if method == "fixed" else 48)


@pytest.mark.slow
def test_a_recipe_that_prunes_what_moves_and_keeps_the_rest(tmp_path):
    recipe = dataclasses.replace(
        ja.load_recipe("digits"), model=partial(ja.models.ConvNet, widths=(8,), hidden=16), epochs=0.1, augment=(),
        sparse=Sparse(0.5, "one_shot"), lowering="xla",
        optimizer=Optimizer("sgd", 0.1, freeze=("stages/**",)),
    )  # fmt: skip
    params = ja.train(recipe, run=tmp_path / "run").state.params
    assert sparsity_of(params, "stages/**/kernel") == 0
    assert abs(sparsity_of(params, "{hidden,head}/kernel") - 0.5) < 0.01
