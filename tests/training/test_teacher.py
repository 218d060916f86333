"""A teacher beside the student: the loss by hand, what moves and what does not, whole runs that go on without it."""

import contextlib
import dataclasses
import io
import json
import shutil
import types
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxaccel as ja
from jaxaccel import augment
from jaxaccel.distributed import MeshShape, make_mesh
from jaxaccel.distributed.sharding import partition_spec
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import abstract_variables, as_model
from jaxaccel.optim import Optimizer
from jaxaccel.tasks import ImageClassification
from jaxaccel.train import main
from jaxaccel.training.build import build_trainer
from jaxaccel.training.checkpoint import Checkpoints, flatten_by_path
from jaxaccel.training.fused_steps import fuse_steps
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.recipe_file import find_differences, from_json, to_json
from jaxaccel.training.replicas import Replicas, pick_replica
from jaxaccel.training.saved_checkpoints import read_weights
from jaxaccel.training.step import Training
from jaxaccel.training.teacher import Distill, Teacher

B = 8
QUICKLY = {"xla_backend_optimization_level": 0}


class Linear(nnx.Module):
    def __init__(self, *, features=16, classes, rngs):
        self.head = nnx.Linear(features, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(x.shape[0], -1))


class Wide(nnx.Module):
    """Computes other things while it trains than after."""

    def __init__(self, *, classes, rngs):
        self.dense = nnx.Linear(16, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(6, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.dense(x.reshape(x.shape[0], -1))))))


def made(factory):
    return as_model(factory, {"classes": 3}, (jax.ShapeDtypeStruct((B, 4, 4, 1), "float32"),))


def teacher(**options):
    task = ImageClassification(mean=(0.3,), std=(0.2,))
    return Teacher(made(Wide), task, Distill(Path("somewhere"), **options))


def training(student=Linear, *, options=None, **changes):
    schedule = optax.constant_schedule(0.1)
    return Training(
        made(student), ImageClassification(), optax.sgd(schedule, momentum=0.9), schedule, augment.chain(),
        teacher=teacher(**options or {}), **changes,
    )  # fmt: skip


def lessons(seed=1):
    """Weights of a teacher, by their paths in a state."""
    rng, shapes = np.random.default_rng(seed), flatten_by_path({"teacher": jax.eval_shape(teacher().blank)})
    return {path: rng.uniform(0.1, 1.0, x.shape).astype(np.float32) for path, x in shapes.items()}


def started(t):
    return jax.jit(t.init, compiler_options=QUICKLY)(t.copies(lessons()))


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (B, 4, 4, 1), dtype=np.uint8),
        "label": rng.integers(0, 3, B).astype(np.int32),
        "index": np.arange(B, dtype=np.int32),
        "mask": np.array([1.0] * (B - 1) + [0.0], np.float32),
    }


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def by_hand(params, temperature, soft):
    """Loss, what the teacher adds to it, and the gradient of the student's one layer, in float64."""
    b, w = batch(), {path: np.asarray(x, np.float64) for path, x in lessons().items()}
    pixels = b["image"].reshape(B, -1) / 255
    x = (pixels - 0.5) / 0.5
    logits = x @ np.asarray(params["head"]["kernel"], np.float64) + np.asarray(params["head"]["bias"])
    hidden = (pixels - 0.3) / 0.2 @ w["teacher/params/dense/kernel"] + w["teacher/params/dense/bias"]
    mean, var = (w[f"teacher/model_state/norm/{name}"] for name in ("mean", "var"))
    hidden = (hidden - mean) / np.sqrt(var + 1e-5)
    hidden = np.maximum(hidden * w["teacher/params/norm/scale"] + w["teacher/params/norm/bias"], 0)
    targets = hidden @ w["teacher/params/head/kernel"] + w["teacher/params/head/bias"]
    right = np.eye(3)[b["label"]]
    cross_entropy = -(right * np.log(softmax(logits))).sum(-1)
    p, q = softmax(targets / temperature), softmax(logits / temperature)
    divergence = temperature**2 * (p * np.log(p / q)).sum(-1)
    count = b["mask"] / b["mask"].sum()
    slope = (1 - soft) * (softmax(logits) - right) + soft * temperature * (q - p)
    slope *= count[:, None]
    loss, added = (1 - soft) * cross_entropy @ count, soft * divergence @ count
    return loss + added, cross_entropy @ count, added, {"kernel": x.T @ slope, "bias": slope.sum(0)}


@pytest.mark.parametrize(("temperature", "soft"), [(4.0, 0.9), (1.5, 0.3)])
def test_a_step_is_that_by_hand_and_leaves_the_teacher_alone(temperature, soft):
    t = training(options={"temperature": temperature, "soft": soft})
    before = started(t)
    after, metrics = jax.jit(t.step, compiler_options=QUICKLY)(before, batch())
    _, task_loss, added, grads = by_hand(before.params, temperature, soft)
    for name, grad in grads.items():
        moved = (before.params["head"][name] - after.params["head"][name]) / 0.1
        np.testing.assert_allclose(moved, grad, atol=2e-5)
    np.testing.assert_allclose(metrics.means["loss"].value(), task_loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.means["distill"].value(), added, rtol=1e-5)
    assert bool(metrics.finite)
    for path, x in flatten_by_path({"teacher": after.teacher}).items():
        np.testing.assert_array_equal(x, lessons()[path])
    assert {x.shape for x in jax.tree.leaves(after.opt_state)} == {(), (16, 3), (3,)}


def test_the_value_that_line_searches_see_is_the_whole_loss():
    t = training(options={"temperature": 2.0, "soft": 0.5})
    state = started(t)
    value_fn = t.loss.evaluate_elsewhere(state, batch(), jax.random.key(0))["value_fn"]
    value = jax.jit(value_fn, compiler_options=QUICKLY)(state.params)
    np.testing.assert_allclose(value, by_hand(state.params, 2.0, 0.5)[0], rtol=1e-5)


def test_parts_of_a_batch_give_the_same_update():
    whole, parts = (training(accumulate=n) for n in (1, 2))
    start, fed = started(whole), batch() | {"mask": np.ones(B, np.float32)}
    (one, a), (two, b) = (jax.jit(t.step, compiler_options=QUICKLY)(start, fed) for t in (whole, parts))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one.params, two.params)
    np.testing.assert_allclose(a.means["distill"].value(), b.means["distill"].value(), rtol=1e-5)


def lesson(t, state, params):
    """What the teacher adds to the loss of these parameters."""

    def added(state, params):
        loss_fn = t.loss.make(None, state.teacher)
        return loss_fn(params, state.model_state, batch(), jax.random.key(5))[1][0]["distill"].value()

    return float(jax.jit(added, compiler_options=QUICKLY)(state, params))


def test_hints_are_those_of_distill():
    hints = {"dense/kernel": 0.5, "head/kernel=dense/kernel": 0.1}
    t = training(Wide, options={"attention": hints, "temperature": 3.0})
    state, weight = started(t), batch()["mask"] / batch()["mask"].sum()

    def logits(model, task, model_state, train):
        return lambda params: model.apply(
            params, model_state, *task.inputs(batch()), key=jax.random.key(5), train=train
        )[0]

    both = (
        logits(t.model, t.task, state.model_state, True),
        logits(t.teacher.model, t.teacher.task, state.teacher["model_state"], False),
    )
    d = ja.distill(
        *both, temperature=3.0, soft=0.9,
        hints=[
            ja.transforms.Hint("dense/kernel", "dense/kernel", "attention", 0.5),
            ja.transforms.Hint("head/kernel", "dense/kernel", "attention", 0.1),
        ],
    )  # fmt: skip
    _, terms = jax.jit(d, compiler_options=QUICKLY)(state.params, state.teacher["params"])
    assert lesson(t, state, state.params) == pytest.approx(float(terms @ weight), rel=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "int8-qat"])
def test_every_precision_and_remat_takes_a_teacher(precision):
    options = {"attention": {"dense/kernel": 0.5}}
    t = training(Wide, options=options, precision=precision, remat="nothing_saveable")
    after, metrics = jax.eval_shape(t.step, jax.eval_shape(t.init), jax.eval_shape(batch))
    assert jax.tree.structure(after) == jax.tree.structure(jax.eval_shape(t.init))
    assert "distill" in metrics.means


def test_training_for_int8_rounds_the_student_and_not_the_teacher():
    seen = []
    for precision in ("float32", "int8-qat"):
        t = training(Wide, precision=precision)
        state = started(t)
        silent = jax.tree.map(jnp.zeros_like, state.params)  # its logits are equal, however they are rounded
        seen += [lesson(t, state, silent), lesson(t, state, state.params)]
    assert seen[0] == pytest.approx(seen[2], rel=1e-6)
    assert seen[1] != pytest.approx(seen[3], rel=1e-6)


def test_the_teacher_is_split_as_the_student_is():
    mesh = types.SimpleNamespace(shape={"data": 1, "fsdp": 2, "model": 2})
    path, shape = "params/blocks/0/mlp/up/kernel", (128, 512)
    assert any(partition_spec(path, shape, mesh))
    assert partition_spec(f"teacher/{path}", shape, mesh) == partition_spec(path, shape, mesh)


@pytest.mark.slow
def test_replicas_differ_in_what_they_learn():
    """Each is the one trained alone, also where one learns nothing from the teacher."""
    recipe = Recipe(
        name="small", model=Linear, batch_size=B, optimizer=Optimizer("sgd", 0.1),
        distill=Distill(Path("somewhere")),
        sweep={"distill.soft": (0.0, 0.8), "distill.temperature": (1.0, 6.0)},
    )  # fmt: skip
    arrays = {name: batch()[name] for name in ("image", "label")}
    item = {"index": np.arange(B, dtype=np.int32), "mask": np.ones(B, np.float32)}

    def trained(recipe):
        t = build_trainer(recipe, made(Linear), [10], make_mesh(MeshShape()), 0, teacher())
        state = started(t)
        fed = jax.tree.map(lambda x: np.broadcast_to(x, (1, t.count, B) if t.count > 1 else (1, B)), item)
        return t, jax.jit(fuse_steps(t), compiler_options=QUICKLY)(state, arrays, fed)[0]

    together, states = trained(recipe)
    for i in (1, 3):
        numbers = {
            path.partition(".")[2]: x[i].item() for path, x in together.values.items() if path != "seed"
        }
        alone = dataclasses.replace(recipe, sweep={}, distill=dataclasses.replace(recipe.distill, **numbers))
        _, state = trained(alone)
        own = pick_replica(states, i)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), own.params, state.params)
    kernels = np.asarray(states.params["head"]["kernel"])
    np.testing.assert_allclose(kernels[0], kernels[1], atol=1e-6)  # soft is 0: whatever the temperature
    assert not np.allclose(kernels[2], kernels[3], atol=1e-4) and not np.allclose(
        kernels[0], kernels[2], atol=1e-4
    )


def test_a_recipe_with_a_teacher_comes_back_from_json():
    small = partial(ja.models.ConvNet, widths=(4,), hidden=0)
    distill = Distill(Path("a.npz"), small, 2.0, 0.5, {"stem/kernel=stages/kernel": 0.5})
    recipe = dataclasses.replace(ja.load_recipe("digits"), distill=distill)
    written = json.loads(json.dumps(to_json(recipe)))
    back = from_json(written)
    assert find_differences(json.loads(json.dumps(to_json(back))), written) == []
    assert back.distill.teacher == Path("a.npz") and back.distill.hints() == distill.hints()
    before = {name: value for name, value in to_json(ja.load_recipe("digits")).items() if name != "distill"}
    assert from_json(json.loads(json.dumps(before))).distill == Distill()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": 0.0}, "Distill: temperature must be above 0"),
        ({"soft": 1.5}, "soft must lie in"),
        ({"attention": {"a": -1.0}}, r"attention\['a'\] must be at least 0"),
        ({"teacher": None, "attention": {"a": 1.0}}, "attention is for a teacher"),
    ],
)
def test_numbers_without_meaning(options, says):
    with pytest.raises(UserError, match=says):
        Distill(**{"teacher": Path("a"), **options})


# ---- whole runs ---------------------------------------------------------------------------------------------

DATA = ("digits", "--lowering", "xla", "--augment", "horizontal_flip", "--batch-size", "128")
TEACHER = (*DATA, "--model", "ConvNet(widths=(6,), hidden=8)", "--epochs", "1")
# Two epochs of 10 or 11 steps, a checkpoint after each.
STUDENT = (
    *DATA, "--model", "ConvNet(widths=(4,), hidden=0)", "--epochs", "2", "--eval-every", "1",
    "--steps-per-call", "1", "--optimizer.ema", "0.9",
)  # fmt: skip


LINEAR = (*DATA, "--model", f"{__name__}.Linear(features=64)")
"""A student that compiles in no time."""


@pytest.fixture(scope="module", autouse=True)
def quickly():
    """Most of what these runs take is compiling."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Training, Replicas):
            patch.setattr(kind, "compiler_options", lambda self, *_: {"xla_backend_optimization_level": 1})
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a run `teacher`, and a run `student` that learned from it."""
    directory = tmp_path_factory.mktemp("distilled")
    with contextlib.chdir(directory):
        main([*TEACHER, "--run", "teacher"])
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            main([*STUDENT, "--run", "student", "--distill.teacher", "teacher"])
        Path("said").write_text(said.getvalue())
    return directory


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def result(directory):
    return json.loads((Path(directory) / "result.json").read_text())


def losses(directory, name="loss"):
    rows = map(json.loads, (Path(directory) / "metrics.jsonl").read_text().splitlines())
    return [row[name] for row in rows if row["kind"] == "train"]


def test_a_student_of_a_run(here):
    assert "teacher: teacher, temperature 4, soft 0.9" in Path("said").read_text()
    assert all(x > 0 for x in losses("student", "distill"))
    params, state = abstract_variables(convnet())
    assert result("student")["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    # What --init-from reads, and who learns from the student.
    assert set(weights("student")) == set(flatten_by_path({"params": params, "model_state": state}))
    assert ja.load_recipe("student").distill == Distill(Path("teacher"))


def convnet(width=4):
    """The student of the runs."""
    inputs = (jax.ShapeDtypeStruct((B, 8, 8, 1), "float32"),)
    factory = partial(ja.models.ConvNet, widths=(width,), hidden=0)
    return as_model(factory, {"classes": 10, "channels": 1, "image_size": 8}, inputs)


@pytest.mark.slow
def test_it_goes_on_without_the_teacher(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "student", "student")
    first, last = sorted(int(p.name) for p in Path("student/checkpoints").iterdir() if p.name.isdigit())
    shutil.rmtree(f"student/checkpoints/{last}")
    Path("student/result.json").unlink()
    main([*STUDENT, "--run", "student", "--distill.teacher", "teacher", "--resume"])
    assert first < last and result("student")["finished"]
    assert result("student")["state_sha256"] == result(place / "student")["state_sha256"]
    with pytest.raises(UserError, match=r"was trained with distill.soft = 0.9"):
        main(
            [
                *STUDENT,
                "--run",
                "student",
                "--distill.teacher",
                "teacher",
                "--distill.soft",
                "0.5",
                "--resume",
            ]
        )


def test_a_run_from_before_there_were_teachers_goes_on(place, tmp_path, capsys):
    shutil.copytree(place / "teacher", tmp_path / "old")
    record = json.loads((tmp_path / "old" / "recipe.json").read_text())
    del record["recipe"]["distill"]
    (tmp_path / "old" / "recipe.json").write_text(json.dumps(record))
    main([*TEACHER, "--run", str(tmp_path / "old"), "--resume"])
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_two_devices_learn_the_same(place, tmp_path, run_train):
    words = [*STUDENT, "--mesh.data", "1", "--mesh.fsdp", "2", "--distill.teacher", place / "teacher"]
    code, _, err = run_train(*words, "--run", "student", devices=2)
    assert code == 0, err
    for name in ("loss", "distill"):
        assert losses(tmp_path / "student", name) == pytest.approx(losses(place / "student", name), rel=1e-3)


@pytest.mark.slow
def test_replicas_of_a_student(here, tmp_path):
    words = ("--epochs", "0.2", "--replicas", "2", "--distill.teacher", "teacher")
    main([*LINEAR, *words, "--run", str(tmp_path / "two")])
    assert len(result(tmp_path / "two")["replicas"]) == 2
    assert result(tmp_path / "two")["parameters"] == 650
    assert (tmp_path / "two" / "best" / "teacher" / "recipe.json").is_file()
    with pytest.raises(UserError, match=r"holds several replicas: take the best of them, .*best"):
        main([*LINEAR, "--distill.teacher", str(tmp_path / "two"), "--run", str(tmp_path / "three")])


@pytest.mark.slow
def test_a_file_of_weights(tmp_path):
    rng, model = np.random.default_rng(0), "ConvNet(widths=(6,), hidden=0)"
    shapes = flatten_by_path(
        dict(zip(("params", "model_state"), abstract_variables(convnet(6)), strict=True))
    )
    arrays = {path: rng.uniform(0.5, 1.5, x.shape).astype(np.float32) for path, x in shapes.items()}
    # As PyTorch has them: outputs first.
    theirs = {
        path.partition("/")[2]: np.moveaxis(x, (-1, -2), (0, 1)) if x.ndim > 1 else x
        for path, x in arrays.items()
    }
    np.savez(tmp_path / "file.npz", **theirs)
    words = ("--epochs", "0.1", "--distill.teacher", str(tmp_path / "file.npz"), "--distill.model", model)
    main([*LINEAR, *words, "--run", str(tmp_path / "run")])
    state = ja.train(ja.load_recipe(str(tmp_path / "run")), run=tmp_path / "run", resume=True).state
    for path, x in flatten_by_path({"teacher": state.teacher}).items():
        np.testing.assert_array_equal(x, arrays[path.removeprefix("teacher/")])


def weights(run):
    return read_weights(Path(run)).arrays


def other_classes(directory):
    """A run like the teacher's on data of three classes."""
    shutil.copytree("teacher", directory, ignore=shutil.ignore_patterns("checkpoints"))
    arrays = weights("teacher")
    heads = {path: x[..., :3] for path, x in arrays.items() if path.startswith("params/head")}
    checkpoints = Checkpoints(directory / "checkpoints")
    checkpoints.save(1, arrays | heads, {"accuracy": 1.0})
    checkpoints.close()


def damaged(directory):
    directory.mkdir()
    (directory / "recipe.json").write_text("{")


@pytest.mark.parametrize(
    ("make", "words", "says"),
    [
        (None, ["nowhere"], "is no directory of a run and no file with weights"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), ["@"], "is damaged or was not written by"),
        (damaged, ["@"], "was not written by jaxaccel, or is damaged"),
        (other_classes, ["@"], "has 3 classes and the data 10"),
        (None, ["teacher", "--distill.model", "resnet20"], "knows its model"),
        (None, ["some.npz", "--distill.model", "ConvNet(classes=7)"], "logits of shape (128, 7)"),
        (None, ["some.npz", "--distill.model", "resnet57"], "did you mean resnet"),
        (None, ["teacher", "--distill.attention", "stem/kernle", "1"], "no product with stem/kernle"),
        (None, ["teacher", "--sweep", "distill.teacher", "1"], "is no number of the recipe"),
        (None, ["teacher", "--distill.temperature", "-1"], "temperature must be above 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(here, tmp_path, make, words, says):
    place = tmp_path / "place"
    if make:
        make(place)
    words = [str(place) if word == "@" else word for word in words]
    with pytest.raises(UserError) as error:
        main([*STUDENT, "--run", str(tmp_path / "run"), "--distill.teacher", *words])
    assert says in str(error.value), str(error.value)
    assert "\n" not in str(error.value).strip()
    assert not list((tmp_path / "run").glob("checkpoints/*"))
