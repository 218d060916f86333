"""Tasks of one's own: metrics below 0, lower ones that are better, none called loss; early stopping and loggers."""

import dataclasses
import json
import math
import types
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxaccel as ja
from jaxaccel.compression import Fold, Pipeline, Prune, Quantize
from jaxaccel.data.order import Phase
from jaxaccel.distributed import MeshShape, make_mesh
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model
from jaxaccel.optim import Sparse
from jaxaccel.tasks.metrics import Headline, Mean, score_text
from jaxaccel.tasks.task import check_metrics
from jaxaccel.training import plot, run_log, run_plan, saved_checkpoints
from jaxaccel.training.build import build_trainer
from jaxaccel.training.checkpoint import Checkpoints
from jaxaccel.training.loggers import find_maker, make_loggers
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.replicas import Replicas, summarize_replicas
from jaxaccel.training.teacher import Distill

ERROR = Headline("mae", "lower")


@dataclasses.dataclass(frozen=True)
class Ink(ja.tasks.Task):
    """How much ink a digit takes, from its left half: a regression that reports no loss."""

    metric = "mae"
    better = "lower"
    offset: float = 0.0

    def element(self, example):
        image = np.asarray(example["image"], np.float32)[..., 0] / 255
        return {"left": image[:, :4].reshape(-1), "ink": image.mean()}

    def inputs(self, batch):
        return (batch["left"],)

    def loss(self, outputs, batch):
        errors = outputs[:, 0] - batch["ink"] - self.offset
        absolute = Mean.of(jnp.abs(errors), batch["mask"])
        return Mean.of(errors**2, batch["mask"]).value(), {"mae": absolute}

    def evaluate(self, apply, batch):
        errors = self.predict(apply, batch)[:, 0] - batch["ink"] - self.offset
        likelihood = Mean.of(-(errors**2) - 2.0, batch["mask"])
        never = Mean.of(jnp.full_like(errors, jnp.nan), batch["mask"])
        return {"log_likelihood": likelihood, "mae": Mean.of(jnp.abs(errors), batch["mask"]), "odd": never}


@dataclasses.dataclass(frozen=True)
class Likelihood(Ink):
    metric = "log_likelihood"
    better = "higher"


class Net(nnx.Module):
    def __init__(self, *, inputs, rngs):
        self.hidden = nnx.Linear(inputs[0].shape[-1], 8, rngs=rngs)
        self.out = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))


RECIPE = Recipe(
    name="ink", model=Net, task=Ink(), data=ja.training.Data(name="digits"), epochs=1, batch_size=256, eval_every=0.5,
    steps_per_call=1,
)  # fmt: skip


def rows_of(run, kind):
    return [row for row in run_log.read(run) if row["kind"] == kind]


# ---- which scores are better -----------------------------------------------------------------------------


def test_lower_may_be_better_and_what_is_no_number_is_worst():
    rows = [
        {"mae": 2.0},
        {"mae": math.nan},
        {"mae": -1.0},
        {},
        {"mae": None},
        {"mae": -math.inf},
        {"mae": -1.0},
    ]
    assert ERROR.best(rows) == 2
    assert Headline("mae").best(rows) == 0
    assert ERROR.rank(rows[3]) == ERROR.rank(rows[4]) == ERROR.rank(rows[5]) == ERROR.rank(None) == -math.inf
    with pytest.raises(UserError, match="better must be higher or lower, got 'lowest'; did you mean lower"):
        Headline("mae", "lowest")


def test_the_best_checkpoint_is_that_of_the_lowest_error(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1, metric="mae", better="lower")
    scores = [{"mae": 3.0}, {"mae": -5.0}, {"mae": math.nan}, {"mae": -5.0}, {"mae": 1.0}, None]
    for step, found in enumerate(scores, 1):
        checkpoints.save(step, {"params": {"x": jnp.float32(step)}}, found)
    checkpoints.wait()
    assert saved_checkpoints.find_best(tmp_path / "c", "mae", "lower") == 4, (
        "of equal ones the latest, which stays whatever `keep` is"
    )
    assert saved_checkpoints.list_steps(tmp_path / "c") == [4, 6]
    checkpoints.close()


def test_a_run_that_never_had_a_number_has_no_best_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2, metric="mae", better="lower")
    checkpoints.save(1, {"params": {"x": jnp.float32(1)}}, {"mae": math.nan})
    checkpoints.wait()
    assert saved_checkpoints.find_best(tmp_path / "c", "mae", "lower") is None
    checkpoints.close()


def test_the_best_replica_has_the_lowest_error():
    replicas = Replicas(lambda values: None, {"seed": np.arange(4)}, make_mesh(MeshShape(data=1)))
    rows = [{"mae": m, "odd": math.nan} for m in (0.4, 0.1, 0.3, 0.2)]
    state = types.SimpleNamespace(halted=np.array([False, True, False, False]))
    assert replicas.best(rows, state, ERROR) == 3
    overall = summarize_replicas(rows, ERROR)
    assert overall["mae_best"] == 0.1 and overall["mae"] == pytest.approx(0.25) and math.isnan(overall["odd"])
    rows[1]["mae"] = math.inf
    assert summarize_replicas(rows, ERROR)["mae"] == pytest.approx(0.3)
    assert "mae_best" not in summarize_replicas([{"rmse": 1.0}, {"rmse": 2.0}], ERROR)


@pytest.mark.parametrize(
    "value, text",
    [(0.5, "0.5000"), (0, "0.0000"), (1.2e-5, "1.2e-05"), (-123.45678, "-123.4568"), (1.5e7, "1.5e+07"),
     (None, "nan"), (math.nan, "nan"), (-math.inf, "-inf")],
)  # fmt: skip
def test_metrics_for_people(value, text):
    assert score_text(value) == text


# ---- tasks ----------------------------------------------------------------------------------------------


def shapes(size=4):
    inputs = {"left": np.zeros((size, 32), np.float32), "ink": np.zeros(size, np.float32)}
    return jax.eval_shape(lambda: {**inputs, "mask": np.ones(size, np.float32)})


def test_a_headline_that_is_not_reported_is_told_before_training(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Wrong(Ink):
        metric = "rmse"

    outputs = jax.ShapeDtypeStruct((4, 1), jnp.float32)
    check_metrics(Ink(), outputs, shapes())
    says = r"Wrong is judged by the metric 'rmse'.*it reports: log_likelihood, mae, odd"
    with pytest.raises(UserError, match=says):
        check_metrics(Wrong(), outputs, shapes())
    with pytest.raises(UserError, match=says):
        ja.train(dataclasses.replace(RECIPE, task=Wrong()), run=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_metric_must_not_have_a_name_of_the_trainers_own(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Epoch(Ink):
        def evaluate(self, apply, batch):
            return super().evaluate(apply, batch) | {"epoch": Mean(jnp.float32(1), jnp.float32(1))}

    @dataclasses.dataclass(frozen=True)
    class Rate(Ink):
        def loss(self, outputs, batch):
            loss, means = super().loss(outputs, batch)
            return loss, means | {"learning_rate": Mean(loss, jnp.float32(1))}

    for task, name in ((Epoch(), "epoch"), (Rate(), "learning_rate")):
        with pytest.raises(UserError, match=f"reports a metric '{name}', a name of the trainer's own"):
            ja.train(dataclasses.replace(RECIPE, task=task), run=tmp_path / "r")


def test_a_task_is_a_dataclass():
    class Plain(ja.tasks.Task):
        inputs = loss = lambda self, *_: None

    with pytest.raises(UserError, match="Plain must be a frozen dataclass"):
        dataclasses.replace(RECIPE, task=Plain())


def test_what_a_task_need_not_define():
    @dataclasses.dataclass(frozen=True)
    class Least(ja.tasks.Task):
        metric: ClassVar[str] = "mse"
        better: ClassVar[str] = "lower"

        def inputs(self, batch):
            return (batch["x"],)

        def loss(self, outputs, batch):
            mse = Mean.of((outputs - batch["y"]) ** 2, batch["mask"])
            return mse.value(), {"mse": mse}

    task = Least()
    element = task.element({"x": np.arange(3.0), "y": np.int64(2), "z": np.uint8(1)})
    assert [x.dtype for x in element.values()] == [np.float32, np.int32, np.uint8]
    batch = {"x": np.ones(3), "y": np.zeros(3), "mask": np.array([1.0, 1.0, 0.0])}
    assert task.summarize(task.evaluate(lambda x: 2 * x, batch)) == {"mse": 4.0}
    assert task.facts({}) == {} and task.fit(None) is task and task.headline == Headline("mse", "lower")


def training(task):
    recipe = dataclasses.replace(RECIPE, task=task)
    model = as_model(Net, {}, task.inputs(shapes()))
    return build_trainer(recipe, model, [10], make_mesh(MeshShape(data=1)))


def batch(poison=False):
    rng = np.random.default_rng(0)
    left = rng.random((4, 32), np.float32)
    return {
        "left": left * (np.nan if poison else 1), "ink": left.mean(1), "mask": np.ones(4, np.float32),
        "index": np.arange(4, dtype=np.int32),
    }  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_reports_the_loss_that_the_task_does_not(accumulate):
    t = dataclasses.replace(training(Ink()), accumulate=accumulate)
    state = t.init()
    after, metrics = t.step(state, batch())
    outputs, _ = t.model.apply(
        state.params, state.model_state, batch()["left"], key=jax.random.key(0), train=True
    )
    expected = np.mean((outputs[:, 0] - batch()["ink"]) ** 2)
    np.testing.assert_allclose(metrics.means["loss"].value(), expected, rtol=1e-5)
    assert metrics.finite and int(after.step) == 1
    bad, metrics = t.step(state, batch(poison=True))
    assert not metrics.finite and bad.halted


def test_a_metric_that_is_no_number_stops_nothing():
    @dataclasses.dataclass(frozen=True)
    class Odd(Ink):
        def loss(self, outputs, batch):
            loss, means = super().loss(outputs, batch)
            return loss, {"odd": Mean(jnp.float32(jnp.nan), jnp.float32(1)), **means}

    t = training(Odd())
    after, metrics = t.step(t.init(), batch())
    assert metrics.finite and int(after.step) == 1 and not after.halted


def test_a_regression_has_no_soft_targets(tmp_path):
    teacher = ja.train(dataclasses.replace(RECIPE, epochs=0.3), run=tmp_path / "teacher").directory
    with pytest.raises(UserError, match=r"Ink has no logits.*distill\.soft=0 learns from distill\.attention"):
        ja.train(dataclasses.replace(RECIPE, distill=Distill(teacher=teacher)), run=tmp_path / "student")


# ---- a whole run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ink(tmp_path_factory):
    return ja.train(RECIPE, run=tmp_path_factory.mktemp("run") / "ink")


def test_a_regression_trains_to_its_end(ink, capsys):
    summary = ink.summary
    assert summary["finished"] and not summary["stopped_early"]
    assert {"mae", "log_likelihood", "odd"} == set(summary["eval"])
    assert summary["eval"]["log_likelihood"] <= -2
    rows = rows_of(ink.directory, "eval")
    assert len(rows) == 2 and rows[0]["odd"] is None and rows[1]["mae"] == summary["eval"]["mae"]
    assert summary["best_step"] == min(rows, key=lambda row: row["mae"])["step"]
    assert all(row["loss"] > 0 for row in rows_of(ink.directory, "train"))
    assert json.loads((ink.directory / "result.json").read_text())["eval"]["odd"] is None
    assert (ink.directory / "curves.png").stat().st_size > 5000
    again = ja.train(RECIPE, run=ink.directory, resume=True)  # prints scores that JSON could not hold
    assert again.summary["finished"] and "odd nan" in capsys.readouterr().out


@pytest.mark.slow
def test_replicas_of_a_regression(tmp_path):
    recipe = dataclasses.replace(
        RECIPE, sweep={"optimizer.learning_rate": (1e-2, 1e-5)}, mesh=MeshShape(data=1), epochs=2
    )
    result = ja.train(recipe, run=tmp_path / "r")
    errors = [row["mae"] for row in result.summary["replicas"]]
    assert result.summary["eval"]["mae_best"] == min(errors)
    best = json.loads((tmp_path / "r" / "best" / "recipe.json").read_text())["recipe"]
    assert best["optimizer"]["learning_rate"] == (1e-2, 1e-5)[int(np.argmin(errors))]


@pytest.mark.slow
def test_a_regression_is_compressed(ink, tmp_path, capsys):
    pipeline = Pipeline({"prune": Prune(0.5), "fold": Fold(), "int8": Quantize()})
    done = ja.compress(pipeline, ink.directory, RECIPE, run=tmp_path / "r", batch=64)
    first, *_, last = done.receipts
    by_step = {row["step"]: row for row in rows_of(ink.directory, "eval")}
    assert first.scores["mae"] == pytest.approx(by_step[ink.summary["best_step"]]["mae"], rel=1e-4)
    assert math.isnan(first.scores["odd"]) and last.bytes < first.bytes
    rates = [row.throughput for row in done.receipts]
    gains = [row.throughput_gain for row in done.receipts[1:]]
    np.testing.assert_allclose(np.divide(rates[1:], rates[:-1]), gains, rtol=1e-6)
    assert "mae (lower is better)" in capsys.readouterr().out
    again = ja.compress(pipeline, ink.directory, RECIPE, run=tmp_path / "r", batch=64, resume=True)
    assert math.isnan(again.receipts[0].scores["odd"])


# ---- pictures -------------------------------------------------------------------------------------------


def test_axes_end_where_numbers_do():
    assert plot.axis_limits([0.7, 0.99, 1.0], [1.0], Headline())[1] == 1.0
    low, high = plot.axis_limits([0.97, 0.99], [0.1, 0.999], Headline())
    assert 0.95 < low < 0.97 and 0.999 < high <= 1.0, "the first steps of training are left out"
    low, high = plot.axis_limits([5.0, 2.0], [90.0, 1.0], ERROR)
    assert 0 <= low < 1.0 and 5.0 < high < 10
    low, high = plot.axis_limits([-3.0, -2.0, math.nan], [], Headline())
    assert -4 < low < -3 and -2 < high < 0
    assert plot.axis_limits([math.nan], [1.0], ERROR) is None
    low, high = plot.axis_limits([0.5], [], ERROR)
    assert low < 0.5 < high


def test_panels_are_of_metrics_that_have_numbers():
    train = [
        {"kind": "train", "step": 1, "epoch": 1.0, "loss": 1.0, "learning_rate": 0.1, "gradient_norm": 1.0}
    ]
    evaluation = [
        {"kind": "eval", "epoch": 1.0, "odd": None, "rmse": 1.0, "mae": 0.5, "mae/0": 0.4, "mae_std": 0.1}
    ]
    assert plot.choose_panels(train, evaluation, ERROR) == ["loss", "mae", "rmse"]
    assert plot.choose_panels(train, [], ERROR) == ["loss"]
    assert plot.choose_panels([], [], ERROR) == []


def test_a_title_of_many_metrics_fits_the_picture():
    names = ("accuracy", "loss", "perplexity", "bleu", "bleu_lc", "chrf", "word error rate")
    lines = plot.wrap_title("multi30k: " + "  ".join(f"{name} 0.6695" for name in names)).split("\n")
    assert len(lines) == 2 and all(len(line) <= plot.LETTERS for line in lines)
    assert all(line.endswith("0.6695") for line in lines)


@pytest.mark.parametrize("kind", ["train", "eval", "nothing"])
def test_a_picture_of_whatever_there_is(tmp_path, kind):
    row = {"kind": kind, "step": 1, "epoch": 1.0, "loss": None, "mae": -0.5, "learning_rate": 0.1}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert plot.draw(tmp_path, "title", ERROR).stat().st_size > 1000


# ---- early stopping ---------------------------------------------------------------------------------------


def stops(errors, patience=2, step=100, plan=None, count=1):
    recipe = dataclasses.replace(RECIPE, patience=patience)
    plan = plan or run_plan.PhasePlan(1000, (Phase(0, 200, 0, 10),))
    return run_plan.should_stop_early(
        recipe, plan, step, [[{"mae": x} for x in (e if count > 1 else [e])] for e in errors]
    )


def test_patience_counts_evaluations_without_a_better_metric():
    assert not stops([3, 2, 2.5]) and stops([3, 2, 2.5, 2]), "an equal one is no better"
    assert not stops([3, 2, 2.5, 1.9]) and not stops([3, 2, 2.5, 1.9, 4]) and stops([3, 2, 2.5, 1.9, 4, 4])
    assert not stops([5, 5, 5, 5], patience=0) and not stops([])
    assert stops([math.nan] * 3) and not stops([math.nan, math.nan, 1.0])


def test_replicas_stop_together_and_phases_in_the_last():
    assert not stops([(3, 1), (2, 2), (2.5, 3), (1, 4)], count=2) and stops([(1, 1)] * 3, count=2)
    plan = run_plan.PhasePlan(1000, (Phase(0, 100, 0, 10), Phase(100, 200, 1000, 10)))
    assert not stops([1, 2, 3], step=100, plan=plan) and stops([1, 2, 3], step=110, plan=plan)


def test_patience_and_pruning_do_not_go_together():
    with pytest.raises(UserError, match="patience and pruning do not go together"):
        dataclasses.replace(RECIPE, patience=3, sparse=Sparse(0.5))
    with pytest.raises(UserError, match="patience must be at least 0"):
        dataclasses.replace(RECIPE, patience=-1)


def test_a_run_stops_early_and_a_resumed_one_where_it_would_have(tmp_path, monkeypatch, capsys):
    # A learning rate that rises makes the error grow after a while.
    recipe = dataclasses.replace(
        RECIPE,
        epochs=20,
        eval_every=0.5,
        patience=3,
        optimizer=ja.Optimizer("sgd", 3.0, args={"momentum": 0.9}),
    )
    whole = ja.train(recipe, run=tmp_path / "whole")
    summary = whole.summary
    rows = rows_of(tmp_path / "whole", "eval")
    assert summary["finished"] and summary["stopped_early"] and summary["steps"] < 120
    assert [row["step"] for row in rows][-1] == summary["steps"] == summary["eval_step"]
    errors = [row["mae"] for row in rows]
    assert int(np.argmin(errors)) == len(errors) - 4, "three evaluations without a better one, and not before"
    assert summary["best_step"] == rows[-4]["step"]
    assert f"stopped early at step {summary['steps']}" in capsys.readouterr().out

    with monkeypatch.context() as signaled:  # stopped between the last two evaluations
        late = summary["steps"] - 2
        signaled.setattr("jaxaccel.training.signals.StopSignal.asked", lambda self, call: call == late)
        stopped = ja.train(recipe, run=tmp_path / "r")
    assert not stopped.summary["finished"] and not stopped.summary["stopped_early"]
    resumed = ja.train(recipe, run=tmp_path / "r", resume=True)
    assert resumed.summary["state_sha256"] == summary["state_sha256"]
    assert resumed.summary["stopped_early"] and resumed.summary["steps"] == summary["steps"]

    again = ja.train(recipe, run=tmp_path / "r", resume=True)
    assert again.summary == json.loads((tmp_path / "r" / "result.json").read_text())
    (tmp_path / "r" / "result.json").unlink()  # killed before it wrote its result
    last = ja.train(recipe, run=tmp_path / "r", resume=True)
    assert last.summary["stopped_early"] and last.summary["state_sha256"] == summary["state_sha256"]
    assert last.summary["eval"] == pytest.approx(summary["eval"], nan_ok=True)


# ---- loggers --------------------------------------------------------------------------------------------


class Notes:
    def __init__(self, recipe=None, directory=None):
        self.recipe, self.directory = recipe, directory
        self.rows, self.closed = [], 0

    def log(self, step, metrics):
        self.rows.append((step, dict(metrics)))
        metrics.clear()

    def close(self):
        self.closed += 1


class Broken(Notes):
    def log(self, step, metrics):
        super().log(step, metrics)
        raise RuntimeError("the network\nis gone")


def test_a_logger_sees_every_row_and_one_that_fails_is_left_out(tmp_path, capsys):
    made = []

    def notes(recipe, directory):
        made.append(Notes(recipe, directory))
        return made[-1]

    broken, plain = Broken(), Notes()
    recipe = dataclasses.replace(RECIPE, epochs=0.5)
    result = ja.train(recipe, run=tmp_path / "r", loggers=[broken, notes, plain])
    assert result.summary["finished"] and len(broken.rows) == 1
    out = capsys.readouterr().out
    assert out.count("logger Broken failed (RuntimeError: the network is gone)") == 1
    (own,) = made
    assert own.recipe.name == "ink" and own.directory == tmp_path / "r"
    assert own.closed == plain.closed == 1 and own.rows == plain.rows
    kinds = {name for _, row in own.rows for name in row}
    assert {"train/loss", "train/learning_rate", "eval/mae"} <= kinds and "eval/odd" not in kinds
    written = [(row["step"], row["mae"]) for row in rows_of(tmp_path / "r", "eval")]
    assert [(step, row["eval/mae"]) for step, row in own.rows if "eval/mae" in row] == written


def test_loggers_by_name():
    assert find_maker(f"{__name__}.Notes") is Notes
    for name, says in {"nope": "MODULE.FUNCTION", "no_such.module": "no_such", f"{__name__}.nope": "nope",
                       f"{__name__}.B": "cannot be imported"}.items():  # fmt: skip
        with pytest.raises(UserError, match=says):
            find_maker(name)
    (made,) = make_loggers([Notes], RECIPE, "here")
    assert made.directory == "here"
    with pytest.raises(UserError, match=r"cannot be made \(KeyError: 'key'\)"):
        make_loggers([lambda recipe, directory: {}["key"]], RECIPE, "here")
    with pytest.raises(UserError, match="needs log"):
        make_loggers([lambda recipe, directory: 3], RECIPE, "here")
    with pytest.raises(UserError, match="needs log"):
        make_loggers([3], RECIPE, "here")
