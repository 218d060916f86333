"""The best checkpoint is chosen on validation examples; the test split is read once, at the end."""

# pyright: reportArgumentType=false

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

import jaxaccel as ja
from jaxaccel.errors import UserError
from jaxaccel.optim import Optimizer


class Linear(nnx.Module):
    """Logits of the pixels."""

    def __init__(self, *, classes, rngs):
        self.head = nnx.Linear(16, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(x.shape[0], -1))


def pictures(count, seed):
    """Two classes that are hard to tell apart at first."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 2
    image = rng.integers(0, 200, (count, 4, 4)) + 40 * label[:, None, None]
    return {"image": image.astype(np.uint8), "label": label}


TRAIN, TEST = pictures(48, 0), pictures(40, 1)


def recipe(name, **data):
    return ja.Recipe(
        name="two", model=Linear, data=ja.training.Data(name=name, **data), epochs=4, batch_size=8, steps_per_call=1,
        optimizer=Optimizer(learning_rate=0.01),
    )  # fmt: skip


def rows_of(result):
    lines = (result.directory / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines) if row["kind"] == "eval"}


def test_the_checkpoint_that_is_best_on_validation_is_tested(tmp_path):
    # With the wrong labels for validation, a network is the better the less it has learned.
    wrong = TEST | {"label": 1 - TEST["label"]}
    names = [ja.data.from_arrays(TRAIN, test=TEST, **more) for more in ({"validation": wrong}, {})]
    chosen, plain = (ja.train(recipe(name), run=tmp_path / str(i)) for i, name in enumerate(names))
    assert chosen.summary["state_sha256"] == plain.summary["state_sha256"]
    assert "test" not in plain.summary
    step = chosen.summary["test_step"]
    scores = {step: row["accuracy"] for step, row in rows_of(chosen).items()}
    assert scores[step] == max(scores.values()) and step < chosen.summary["steps"]
    on_test = rows_of(plain)[step]
    assert chosen.summary["test"] == pytest.approx({name: on_test[name] for name in ("accuracy", "loss")})
    assert chosen.summary["test"]["accuracy"] < plain.summary["eval"]["accuracy"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    name = ja.data.from_arrays(TRAIN, test=TEST)
    return ja.train(recipe(name, validation=0.25), run=tmp_path_factory.mktemp("runs") / "two")


def test_a_share_is_set_aside_by_both_feeds(run, tmp_path):
    streamed = ja.train(
        recipe(ja.data.from_arrays(TRAIN, test=TEST), validation=0.25, feed="stream"), run=tmp_path / "run"
    )
    for key in ("state_sha256", "steps", "eval", "test", "test_step"):
        assert run.summary[key] == streamed.summary[key]
    assert run.summary["steps"] == 18  # 4 epochs of 36 examples, by 8


def test_a_run_is_evaluated_again_on_what_was_set_aside(run):
    trained = ja.load(run.directory, which="last")
    assert trained.evaluate("validation") == pytest.approx(run.summary["eval"], rel=1e-5)
    best = ja.load(run.directory)
    assert best.evaluate() == best.evaluate("test") == pytest.approx(run.summary["test"], rel=1e-5)
    assert (
        best.source("validation").split == "validation share of train"
        and len(best.source("validation")) == 12
    )


def test_a_run_goes_on_with_the_same_arrays_only(run):
    before = recipe(ja.data.from_arrays(TRAIN, test=TEST), validation=0.25)
    assert ja.load_recipe(str(run.directory)).data == before.data
    assert ja.train(before, run=run.directory, resume=True).summary == run.summary
    other = recipe(ja.data.from_arrays(pictures(48, 2), test=TEST), validation=0.25)
    with pytest.raises(UserError, match=r"data.name = arrays:\w{16}, this recipe has arrays:\w{16}"):
        ja.train(other, run=run.directory, resume=True)


def test_floats_train_and_are_resized(tmp_path):
    image = np.random.default_rng(0).random((16, 6, 8, 3))
    name = ja.data.from_arrays({"image": image, "label": np.arange(16) % 2})
    task = ja.tasks.ImageClassification(image_size=4)
    element = task.element(ja.data.open(name, "train")[0])
    assert element["image"].shape == (4, 4, 3) and element["image"].dtype == np.float32
    assert element["image"].min() >= 0 and element["image"].max() <= 1
    assert task.facts(ja.data.open(name, "train").features)["image_size"] == 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.uint16([0, 256, 65535]), [0, 1, 255]),
        (np.int64([0, 7, 255]), [0, 7, 255]),
        (np.float64([0, 1]), [0, 1]),
    ],
)
def test_pixels_of_other_dtypes(given, expected):
    element = ja.tasks.ImageClassification().element({"image": given.reshape(1, -1, 1), "label": 0})
    assert element["image"].ravel().tolist() == expected
    assert element["image"].dtype == (np.float32 if given.dtype.kind == "f" else np.uint8)


def test_whole_numbers_beyond_255_are_refused():
    with pytest.raises(UserError, match="needs pixels from 0 to 255"):
        ja.tasks.ImageClassification().element({"image": np.full((2, 2, 1), 300, np.int32), "label": 0})


def test_a_number_is_no_class():
    features = ja.data.open(
        ja.data.from_arrays({"image": TRAIN["image"], "label": np.linspace(0, 1, 48)}), "train"
    ).features
    with pytest.raises(UserError, match="needs labels that are numbers of classes"):
        ja.tasks.ImageClassification().facts(features)


def test_a_pipeline_is_measured_on_the_test_split():
    from jaxaccel.compression.stage import Setting

    name = ja.data.from_arrays(TRAIN, test=TEST)
    setting = Setting(dataclasses.replace(recipe(name, validation=0.25)), None, 8)
    assert (len(setting.train), len(setting.test)) == (36, 40)


def test_a_file_that_has_changed_is_noticed(tmp_path):
    path = tmp_path / "my.npz"
    np.savez(path, **TRAIN)
    short = dataclasses.replace(recipe(str(path)), epochs=1)
    result = ja.train(short, run=tmp_path / "run")
    assert ja.train(short, run=tmp_path / "run", resume=True).summary == result.summary
    np.savez(path, **pictures(48, 3))
    with pytest.raises(UserError, match=r"the data set .*my.npz has changed since .*run was trained on it"):
        ja.train(short, run=tmp_path / "run", resume=True)


def test_the_digest_sees_files_come_and_go(tmp_path):
    from PIL import Image

    from jaxaccel.data.data_sets import open_set

    digests = set()
    for name, size in (("a/1.png", 2), ("a/2.png", 2), ("b/1.png", 2), ("a/1.png", 9)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size), np.uint8)).save(
            tmp_path / name
        )
        digests.add(open_set(str(tmp_path)).digest())
    assert len(digests) == 4 and open_set(str(tmp_path)).digest() in digests
