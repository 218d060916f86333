"""The training step: accumulation, averages, remat, non-finite steps, fused calls."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from grids import slow_but

from jaxaccel import augment
from jaxaccel.core.interpret.jaxprs import split_consts, sub_jaxprs
from jaxaccel.models.adapter import as_model
from jaxaccel.optim import Optimizer, Sparse, sparse
from jaxaccel.optim.averaging import Averaging
from jaxaccel.tasks import ImageClassification
from jaxaccel.tasks.metrics import add
from jaxaccel.training.checkpoint import digest_state
from jaxaccel.training.fused_steps import fuse_evaluations, fuse_steps, gather_batch
from jaxaccel.training.step import Training

B = 16


class Mlp(nnx.Module):
    def __init__(self, *, classes, rngs):
        self.dense = nnx.Linear(16, 8, rngs=rngs)
        self.head = nnx.Linear(8, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.dense(x.reshape(x.shape[0], -1))))


def batch(seed=0, size=B):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 4, 4, 1), dtype=np.uint8),
        "label": rng.integers(0, 3, size).astype(np.int32),
        "index": np.arange(size, dtype=np.int32),
        "mask": np.ones(size, np.float32),
    }


def training(**changes):
    task = ImageClassification()
    inputs = jax.eval_shape(task.inputs, jax.eval_shape(batch))
    model = as_model(Mlp, {"classes": 3}, inputs)
    schedule = optax.constant_schedule(0.1)
    options = {"tx": optax.sgd(schedule, momentum=0.9), "schedule": schedule, "augment": augment.chain()}
    return Training(model, task, **options | changes)


def test_one_step_is_the_textbook_update():
    t = training()
    state = t.init()
    after, metrics = jax.jit(t.step)(state, batch())
    b = batch()

    def loss(params):
        x = jnp.asarray(b["image"], jnp.float32) / 127.5 - 1
        hidden = jax.nn.relu(x.reshape(B, -1) @ params["dense"]["kernel"] + params["dense"]["bias"])
        logits = hidden @ params["head"]["kernel"] + params["head"]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, b["label"]).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6), after.params, expected)
    np.testing.assert_allclose(metrics.means["loss"].value(), value, rtol=1e-6)
    np.testing.assert_allclose(metrics.gradient_norm, optax.global_norm(grads), rtol=1e-5)
    assert int(after.step) == 1


def test_accumulation_gives_the_same_update():
    whole, _ = training().step(training().init(), batch())
    parts, metrics = training(accumulate=4).step(training().init(), batch())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts.params, whole.params)
    assert float(metrics.means["loss"].count) == B


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gradients_of_narrow_weights_are_summed_in_float32(dtype):
    """Sixteen parts, whose sum in float16 would overflow, and so would the square of its norm."""

    class Narrow(nnx.Module):
        def __init__(self, *, classes, rngs):
            self.head = nnx.Linear(16, classes, param_dtype=dtype, dtype=jnp.float32, rngs=rngs)

        def __call__(self, x):
            return 4000 * self.head(x.reshape(x.shape[0], -1))

    task = ImageClassification()
    model = as_model(Narrow, {"classes": 3}, jax.eval_shape(task.inputs, jax.eval_shape(batch)))
    t = training(accumulate=16)
    t = dataclasses.replace(t, model=model, averaging=Averaging(decay=0.5))
    state = t.init()
    found = jax.jit(lambda s, b: t.loss.compute_gradients(s, b, jax.random.key(0)).grads)(state, batch())
    single = dataclasses.replace(t, accumulate=1)
    each = [
        jax.jit(lambda s, b: single.loss.compute_gradients(s, b, jax.random.key(0)).grads)(
            state, {k: v[i : i + 1] for k, v in batch().items()}
        )
        for i in range(B)
    ]
    want = jax.tree.map(lambda *g: np.mean([np.float64(x) for x in g], 0), *each)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=2**-7 * np.abs(b).max())
    after, metrics = jax.jit(t.step)(state, batch())
    norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(want)))
    np.testing.assert_allclose(
        metrics.gradient_norm, norm, rtol=2**-7
    )  # its square is more than float16 holds
    assert bool(metrics.finite) and norm > 256
    assert {x.dtype for x in jax.tree.leaves(after.average)} == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in jax.tree.leaves(after.weights())} == {jnp.dtype(dtype)}


class Halves(nnx.Module):
    """All of it in bfloat16."""

    def __init__(self, *, classes, rngs):
        types = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
        self.dense = nnx.Linear(16, 8, **types, rngs=rngs)
        self.head = nnx.Linear(8, classes, **types, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.dense(x.astype(jnp.bfloat16).reshape(x.shape[0], -1))))


STEPS = {
    **{
        name: (Optimizer(name), {})
        for name in ("sgd", "adamw", "muon", "soap", "schedule_free_adamw", "lbfgs")
    },
    "lookahead": (Optimizer("adam", lookahead=2), {}),
    "sam": (Optimizer("adam", asam=0.5, freeze=("dense/bias",)), {"averaging": Averaging(decay=0.9)}),
    "rates": (Optimizer("adam", rates={"head/**": 3.0}), {"averaging": Averaging(at=(1, 2))}),
    "parts": (Optimizer("conjugate_gradient"), {"accumulate": 4}),
    **{p: (Optimizer("adam"), {"precision": p}) for p in ("bfloat16", "float16", "int8-qat")},
    **{m: (Optimizer("adam"), {"method": m}) for m in ("gradual", "straight_through", "rigl", "lottery")},
}


def additions(jaxpr):
    """The types of all sums and differences in `jaxpr` and those within."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("add", "sub", "add_any", "reduce_sum", "cumsum", "scatter-add"):
            yield from (v.aval for v in eqn.outvars)
        for sub in sub_jaxprs(eqn.params):
            yield from additions(split_consts(sub)[0])


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_bfloat16_weights(name):
    """Under strict promotion too; whatever is summed over parts, steps or weights is float32."""
    optimizer, options = STEPS[name]
    how = Sparse(0.5, options["method"], every=2) if "method" in options else None
    schedule = optax.constant_schedule(0.1)
    tx = optimizer.build(schedule, 20, around=None if how is None else lambda tx: sparse(tx, how, 20))
    model = as_model(
        Halves, {"classes": 3}, jax.eval_shape(ImageClassification().inputs, jax.eval_shape(batch))
    )
    options = {key: value for key, value in options.items() if key != "method"}
    t = dataclasses.replace(training(tx=tx, **options), model=model)
    with jax.numpy_dtype_promotion("strict"):
        state = jax.eval_shape(t.init)
        program = jax.make_jaxpr(t.step, return_shape=True)(state, jax.eval_shape(partial(batch, size=12)))
    jaxpr, (after, _) = program
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    kept = jax.tree.leaves((state.opt_state, state.average if t.averaging else None))
    assert not {x.dtype for x in kept} & {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}
    kernels = {x.shape for x in jax.tree.leaves(state.params) if x.ndim == 2}
    added = {x.dtype for x in additions(split_consts(jaxpr)[0]) if x.shape in kernels}
    if name != "int8-qat":  # which adds what rounding changes to each weight
        assert added == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("policy", ["nothing_saveable", "dots_saveable"])
def test_remat_changes_memory_and_not_values(policy):
    plain, _ = training().step(training().init(), batch())
    remat, _ = training(remat=policy).step(training().init(), batch())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), remat.params, plain.params)
    jaxpr = str(jax.make_jaxpr(training(remat=policy).step)(training().init(), batch()))
    assert "checkpoint" in jaxpr or "remat" in jaxpr
    assert "checkpoint" not in str(jax.make_jaxpr(training().step)(training().init(), batch()))


def test_moving_average():
    t = training(averaging=Averaging(decay=0.9))
    before = t.init()
    after, _ = t.step(before, batch())
    expected = jax.tree.map(lambda p, q: 0.9 * p + 0.1 * q, before.params, after.params)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6), after.weights(), expected)
    assert training().init().weights() is not None


OPTIMIZERS = {
    "lbfgs": Optimizer("lbfgs"),
    "conjugate_gradient": Optimizer("conjugate_gradient"),
    "sophia": Optimizer("sophia", 0.02, args={"update_interval": 1}),
    "muon": Optimizer("muon", 0.02),
    "momo": Optimizer("momo", 0.5),
    "sgd-sam": Optimizer("sgd", 0.2, sam=0.05, accumulate=2),
    "sgd-asam": Optimizer("sgd", 0.2, asam=0.5, lookahead=2, rates={"head/**": 3.0}),
    "schedule_free_adamw": Optimizer("schedule_free_adamw", 0.02),
}
ASKING = ("conjugate_gradient", "sgd-sam", "schedule_free_adamw")
"""For the loss at other parameters, for gradients there, and to be evaluated at others."""


@pytest.mark.parametrize("name", slow_but(ASKING, OPTIMIZERS))
def test_optimizers_get_what_they_ask_a_step_for(name):
    optimizer = OPTIMIZERS[name]
    schedule = optax.constant_schedule(optimizer.learning_rate)
    t = training(tx=optimizer.build(schedule), schedule=schedule, accumulate=optimizer.accumulate)
    # The compile time is the cost here: a third of it without LLVM's optimizations.
    step = jax.jit(t.step, compiler_options={"xla_backend_optimization_level": 0})
    state, losses = t.init(), []
    for _ in range(6):
        state, metrics = step(state, batch())
        losses.append(float(metrics.means["loss"].value()))
    assert metrics.finite and losses[-1] < losses[0] - 0.01
    if "schedule_free" in optimizer.name:
        kernels = state.params["head"]["kernel"], state.weights()["head"]["kernel"]
        assert not np.allclose(*kernels)  # where it trains, and where it is evaluated
        expected = optax.contrib.schedule_free_eval_params(state.opt_state[0], state.params)
        np.testing.assert_allclose(kernels[1], expected["head"]["kernel"], atol=1e-6)


def test_a_second_gradient_may_overflow_alone():
    """That of sharpness-aware minimization is taken elsewhere."""

    def update(grads, state, params, *, grad_fn, **_):
        return jax.tree.map(lambda g: g * jnp.inf, grad_fn(params)), state

    t = training(tx=optax.GradientTransformationExtraArgs(lambda params: (), update))
    before = t.init()
    after, metrics = t.step(before, batch())
    assert not metrics.finite and after.halted
    assert digest_state(after.params) == digest_state(before.params)


def poisoned():
    return batch() | {"image": np.full((B, 4, 4, 1), np.nan, np.float32)}


def test_a_non_finite_step_stops_everything_behind_it():
    t = training()
    good, _ = t.step(t.init(), batch())
    bad, metrics = t.step(good, poisoned())
    assert not metrics.finite
    assert bool(bad.halted) and int(bad.step) == 1
    later, _ = t.step(bad, batch(1))
    assert digest_state(dataclasses.replace(later, halted=good.halted)) == digest_state(good)


def test_a_non_finite_step_may_be_left_out():
    t = training(non_finite="skip")
    good, _ = t.step(t.init(), batch())
    bad, metrics = t.step(good, poisoned())
    assert not metrics.finite and not bad.halted and int(bad.step) == 2
    jax.tree.map(np.testing.assert_array_equal, (bad.params, bad.opt_state), (good.params, good.opt_state))
    later, _ = t.step(bad, batch(1))
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (later.params, bad.params)), strict=True))


def test_fused_steps_equal_single_ones():
    t = training()
    data = batch(5, size=64)
    arrays = {name: jnp.asarray(data[name]) for name in ("image", "label")}
    rows = [{"index": np.arange(B, dtype=np.int32) + 7 * k, "mask": np.ones(B, np.float32)} for k in range(3)]
    fused, metrics = jax.jit(fuse_steps(t))(t.init(), arrays, jax.tree.map(lambda *r: np.stack(r), *rows))
    single = t.init()
    for row in rows:
        single, _ = jax.jit(t.step)(single, gather_batch(arrays, row))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), fused.params, single.params)
    assert metrics.learning_rate.shape == (3,)


def test_evaluation_counts_each_example_once():
    t = training()
    state = t.init()
    data = batch(3, size=21)
    arrays = {name: jnp.asarray(data[name]) for name in ("image", "label")}
    from jaxaccel.data.order import Sequential

    order = Sequential(21, B)
    evaluate = jax.jit(fuse_evaluations(t))
    sums = add(
        evaluate(state.params, state.model_state, arrays, jax.tree.map(lambda x: x[None], order(i))).means
        for i in range(len(order))
    )
    logits = t.bind(state.params, state.model_state)(t.task.inputs(data)[0])
    assert float(sums["accuracy"].count) == 21
    np.testing.assert_allclose(
        sums["accuracy"].value(), (logits.argmax(-1) == data["label"]).mean(), rtol=1e-6
    )


def test_mixed_labels_weigh_as_mixed():
    task = ImageClassification(label_smoothing=0.1)
    logits = jax.random.normal(jax.random.key(0), (B, 3))
    b = batch() | {"mix_label": batch(1)["label"], "mix_weight": np.linspace(0, 1, B, dtype=np.float32)}
    loss, _ = task.loss(logits, b)

    def smooth(labels):
        targets = 0.9 * np.eye(3)[labels] + 0.1 / 3
        return -(targets * np.asarray(jax.nn.log_softmax(logits), np.float64)).sum(-1)

    w = b["mix_weight"]
    expected = ((1 - w) * smooth(b["label"]) + w * smooth(b["mix_label"])).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_test_time_augmentation_averages_logits():
    task = ImageClassification(tta="flip")
    seen = []

    def apply(x):
        seen.append(x)
        return x[:, 0, :3, 0]

    logits = task.predict(apply, batch())
    np.testing.assert_array_equal(seen[1], seen[0][:, :, ::-1])
    np.testing.assert_allclose(logits, (seen[0][:, 0, :3, 0] + seen[1][:, 0, :3, 0]) / 2)
    seen.clear()
    ImageClassification(tta="shift").predict(apply, batch())
    assert len(seen) == 5
    np.testing.assert_array_equal(seen[1][:, 1:], seen[0][:, :-1])  # moved down by one
    np.testing.assert_array_equal(seen[4][:, :, :-1], seen[0][:, :, 1:])  # moved left by one
