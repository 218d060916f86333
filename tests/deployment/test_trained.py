"""A run opened again: predictions of whatever a person has, without the data set, and the same numbers as training."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxaccel as ja
from jaxaccel.deployment import trained
from jaxaccel.errors import UserError
from jaxaccel.tasks import ImageClassification, Task, prediction
from jaxaccel.tasks.bring_arrays import batch_shapes
from jaxaccel.tasks.metrics import Mean
from jaxaccel.training.facts import Facts, read_facts


@pytest.fixture(scope="module")
def loaded(digits_run):
    return ja.load(digits_run.directory)


@pytest.fixture(scope="module")
def images(loaded):
    source = loaded.source()
    return np.stack([example["image"] for example in source.__getitems__(range(40))])


def without_data(monkeypatch):
    def gone(*args, **kwargs):
        raise UserError("the data set is gone")

    monkeypatch.setattr(trained, "open_source", gone)


# ---- what is opened ---------------------------------------------------------------------------------------------


def test_a_run_opens_without_its_data(digits_run, images, monkeypatch):
    without_data(monkeypatch)
    run = ja.load(str(digits_run.directory))
    np.testing.assert_allclose(run.predict(images), digits_run.predict({"image": images}), atol=1e-5)
    assert run.class_names == tuple("0123456789")
    assert run.facts.values == {"classes": 10, "class_names": run.class_names, "channels": 1, "image_size": 8}
    assert run.recipe.name == "small" and isinstance(run.task, ImageClassification)
    assert run.metrics == pytest.approx(digits_run.summary["eval"])
    params, state = run.params["params"], run.params["model_state"]
    outputs, _ = run.model.apply(
        params, state, *run.task.inputs({"image": images}), key=jax.random.key(0), train=False
    )
    np.testing.assert_allclose(outputs, run.predict(images), atol=1e-4)


def test_nothing_in_the_directory_changes(digits_run):
    def content():
        return {path: path.stat().st_mtime_ns for path in digits_run.directory.rglob("*") if path.is_file()}

    before = content()
    ja.load(digits_run.directory).predict(np.zeros((8, 8), np.uint8))
    assert content() == before


def test_which_checkpoint(digits_run):
    rows = [json.loads(line) for line in (digits_run.directory / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["accuracy"] for row in rows if row["kind"] == "eval"}
    last, best = max(scores), max(scores, key=scores.__getitem__)
    assert ja.load(digits_run.directory).step == best
    assert ja.load(digits_run.directory, which="last").step == last
    early = ja.load(digits_run.directory, which=42)
    assert early.step == 42 and early.metrics["accuracy"] == pytest.approx(scores[42])
    assert early.evaluate()["accuracy"] == pytest.approx(scores[42])
    with pytest.raises(UserError, match=r"no whole checkpoint of step 5: there is .*42, 63"):
        ja.load(digits_run.directory, which=5)
    with pytest.raises(UserError, match="no checkpoint 'bst': there are best, last"):
        ja.load(digits_run.directory, which="bst")


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(UserError, match="nowhere is not there"):
        ja.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no directory of a run"):
        ja.load(tmp_path)
    (tmp_path / "several" / "best" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"several replicas: take the best of them, .*several/best"):
        ja.load(tmp_path / "several")


def test_a_run_of_an_older_version_asks_its_data(digits_run, images, tmp_path, monkeypatch):
    old = tmp_path / "old"
    shutil.copytree(digits_run.directory, old)
    (old / "facts.json").unlink()
    np.testing.assert_array_equal(ja.load(old).predict(images), ja.load(digits_run.directory).predict(images))
    without_data(monkeypatch)
    with pytest.raises(UserError, match=r"keeps too little of its data set .*: the data set is gone"):
        ja.load(old)
    (old / "facts.json").write_text('{"format": 1')
    with pytest.raises(UserError, match=r"facts\.json cannot be read or is damaged"):
        ja.load(old)


def test_another_model_than_the_checkpoints_is_told(digits_run, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(digits_run.directory, changed)
    text = (changed / "recipe.json").read_text()
    (changed / "recipe.json").write_text(text.replace("widths=(8, 16)", "widths=(8, 12)"))
    with pytest.raises(UserError, match=r"not the one of its checkpoint any more: .* has shape"):
        ja.load(changed)


def test_results_are_a_line(digits_run, loaded):
    for result in (digits_run, loaded):
        assert "\n" not in repr(result) and len(repr(result)) < 400
        assert str(digits_run.directory) in repr(result) and "accuracy" in repr(result)


def test_facts_come_back(tmp_path):
    values = {
        "classes": np.int64(3),
        "size": (2, 3),
        "mean": np.array([0.5, 1], np.float32),
        "deep": {"a": [1, "x"]},
    }
    facts = Facts.of(
        values | {"odd": object(), "infinite": float("inf")}, {"x": np.zeros((2, 3), np.float32)}
    )
    dataclasses.replace(facts, fitted={"a": (1, 2), "b": object()}).write(tmp_path)
    found = read_facts(tmp_path)
    assert (
        found is not None
        and found.example == facts.example
        and found.missing == ("infinite", "odd", "task.b")
    )
    assert found.fitted == {"a": (1, 2)} and found.values["classes"] == 3 and found.values["size"] == (2, 3)
    assert found.values["deep"] == {"a": (1, "x")}
    assert found.values["mean"].dtype == np.float32 and found.values["mean"].tolist() == [0.5, 1]


# ---- pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["int64", "int32", "int16", "uint16", "float16", "bfloat16", "float32", "float64"]
)
def test_the_same_levels_are_the_same_picture(loaded, digits_run, images, dtype):
    given = np.asarray(jnp.asarray(images, "bfloat16") if dtype == "bfloat16" else images.astype(dtype))
    np.testing.assert_array_equal(loaded.predict(given), loaded.predict(images))
    np.testing.assert_array_equal(digits_run.predict({"image": given}), digits_run.predict(images))
    np.testing.assert_array_equal(loaded.predict(list(given)), loaded.predict(images))


@pytest.mark.parametrize("tta", ["none", "flip", "shift", "multicrop"])
def test_a_task_takes_levels_of_every_integer(images, tta):
    task = ImageClassification(tta=tta)
    expected = np.asarray(task.predict(lambda x: x.mean((1, 2)), {"image": images}))
    for dtype in (np.int64, np.int32, np.uint16):
        found = task.predict(lambda x: x.mean((1, 2)), {"image": images.astype(dtype)})
        np.testing.assert_array_equal(found, expected)


def test_white_says_what_numbers_mean(loaded, images):
    expected = loaded.predict(images)
    np.testing.assert_array_equal(loaded.predict(images / 255, white=1), expected)
    np.testing.assert_array_equal(loaded.predict((images / 255).astype(np.float32), white=1), expected)
    np.testing.assert_array_equal(loaded.predict(images.astype(np.uint16) * 257, white=65535), expected)
    np.testing.assert_array_equal(
        loaded.predict(images > 127), loaded.predict(np.where(images > 127, 255, 0))
    )
    halves = np.clip(images + 0.5, 0, 255)
    np.testing.assert_allclose(
        loaded.predict(halves), loaded.predict(halves.astype(np.float32) / 255, white=1), atol=1e-4
    )
    black = np.zeros((8, 8))
    np.testing.assert_array_equal(loaded.predict(black), loaded.predict(black, white=1))


def test_one_picture_or_many(loaded, images, tmp_path):
    expected = loaded.predict(images)
    for one in (images[3], images[3, :, :, 0], Image.fromarray(images[3, :, :, 0]), jnp.asarray(images[3])):
        found = loaded.predict(one)
        assert found.shape == (10,)
        np.testing.assert_allclose(found, expected[3], atol=1e-5)
    Image.fromarray(images[0, :, :, 0]).save(tmp_path / "a.png")
    Image.fromarray(images[1, :, :, 0]).convert("RGBA").save(tmp_path / "b.png")
    mixed = [tmp_path / "a.png", str(tmp_path / "b.png"), images[2], Image.fromarray(images[3, :, :, 0])]
    np.testing.assert_allclose(loaded.predict(mixed), expected[:4], atol=1e-5)
    np.testing.assert_allclose(loaded.predict(iter(mixed)), expected[:4], atol=1e-5)
    np.testing.assert_allclose(loaded.predict(tmp_path / "a.png"), expected[0], atol=1e-5)
    np.testing.assert_allclose(loaded.predict(images[..., 0]), expected, atol=1e-5)
    np.testing.assert_allclose(loaded.predict(np.repeat(images, 3, -1)), expected, atol=1e-5)
    assert loaded.predict(images[:0]).shape == loaded.predict([]).shape == (0, 10)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.full((8, 8), 0.5), r"lie in \[0, 1\], .* say white=1 where 1 is white, or white=255"),
        (np.full((8, 8), 300), r"lie in \[0, 255\], got 300 to 300: .* white=65535"),
        (np.full((8, 8), -1.5), r"got -1.5 to -1.5: give pictures as they were before they were standardized"),
        (np.full((8, 8), np.nan), "finite"),
        (np.full((8, 8), "x"), "pixels must be numbers"),
        (np.zeros((28, 28)), r"the model takes images of shape \(8, 8, 1\), got \(28, 28, 1\): .*task.image_size"),
        (np.zeros((4, 28, 28, 3), int), r"shape \(8, 8, 1\), got \(28, 28, 3\)"),
        (np.zeros((4, 8, 8, 2)), r"takes images of 1 channels, got \(8, 8, 2\)"),
        (np.zeros(8), r"shape \(B, 8, 8, 1\), got \(8,\)"),
        ([np.zeros((8, 8)), np.zeros((9, 9))], "picture 1: the model takes"),
        ([np.zeros((8, 8)), "gone.png"], "picture 1: the image file gone.png is not there"),
        (".", "is a folder: give the files in it"),
        ({"picture": np.zeros((8, 8))}, "an entry image, got picture"),
        (3, "int is no picture"),
        ([None], "picture 0: NoneType is no picture"),
    ],
)  # fmt: skip
def test_what_the_model_does_not_take_is_told(loaded, given, says):
    with pytest.raises(UserError, match=says) as error:
        loaded.predict(given)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_image_is_told(loaded, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=r"cannot read the image .*text.png"):
        loaded.predict(tmp_path / "text.png")


def test_pictures_of_any_size_where_the_task_resizes(tmp_path):
    task, example = ImageClassification(image_size=16), {"image": jax.ShapeDtypeStruct((16, 16, 3), np.uint8)}
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    as_data = task.element({"image": picture, "label": 0})["image"]
    given = [
        picture,
        picture.astype(np.int64),
        Image.fromarray(picture),
        tmp_path / "a.png",
        picture.astype(float),
    ]
    (batch,) = task.bring(given, example, 9).batches
    assert batch["image"].dtype == np.uint8 and batch["image"].shape == (5, 16, 16, 3)
    for image in batch["image"]:
        np.testing.assert_array_equal(image, as_data)
    gray = Image.fromarray(picture[..., 0])
    clear, opaque = np.zeros((32, 48, 1), np.uint8), np.full((32, 48, 1), 255, np.uint8)
    brought = task.bring([gray, picture[..., 0], np.dstack([picture, opaque])], example, 2)
    first, second = (batch["image"] for batch in brought.batches)
    assert first.shape == (2, 16, 16, 3) and second.shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(second[0], as_data)
    (white,) = task.bring(np.dstack([picture, clear]), example, 2).batches
    assert (white["image"] == 255).all()
    with pytest.raises(UserError, match="may be one picture with its channels first"):
        task.bring(picture.transpose(2, 0, 1), example, 2)
    deep = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
    for white in (None, 65535):
        (batch,) = task.bring(deep, example, 2, white=white).batches
        np.testing.assert_array_equal(batch["image"][0], first[0])


def test_few_programs_for_any_number(digits_run, images):
    run = ja.load(digits_run.directory)
    expected = run.predict(images)
    for count in (1, 2, 3, 5, 7, 11, 13, 16, 17, 39):
        np.testing.assert_allclose(run.predict(images[:count], batch=16), expected[:count], atol=1e-5)
    assert run._predict._cache_size() <= 6  # 64, and 1 to 16
    with pytest.raises(UserError, match="batch must be at least 1"):
        run.predict(images, batch=0)


def test_classes_by_name(loaded, images):
    logits = loaded.predict(images)
    guesses = loaded.classify(images, top=3)
    assert [row[0].name for row in guesses] == [str(i) for i in logits.argmax(-1)]
    probabilities = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(
        [[guess.probability for guess in row] for row in guesses], -np.sort(-probabilities)[:, :3], rtol=1e-4
    )
    one = loaded.classify(images[0], top=99)
    assert len(one) == 10 and [guess.name for guess in one[:3]] == [guess.name for guess in guesses[0]]
    assert sum(guess.probability for guess in one) == pytest.approx(1)
    with pytest.raises(UserError, match="logits of classes"):
        prediction.classify(logits, None, 1)


# ---- metrics and functions --------------------------------------------------------------------------------------


def test_evaluations_are_those_of_training(digits_run, loaded):
    best = ja.load(digits_run.directory, which="last")
    assert best.evaluate() == pytest.approx(digits_run.summary["eval"], abs=1e-6)
    assert best.evaluate("test")["accuracy"] == digits_run.summary["eval"]["accuracy"]
    few = loaded.evaluate("train[:100]")
    source = loaded.source("train[:100]")
    assert few == pytest.approx(loaded.evaluate(source=source))
    right = [loaded.predict(x["image"]).argmax() == x["label"] for x in source.__getitems__(range(100))]
    assert few["accuracy"] == pytest.approx(np.mean(right))


def test_data_with_other_classes_is_refused(loaded):
    source = loaded.source()
    other = dataclasses.make_dataclass("Other", ["name", "features"])(
        "letters", {"image": source.features["image"], "label": Labels(("a", "b"))}
    )
    with pytest.raises(UserError, match=r"letters has other classes than .* was trained on: "):
        loaded.evaluate(source=other)
    large = Large("large", source.features)
    with pytest.raises(UserError, match=r"takes image of shape \(8, 8, 1\), large has \(9, 9, 1\)"):
        loaded.evaluate(source=large)


@dataclasses.dataclass
class Large:
    name: str
    features: dict

    def __getitems__(self, indices):
        return [{"image": np.zeros((9, 9, 1), np.uint8), "label": 0} for _ in indices]


@dataclasses.dataclass
class Labels:
    names: tuple[str, ...]

    @property
    def num_classes(self):
        return len(self.names)


def test_the_function_is_pure_and_compresses(loaded, images):
    logits = jax.jit(loaded.function)(loaded.params, images)
    np.testing.assert_allclose(logits, loaded.predict(images), atol=1e-4)
    np.testing.assert_allclose(loaded.function(loaded.params, images.astype(np.float32)), logits, atol=1e-4)
    np.testing.assert_allclose(loaded.function(loaded.params, images[..., 0]), logits, atol=1e-4)
    q = ja.quantize(loaded.params)
    eight = jax.jit(ja.int8(loaded.function, lowering="int8"))(q, images)
    assert float(jnp.mean(eight.argmax(-1) == logits.argmax(-1))) >= 0.95
    folded, params = ja.fold(loaded.function, loaded.params, images)
    np.testing.assert_allclose(folded(params, images), logits, atol=1e-3)


# ---- other tasks ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Rows of numbers to one number."""

    def facts(self, features):
        return {}

    def element(self, example):
        return example

    def inputs(self, batch):
        return (batch["row"] * 2,)

    def check(self, outputs, facts):
        pass

    def loss(self, outputs, batch):
        return jnp.float32(0), {}

    def predict(self, apply, batch):
        return {"value": apply(*self.inputs(batch))}

    def evaluate(self, apply, batch):
        return {"error": Mean.of(batch["target"], batch["mask"])}


ROW = {"row": jax.ShapeDtypeStruct((3,), np.float32), "target": jax.ShapeDtypeStruct((), np.float32)}


def predict_rows(given, **options):
    task = Regression()
    return prediction.predict(
        task, ROW, lambda batch: task.predict(lambda x: jnp.sum(x, -1), batch), given, **options
    )["value"]


def test_arrays_of_other_tasks():
    rows = np.arange(15).reshape(5, 3)
    expected = rows.sum(1) * 2
    np.testing.assert_array_equal(predict_rows(rows), expected)
    np.testing.assert_array_equal(predict_rows(rows.tolist(), size=2), expected)
    np.testing.assert_array_equal(predict_rows({"row": rows.astype(float)}), expected)
    assert predict_rows(rows[1]).shape == () and predict_rows(rows[1]) == expected[1]
    assert predict_rows(rows[:0]).shape == (0,)
    for given, says in (
        (rows[:, :2], r"row must have the shape \(examples, 3\), got \(5, 2\)"),
        ({"rwo": rows}, "examples have row, target, and no rwo"),
        ({"row": rows, "target": np.zeros(4)}, "as many examples of each array"),
        ({}, "as many examples of each array, got no array"),
        ({"target": np.zeros(5)}, "predictions need row as well"),
        (["a"], "row must be an array of float32"),
    ):
        with pytest.raises(UserError, match=says):
            predict_rows(given)
    assert batch_shapes(ROW, 4)["row"].shape == (4, 3) and batch_shapes(ROW, 4)["mask"].shape == (4,)


def test_integers_must_fit():
    example = {"word": jax.ShapeDtypeStruct((2,), np.int32)}
    task = Words()
    given = np.array([[1, 2]], np.int64)
    np.testing.assert_array_equal(prediction.predict(task, example, lambda b: b["word"], given), given)
    for odd in ([[1.5, 2]], [[2**40, 1]]):
        with pytest.raises(UserError, match="must hold numbers of int32"):
            prediction.predict(task, example, lambda b: b["word"], np.array(odd))


class Words(Regression):
    def inputs(self, batch):
        return (batch["word"],)
