"""Every shipped recipe, shrunken, compiles and takes a step; and a recipe survives recipe.json."""

import dataclasses
import json
import re
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from grids import slow_but

import jaxaccel as ja
from jaxaccel import augment, models
from jaxaccel.data.augment import chain
from jaxaccel.data.tokenizers import train_tokenizer
from jaxaccel.errors import UserError
from jaxaccel.models.adapter import as_model, output_shape
from jaxaccel.training import recipe_file as recipe
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.recipe_file import find_differences, to_json
from jaxaccel.training.step import Training

# The shipped model with less of it: (model, image shape, classes).
SHRUNKEN = {
    "digits": (None, (8, 8, 1), 10),
    "mnist": (partial(models.ConvNet, widths=(4, 4)), (28, 28, 1), 10),
    "fashion_mnist": (partial(models.ConvNet, widths=(4, 4)), (28, 28, 1), 10),
    "cifar10_fast": (partial(models.CifarFast, (4, 4, 4)), (32, 32, 3), 10),
    "cifar10_resnet20": (partial(models.ResNetCifar, 8, width=4), (32, 32, 3), 10),
    "imagenet_resnet50": (partial(models.ResNet, (1, 1, 1, 1), bottleneck=True, width=4), (32, 32, 3), 1000),
    "imagenet_vit_s16": (partial(models.VisionTransformer, width=12, depth=1, heads=3), (32, 32, 3), 1000),
}
BATCH = 8
# The shipped model with less of it, and the number of classes.
TEXTS = {
    "trec": (partial(models.text_cnn, width=8, filters=4), 6),
    "clinc": (partial(models.text_cnn, width=8, filters=4), 150),
    "mr": (partial(models.text_cnn, width=8, filters=4), 2),
    "subj": (partial(models.text_cnn, width=8, filters=4), 2),
    "movie_reviews": (partial(models.text_cnn, width=8, filters=4), 2),
    "imdb": (partial(models.fast_text, width=8, buckets=32), 2),
    "ag_news": (partial(models.fast_text, width=8, buckets=32), 4),
    "minilm": (partial(models.Bert, width=8, depth=1, heads=2), 6),
    "sst2": (partial(models.Bert, width=8, depth=1, heads=2), 2),
}
# The shipped model with less of it.
SOUNDS = {
    "spoken_sequences": partial(models.lstm_ctc, width=8, features=8, depth=1),
    "yesno": partial(models.lstm_ctc, width=8, features=8, depth=1),
    "librispeech_clean100": partial(models.conformer_ctc, width=16, depth=1),
    "spoken_digit": partial(models.BcResNet, stages=((8, 1, 1, 1),)),
    "speech_commands": partial(models.BcResNet, stages=((8, 1, 1, 1),)),
}


# The shipped model with less of it.
WRITERS = {
    "multi30k_en_de": partial(models.translator_tiny, width=16, depth=1, heads=2, hidden=16),
    "wmt": partial(models.translator_base, width=16, depth=1, heads=2, hidden=16),
    "lm": partial(models.language_model_tiny, width=16, depth=1, heads=2),
    "lm1b": partial(models.language_model_s, width=16, depth=1, heads=2),
}


def test_each_recipe_is_tried():
    assert set(recipe.list_recipes()) == {*SHRUNKEN, *TEXTS, *SOUNDS, *WRITERS}


@pytest.mark.parametrize("name", slow_but([n for n in SHRUNKEN if not n.startswith("imagenet")], SHRUNKEN))
def test_it_takes_a_step(name):
    shipped = recipe.load_recipe(name)
    smaller, shape, classes = SHRUNKEN[name]
    task = dataclasses.replace(shipped.task, image_size=shape[0] if shipped.task.image_size else 0)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (BATCH, *shape), dtype=np.uint8),
        "label": np.arange(BATCH, dtype=np.int32) % classes,
        "index": np.arange(BATCH, dtype=np.int32),
        "epoch": np.zeros(BATCH, np.int32),
        "mask": np.ones(BATCH, np.float32),
    }
    facts = {"classes": classes, "channels": shape[-1], "image_size": shape[0]}
    take_steps(dataclasses.replace(shipped, task=task), smaller or shipped.model, facts, batch)


@pytest.mark.parametrize("name", slow_but(["trec", "minilm"], TEXTS))
def test_a_recipe_of_texts_takes_a_step(name):
    shipped = recipe.load_recipe(name)
    smaller, classes = TEXTS[name]
    rng = np.random.default_rng(0)
    batch = {
        "token": rng.integers(5, 50, (BATCH, 12), dtype=np.int32),
        "length": rng.integers(1, 13, BATCH, dtype=np.int32),
        "label": np.arange(BATCH, dtype=np.int32) % classes,
        "index": np.arange(BATCH, dtype=np.int32),
        "epoch": np.zeros(BATCH, np.int32),
        "mask": np.ones(BATCH, np.float32),
    }
    facts = {"classes": classes, "vocabulary": 50, "max_length": 12, "pad": 0}
    take_steps(shipped, smaller, facts, batch)
    whole = as_model(shipped.model, facts, jax.eval_shape(shipped.task.inputs, batch))
    shipped.task.check(output_shape(whole, jax.eval_shape(shipped.task.inputs, batch)), facts)


@pytest.mark.parametrize("name", slow_but(["spoken_sequences"], SOUNDS))
def test_a_recipe_of_sounds_takes_a_step(name):
    shipped = recipe.load_recipe(name)
    task, rng = shipped.task, np.random.default_rng(0)
    length = task.mel.count_samples(24)
    batch = {
        "audio": rng.integers(-3000, 3000, (BATCH, length)).astype(np.int16),
        "samples": rng.integers(length // 2, length, BATCH, dtype=np.int32),
        "index": np.arange(BATCH, dtype=np.int32),
        "epoch": np.zeros(BATCH, np.int32),
        "mask": np.ones(BATCH, np.float32),
    }
    if isinstance(task, ja.tasks.SpeechRecognition):
        facts = {"classes": 4, "channels": task.bands, "subsampling": task.subsampling}
        batch |= {
            "label": rng.integers(1, 4, (BATCH, 2), dtype=np.int32),
            "labels": np.full(BATCH, 2, np.int32),
        }
    else:
        facts = {"classes": 10, "channels": task.bands}
        batch |= {"label": np.arange(BATCH, dtype=np.int32)}
    take_steps(shipped, SOUNDS[name], facts, batch)
    shapes = jax.eval_shape(lambda batch: task.inputs(task.features(batch)), batch)
    want = (BATCH, task.count_outputs(24), 4) if "labels" in batch else (BATCH, 10)
    assert output_shape(as_model(shipped.model, facts, shapes), shapes).shape == want


@pytest.mark.parametrize("name", slow_but(["multi30k_en_de", "lm"], WRITERS))
def test_a_recipe_that_writes_takes_a_step(name):
    shipped = recipe.load_recipe(name)
    rng = np.random.default_rng(0)
    token = rng.integers(5, 50, (BATCH, 12), dtype=np.int32)
    length = rng.integers(1, 13, BATCH, dtype=np.int32)
    batch = {
        "index": np.arange(BATCH, dtype=np.int32),
        "epoch": np.zeros(BATCH, np.int32),
        "mask": np.ones(BATCH, np.float32),
    }
    if isinstance(shipped.task, ja.tasks.Translation):
        batch |= {"source": token, "source_length": length, "target": token[::-1], "target_length": length}
    else:
        batch |= {"token": token, "length": length, "bytes": length}
    tokenizer = train_tokenizer(["a b"] * 3, "bpe", 260, False).json
    shipped = dataclasses.replace(shipped, task=dataclasses.replace(shipped.task, fitted_tokenizer=tokenizer))
    facts = {"vocabulary": 260, "max_length": 12, "pad": 0, "begin": 1, "end": 2}
    take_steps(shipped, WRITERS[name], facts | {"classes": 260}, batch)
    shapes = jax.eval_shape(shipped.task.inputs, batch)
    shipped.task.check(output_shape(as_model(shipped.model, facts, shapes), shapes), facts)


def take_steps(shipped, factory, facts, batch):
    task, classes = shipped.task, facts["classes"]
    inputs = jax.eval_shape(lambda batch: task.inputs(task.features(batch)), batch)
    model = as_model(factory, facts, inputs)
    schedule = shipped.schedule.build(shipped.optimizer.learning_rate, 100)
    training = Training(
        model,
        task,
        shipped.optimizer.build(schedule),
        schedule,
        chain(*shipped.augment),
        augment_features=chain(*shipped.augment_features),
        averaging=shipped.optimizer.averaging([*range(10, 101, 10)]),
    )
    before = jax.jit(training.init)()
    # The second step: with warm-up the first one's learning rate is 0.
    step = jax.jit(training.step)
    after, first = step(before, batch)
    after, second = step(after, batch)
    assert first.finite and second.finite
    assert int(after.step) == 2
    if task.metric == "accuracy":  # CTC's loss is of whole transcripts
        np.testing.assert_allclose(first.means["loss"].value(), np.log(classes), rtol=0.5)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, before.params)
    assert any(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", SHRUNKEN)
def test_the_whole_model_fits_its_data(name):
    """Shapes only: no memory, no computation."""
    shipped = recipe.load_recipe(name)
    _, shape, classes = SHRUNKEN[name]
    size = shipped.task.image_size or shape[0]
    facts = {"classes": classes, "channels": shape[-1], "image_size": size}
    inputs = (jax.ShapeDtypeStruct((2, size, size, shape[-1]), np.float32),)
    shipped.task.check(output_shape(as_model(shipped.model, facts, inputs), inputs), facts)


def test_a_recipe_has_few_values():
    assert leaves(recipe.load_recipe("digits")) <= 78


def leaves(value):
    if dataclasses.is_dataclass(value) and not callable(value):
        return sum(leaves(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 1


def test_recipe_json_names_every_difference():
    one = recipe.load_recipe("digits")
    two = dataclasses.replace(
        one, seed=1, augment=(augment.horizontal_flip,),
        optimizer=dataclasses.replace(one.optimizer, args={"b1": 0.8}),
    )  # fmt: skip
    a, b = (json.loads(json.dumps(to_json(r))) for r in (one, two))
    assert {path for path, _, _ in find_differences(a, b)} == {"seed", "augment", "optimizer.args.b1"}
    assert find_differences(a, a) == []
    assert a["model"].startswith("ConvNet(")


@pytest.mark.parametrize("name", [*SHRUNKEN, *TEXTS])
def test_a_recipe_comes_back_from_json(name):
    shipped = recipe.load_recipe(name)
    written = json.loads(json.dumps(to_json(shipped)))
    back = recipe.from_json(written)
    assert find_differences(json.loads(json.dumps(to_json(back))), written) == []
    for part in ("task", "data", "optimizer", "schedule", "mesh"):
        assert getattr(back, part) == getattr(shipped, part)
    with pytest.raises(UserError, match="there is no warp in this version"):
        recipe.from_json(written | {"warp": 9})


def test_every_recipe_documents_itself():
    for name in SHRUNKEN:
        about = recipe.load(name).about
        assert f"python -m jaxaccel.train {name}" in about
        assert "Data:" in about and "Hardware:" in about
        assert recipe.load_recipe(name).name == name


def test_what_a_recipe_says_it_reaches_is_what_the_guide_says():
    guide = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*?\| ([\d.]+%) \((.*?)\) \|.*\| (\d+) s \|$", guide, re.MULTILINE)
    assert {name for name, *_ in rows} >= {"digits", "mnist", "fashion_mnist"}
    for name, accuracy, seeds, seconds in rows:
        about = recipe.load(name).about
        assert f"{accuracy} in {seconds} seconds" in about.splitlines()[0]
        assert f"{accuracy}, the mean of three seeds ({seeds})" in about and f"{seconds} s" in about


@pytest.mark.parametrize(
    "change, says",
    [
        ({"epochs": 0}, "epochs must be above 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"keep": 0}, "keep must be at least 1"),
    ],
)
def test_numbers_without_meaning(change, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(recipe.load_recipe("digits"), **change)


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "resnet_of_ones_own.py"
    path.write_text(
        "import jaxaccel as ja\ndef recipe():\n    return ja.Recipe(name='mine', model=ja.models.resnet20)\n"
    )
    mine = recipe.load_recipe(str(path))
    assert isinstance(mine, Recipe) and mine.name == "mine"
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match="must define recipe"):
        recipe.load_recipe(str(tmp_path / "empty.py"))
    with pytest.raises(UserError, match="did you mean digits"):
        recipe.load_recipe("digist")
