"""Many runs at once: each replica is the run trained alone."""

import dataclasses
import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxaccel import augment
from jaxaccel.core import runtime
from jaxaccel.data.order import Phase
from jaxaccel.distributed import MeshShape, make_mesh
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model
from jaxaccel.optim import Optimizer, Schedule, Sparse
from jaxaccel.tasks.metrics import ACCURACY, add
from jaxaccel.training.best_replica import keep_best
from jaxaccel.training.build import build_trainer
from jaxaccel.training.fused_steps import fuse_evaluations, fuse_steps, gather_batch
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.replicas import Replicas, pick_replica, summarize_replicas
from jaxaccel.training.run_plan import PhasePlan
from jaxaccel.training.saved_checkpoints import read_state
from jaxaccel.training.sweep import read_points, with_values

B = 16


class Mlp(nnx.Module):
    def __init__(self, *, classes, rngs):
        self.dense = nnx.Linear(16, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(8, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.dense(x.reshape(x.shape[0], -1))))))


RECIPE = Recipe(
    name="small",
    model=Mlp,
    batch_size=B,
    augment=(augment.horizontal_flip,),
    optimizer=Optimizer("sgd", 0.1, args={"momentum": 0.9}, weight_decay=1e-3, clip_norm=5.0, ema=0.9),
    schedule=Schedule("cosine", warmup=0.2),
)
ARRAYS = {
    "image": np.random.default_rng(0).integers(0, 256, (64, 4, 4, 1), dtype=np.uint8),
    "label": np.random.default_rng(1).integers(0, 3, 64).astype(np.int32),
}


def small(**changes):
    """What trains the small recipe with these changes."""
    recipe = dataclasses.replace(RECIPE, **changes)
    element = {"image": jax.ShapeDtypeStruct((B, 4, 4, 1), jnp.uint8)}
    model = as_model(Mlp, {"classes": 3}, jax.eval_shape(recipe.task.inputs, element))
    return recipe, build_trainer(recipe, model, [10], make_mesh(MeshShape()))


def trained(training, steps=3):
    """The state after some steps, and each step's metrics."""
    order = training.order(PhasePlan(64, (Phase(0, steps, 0, B),)).order)
    # The compile time is the cost here: a third of it without LLVM's optimizations.
    step = jax.jit(fuse_steps(training), compiler_options={"xla_backend_optimization_level": 0})
    state, rows = training.init(), []
    for i in range(steps):
        state, metrics = step(state, ARRAYS, {name: x[None] for name, x in order(i).items()})
        rows.append(metrics)
    return state, jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


SWEEP = {"optimizer.learning-rate": (0.05, 0.2), "seed": (3, 8)}


@pytest.mark.parametrize("unrolled", [pytest.param(True, marks=pytest.mark.slow), False])
def test_each_replica_is_the_run_trained_alone(unrolled):
    recipe, replicas = small(sweep=SWEEP)
    replicas = dataclasses.replace(replicas, unrolled=unrolled)
    assert replicas.count == 4
    together, metrics = trained(replicas)
    assert metrics.finite.shape == (3, 4)
    for i in (0, 3):
        numbers = {path: column[i].item() for path, column in replicas.values.items()}
        alone = with_values(recipe, numbers)
        state, own = trained(small(**{f.name: getattr(alone, f.name) for f in dataclasses.fields(alone)})[1])
        for one, other in zip(
            jax.tree.leaves(pick_replica(together, i)), jax.tree.leaves(state), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(metrics.learning_rate[:, i], own.learning_rate, rtol=1e-6)
    first, second = pick_replica(together.params, 0), pick_replica(together.params, 1)
    assert not np.allclose(first["dense"]["kernel"], second["dense"]["kernel"])


@pytest.mark.parametrize("unrolled", [True, False])
@pytest.mark.slow
def test_masks_at_random_are_those_of_each_seed(unrolled):
    how = Sparse(0.5, "set", where="dense/kernel", end=1.0, every=1, regrow=1.0)
    options = {"sparse": how, "optimizer": Optimizer("sgd", 0.1)}
    replicas = dataclasses.replace(small(sweep={"seed": (3, 8)}, **options)[1], unrolled=unrolled)
    together, _ = trained(replicas)
    alone, _ = trained(small(seed=8, **options)[1])
    masks = np.asarray(together.opt_state.masks["dense"]["kernel"])
    np.testing.assert_array_equal(masks[1], alone.opt_state.masks["dense"]["kernel"])
    np.testing.assert_allclose(
        pick_replica(together.params, 1)["head"]["kernel"], alone.params["head"]["kernel"], rtol=2e-4
    )
    assert (masks[0] != masks[1]).any()


@pytest.mark.slow
def test_numbers_of_all_parts_may_differ():
    numbers = {
        "task.label_smoothing": (0.0, 0.3),
        "optimizer.weight_decay": (0.1, 0.0),
        "optimizer.clip_norm": (0.1, 0.0),
        "optimizer.ema": (0.5, 0.9),
        "optimizer.args.momentum": (0.9, 0.5),
        "schedule.final": (0.5, 0.0),
    }
    recipe, replicas = small(sweep=numbers)
    pair = {path: column[[0, -1]] for path, column in replicas.values.items()}
    together, _ = trained(dataclasses.replace(replicas, values=pair))
    for i in (0, 1):
        alone = with_values(recipe, {path: column[i].item() for path, column in pair.items()})
        state, _ = trained(small(**{f.name: getattr(alone, f.name) for f in dataclasses.fields(alone)})[1])
        own = pick_replica(together, i)  # what is switched off alone keeps no state of its own
        for one, other in zip(
            jax.tree.leaves((own.params, own.weights())),
            jax.tree.leaves((state.params, state.weights())),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_the_best_goes_on_alone_where_its_numbers_are_0(tmp_path):
    recipe, replicas = small(sweep={"optimizer.clip_norm": (0.0, 5.0), "optimizer.ema": (0.0, 0.9)})
    state = replicas.init()
    assert keep_best(tmp_path, recipe, None, replicas, state, [{"accuracy": -i} for i in range(4)]) == 0
    alone = small(optimizer=dataclasses.replace(recipe.optimizer, clip_norm=0.0, ema=0.0))[1]
    shape = jax.eval_shape(alone.init)
    _, restored = read_state(
        tmp_path / "best" / "checkpoints", shape, alone.sharding(shape, make_mesh(MeshShape()))
    )
    assert restored.average is None
    np.testing.assert_array_equal(restored.params["dense"]["kernel"], state.params["dense"]["kernel"][0])


def test_evaluation_gives_each_replica_its_own_scores():
    _, replicas = small(replicas=3)
    state = replicas.init()
    item = {"index": np.arange(64, dtype=np.int32)[None], "mask": np.ones((1, 64), np.float32)}
    sums = jax.jit(fuse_evaluations(replicas))(state.weights(), state.model_state, ARRAYS, item)
    rows = replicas.scores(jax.device_get(add([sums.means])))
    batch = gather_batch(ARRAYS, pick_replica(item, 0))
    for i, row in enumerate(rows):
        training = replicas.alone(i)
        means = training.evaluate(pick_replica(state.weights(), i), pick_replica(state.model_state, i), batch)
        assert row == pytest.approx(training.scores(means)[0], rel=1e-5)
    assert [row["seed"] for row in replicas.table(rows)] == [0, 1, 2]


def test_one_that_diverges_stands_still_and_the_others_go_on():
    _, replicas = small(sweep={"optimizer.learning_rate": (0.1, 1e30)})
    state, metrics = trained(replicas, 4)
    assert bool(state.halted[1]) and not bool(state.halted[0])
    assert int(state.step[0]) == 4 > int(state.step[1])
    assert metrics.finite[:, 0].all() and not metrics.finite[:, 1].all()


def test_spread():
    rows = [{"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.7, "loss": 3.0}]
    assert summarize_replicas(rows, ACCURACY) == pytest.approx(
        {"accuracy": 0.6, "loss": 2.0, "accuracy_std": np.std([0.5, 0.7], ddof=1), "accuracy_best": 0.7}
    )
    assert summarize_replicas(rows[:1], ACCURACY) == rows[0]


def test_what_is_not_finite_is_neither_best_nor_part_of_the_mean():
    _, replicas = small(replicas=3)
    rows = [
        {"accuracy": 0.9, "loss": float("nan")},
        {"accuracy": 0.5, "loss": 1.0},
        {"accuracy": 0.7, "loss": 1.0},
    ]
    state = types.SimpleNamespace(halted=np.array([False, False, True]))
    assert replicas.best(rows, state, ACCURACY) == 1
    assert summarize_replicas(rows, ACCURACY)["accuracy"] == pytest.approx(0.6)


def test_a_value_alone_is_a_sweep_of_one():
    recipe = dataclasses.replace(RECIPE, sweep={"optimizer.learning_rate": 0.3, "seed": range(2)})
    assert recipe.sweep == {"optimizer.learning_rate": (0.3,), "seed": (0, 1)}


def test_points_are_all_combinations():
    values = read_points(dataclasses.replace(RECIPE, seed=4, sweep={"optimizer.learning-rate": (1.0, 2.0)}))
    assert values["seed"].tolist() == [4, 4]
    values = read_points(dataclasses.replace(RECIPE, replicas=2, sweep={"optimizer.ema": (0.1, 0.2)}))
    assert values["seed"].tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(values["optimizer.ema"], [0.1, 0.1, 0.2, 0.2])
    assert read_points(RECIPE) == {}


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"sweep": {"optimizer.learning_rat": (1.0,)}}, "did you mean optimizer.learning_rate"),
        ({"sweep": {"batch_size": (16, 32)}}, "shape of the run"),
        ({"sweep": {"optimizer.accumulate": (1, 2)}}, "shape of the run"),
        ({"sweep": {"seed": (0.5,)}}, "whole numbers"),
        ({"sweep": {"seed": ()}}, "no values"),
        ({"sweep": {"seed": (0, 1)}, "replicas": 2}, "leave out replicas"),
        ({"sweep": {"optimizer.ema": (0.5, 1.5)}}, "ema must lie in"),
        ({"sweep": {"schedule.warmup": (0.1, 0.2)}}, "decides what is compiled"),
        ({"sweep": {"schedule.final": (0.0, 5.0)}}, "must lie in"),
        ({"sweep": {"task.label_smoothing": (0.0, 3.0)}}, "label_smoothing must lie"),
        ({"sweep": {"optimizer.args.nesterov": (0.0, 1.0)}}, "give optimizer.args.nesterov a value first"),
        ({"sweep": {"seed": (0.0, float("nan"))}}, "finite"),
        ({"sweep": {"seed": (2.0**31,)}}, "below 2"),
        ({"optimizer": Optimizer("adamm"), "replicas": 2}, "did you mean adam"),
        (
            {"optimizer": Optimizer("lbfgs"), "sweep": {"optimizer.learning_rate": (0.1, 1.0)}},
            "length of its steps",
        ),
        ({"optimizer": Optimizer("sgd", rates={"nope/**": 2.0}), "replicas": 2}, "nope"),
    ],
)
def test_mistakes(changes, says):
    with pytest.raises(UserError, match=says):
        small(**changes)


def test_replicas_must_divide_over_the_devices():
    two_devices = types.SimpleNamespace(shape={"data": 2, "fsdp": 1})
    with pytest.raises(UserError, match="3 replicas do not divide over 2 devices"):
        Replicas(lambda values: None, {"seed": np.arange(3)}, two_devices)


COLLECTIVES = ("all-reduce", "all-gather", "collective-permute", "all-to-all", "reduce-scatter")
DIVIDED = """
import os
os.sched_getaffinity = lambda _: set(range(4))
import jax
from jaxaccel.core import runtime
runtime.divide_cpu(PARTS)
print(jax.device_count())
runtime.divide_cpu(4)  # too late, and no harm
print(jax.device_count())
"""


@pytest.mark.parametrize(
    ("parts", "said", "devices"), [(6, {}, 3), (5, {}, 1), (8, {"JAX_NUM_CPU_DEVICES": "2"}, 2)]
)
def test_a_cpu_is_divided_among_its_cores(parts, said, devices):
    program = DIVIDED.replace("PARTS", str(parts))
    env = (
        {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        | {"JAX_PLATFORMS": "cpu"}
        | said
    )
    out = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert out.split() == [str(devices)] * 2


@pytest.mark.slow
def test_devices_share_replicas_and_tell_each_other_nothing(run_train, tmp_path):
    flags = (
        os.environ["XLA_FLAGS"], "--xla_force_host_platform_device_count=3",
        "--xla_dump_to=hlo --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_(steps|evaluations)",
    )  # fmt: skip
    env = {"XLA_FLAGS": " ".join(flags), "JAXACCEL_CACHE": "0"}
    code, _, err = run_train(  # 3 does not divide the batch of 64
        "digits", "--model", "ConvNet(widths=(4,), hidden=0)", "--epochs", "0.2", "--replicas", "3", "--run", "r",
        "--steps-per-call", "1", env=env,
    )  # fmt: skip
    assert code == 0, err
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert result["mesh"]["data"] == 3 and len(result["replicas"]) == 3
    programs = [path.read_text() for path in (tmp_path / "hlo").glob("*after_optimizations.txt")]
    assert len(programs) >= 2 and not any(word in hlo for hlo in programs for word in COLLECTIVES)


@pytest.mark.slow
def test_from_the_command_line(run_train, tmp_path):
    small = ("digits", "--model", "ConvNet(widths=(4,), hidden=0)", "--steps-per-call", "1")
    sweep = ("--sweep", "seed", "0,1")
    code, out, err = run_train(*small, "--epochs", "1", "--run", "r", *sweep)
    assert code == 0, err
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert result["mesh"]["data"] == min(2, runtime.cores()), "each core takes some of the replicas"
    assert [row["seed"] for row in result["replicas"]] == [0, 1]
    accuracies = [row["accuracy"] for row in result["replicas"]]
    assert result["eval"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result["eval"]["accuracy_best"] == max(accuracies)
    assert "best" in out
    best = json.loads((tmp_path / "r" / "best" / "recipe.json").read_text())["recipe"]
    assert best["seed"] == int(np.argmax(accuracies)) and not best["sweep"]
    code, _, err = run_train(*small, "--epochs", "0.1", "--run", "s", "--init-from", "r/best")
    assert code == 0, err
    code, _, err = run_train("digits", "--sweep", "optimizer.lr", "1,2")
    assert (code, err.count("\n")) == (2, 1)
