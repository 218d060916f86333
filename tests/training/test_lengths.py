"""Examples that vary in length in the same trainer: buckets, weighted losses, features, rows."""

import dataclasses
import gzip
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxaccel as ja
from jaxaccel.data.buckets import (
    Bucketed,
    Turns,
    choose_bounds,
    divide_by_length,
    merge_small,
)
from jaxaccel.data.order import Bucket
from jaxaccel.distributed import MeshShape, make_mesh
from jaxaccel.errors import UserError
from jaxaccel.tasks import Task
from jaxaccel.tasks.metrics import Mean
from jaxaccel.training.bucket_plan import make_bucket_plan
from jaxaccel.training.feed import resident_feed, stream_feed
from jaxaccel.training.fused_steps import gather_batch
from jaxaccel.training.programs import Programs
from jaxaccel.training.recipe import Data, Recipe

RNG = np.random.default_rng(0)
TEXTS = ["".join(RNG.choice(list("abcd"), n)) for n in RNG.integers(2, 40, 300)]


@dataclasses.dataclass(frozen=True)
class NextByte(Task):
    """Predicts each byte of a text from the one before: as many labels as a text has bytes, less one."""

    metric = "perplexity"
    better = "lower"
    logits = True
    limits: tuple[int, ...] = ()

    @property
    def bounds(self):
        return self.limits

    def fit(self, source):
        return dataclasses.replace(self, limits=choose_bounds(self.lengths(source), 3))

    def element(self, example):
        token = np.frombuffer(example["text"].item(), np.uint8).astype(np.int32)
        return {"token": token, "length": np.int32(len(token))}

    def length(self, element):
        return int(element["length"])

    def pad(self, element, length):
        token = element["token"][:length]
        return {
            "token": np.pad(token, (0, length - len(token)), constant_values=7),
            "length": np.minimum(element["length"], length).astype(np.int32),
        }

    def features(self, batch):
        return dict(batch) | {"shifted": batch["token"] + 0}

    def inputs(self, batch):
        return (batch["shifted"][:, :-1],)

    def weights(self, batch):
        places = jnp.arange(batch["token"].shape[1] - 1) < batch["length"][:, None] - 1
        return places * batch["mask"][:, None]

    def loss(self, outputs, batch):
        losses = -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch["token"][:, 1:, None], -1)[..., 0]
        loss = Mean.of(losses, self.weights(batch))
        return loss, {"loss": loss}

    def evaluate(self, apply, batch):
        outputs = self.predict(apply, batch)
        return self.loss(outputs, batch)[1] | {"guess": outputs.argmax(-1)}

    def summarize(self, means):
        scores = super().summarize(means)
        return scores | {"perplexity": float(np.exp(scores["loss"]))}

    def score(self, rows, source):
        pairs = zip(rows["guess"], source, strict=True)
        hits = [np.mean(g[: len(t) - 1] == t[1:]) for g, e in pairs for t in [self.element(e)["token"]]]
        return {"hits": float(np.mean(hits))}


class Bigrams(nnx.Module):
    def __init__(self, width: int = 8, *, rngs: nnx.Rngs):
        self.embed = nnx.Embed(256, width, rngs=rngs)
        self.head = nnx.Linear(width, 256, rngs=rngs)

    def __call__(self, token):
        return self.head(self.embed(token))


@pytest.fixture(scope="module")
def name():
    return ja.data.from_arrays({"text": TEXTS})


@pytest.fixture
def recipe(name):
    return Recipe(
        name="bytes",
        model=Bigrams,
        task=NextByte(),
        data=Data(name=name),
        epochs=3,
        batch_size=16,
        eval_every=1,
    )


def plan_of(recipe, lengths, bounds=(8, 16, 40), parts=1):
    return make_bucket_plan(recipe, np.asarray(lengths), bounds, parts)


def test_bounds_leave_the_least_padding():
    lengths = np.array([3] * 50 + [4] * 50 + [9] * 30 + [31] * 3 + [32] * 9)
    assert choose_bounds(lengths, 3, 1) == (4, 9, 32)
    assert choose_bounds(lengths, 6, 1) == (3, 4, 9, 31, 32)
    assert choose_bounds(lengths, 2, 4) == (
        4,
        32,
    )  # 100 * 4 + 42 * 32 positions; with 12 they are 130 * 12 + 12 * 32
    assert choose_bounds(np.array([5]), 6, 4) == (8,)

    def waste(bounds):
        return sum(b * len(p) for b, p in zip(bounds, divide_by_length(lengths, bounds), strict=True))

    best = min(
        waste((a, b, 32)) for a in range(1, 31) for b in range(a + 1, 32)
    )  # every choice of three bounds
    assert waste(choose_bounds(lengths, 3, 1)) == best


def test_small_buckets_go_into_the_next_longer_one():
    parts = [np.array([0, 4]), np.array([1, 2, 3, 9]), np.array([5, 6]), np.array([7])]
    merged = merge_small(parts, 3)
    assert [p.tolist() for p in merged] == [[], [0, 1, 2, 3, 4, 9], [], [5, 6, 7]]
    assert [len(p) for p in merge_small(parts, 2)] == [2, 4, 0, 3]
    assert [len(p) for p in merge_small(parts, 1)] == [2, 4, 2, 1]
    longer = [*parts, np.array([], np.int32)]  # a length that no example needs is nobody's
    assert [len(p) for p in merge_small(longer, 3)] == [0, 6, 0, 3, 0]
    assert [len(p) for p in merge_small(longer, 100)] == [0, 0, 0, 9, 0]


def test_each_example_is_seen_once_an_epoch_to_within_a_batch_of_its_bucket(recipe):
    lengths = [len(t) for t in TEXTS]
    plan = plan_of(recipe, lengths)
    order, seen = plan.order(5), np.zeros(len(TEXTS), int)
    for step in range(plan.turns.steps_before(7)):
        item = order(step)
        np.add.at(seen, item["index"], 1)
        assert item["index"].shape == (plan.form(step).batch_size,)
        assert order.length(step) == plan.form(step).length
        assert all(lengths[i] <= order.length(step) for i in item["index"])
        if step + 1 in plan.ends():
            epoch = plan.ends().index(step + 1) + 1
            for bucket in plan.buckets:
                missing = epoch * len(bucket.positions) - seen[bucket.positions].sum()
                assert 0 <= missing < bucket.batch_size
                assert abs(seen[bucket.positions] - epoch).max() <= 1
    assert plan.examples(plan.turns.steps_before(7)) == seen.sum()
    assert plan.epoch(plan.steps) == pytest.approx(3, abs=0.2)


def test_a_step_is_found_without_the_steps_before():
    turns = Turns((100, 37, 12), (16, 8, 4))
    drawn, counts = [0, 0, 0], []
    for step in range(turns.steps_before(9)):
        counts.append(list(drawn))
        turn = Turns((100, 37, 12), (16, 8, 4)).find(step)
        assert turn.draw == drawn[turn.bucket]
        drawn[turn.bucket] += 1
    assert all(turns.count(step) == counts[step] for step in range(len(counts)))
    assert drawn == [9 * 100 // 16, 9 * 37 // 8, 9 * 12 // 4]


def test_what_a_seed_means_never_changes():
    turns = Turns((12, 8), (4, 4))
    buckets = (Bucket(4, 4, np.arange(12, dtype=np.int32)), Bucket(8, 4, np.arange(12, 20, dtype=np.int32)))
    order = Bucketed(0, buckets, turns)
    assert [turns.find(step).bucket for step in range(10)] == FIRST_TURNS
    assert order(0)["index"].tolist() == FIRST_BATCH


FIRST_TURNS = [0, 1, 0, 0, 1, 1, 0, 0, 1, 0]
FIRST_BATCH = [7, 6, 3, 2]


@pytest.mark.parametrize("tokens", [0, 256])
def test_batches_are_the_same_on_any_number_of_devices(recipe, tokens):
    recipe = dataclasses.replace(recipe, batch_size=16, batch_tokens=tokens)
    lengths = [len(t) for t in TEXTS]
    one, *others = (
        plan_of(recipe, lengths, parts=parts) for parts in ((1, 2, 4) if tokens else (1, 2, 4, 8))
    )
    assert all(b.batch_size % 8 == 0 for b in one.buckets if b.batch_size >= 8)
    for other in others:
        assert other.forms == one.forms
        for step in (0, 1, 17, one.steps):
            np.testing.assert_array_equal(one.order(3)(step)["index"], other.order(3)(step)["index"])
    if tokens:
        assert [f.batch_size for f in one.forms] == [32, 16, 4]  # 6 of length 40 would fit: no power of two
        with pytest.raises(
            UserError, match=r"batch_tokens must be 320 or more: a step has 8 examples at least"
        ):
            plan_of(recipe, lengths, parts=8)


def test_both_feeds_yield_the_same_bits(recipe, name):
    source, mesh = ja.data.open(name, "train"), make_mesh(MeshShape(data=1))
    task = NextByte().fit(source)
    lengths = task.lengths(source)
    order = make_bucket_plan(recipe, lengths, task.bounds).order(0)
    calls = [range(i, i + 1) for i in range(8)]
    resident = resident_feed(source, task.element, order, mesh, pad=task.pad)
    streamed = stream_feed(source, task.element, order, mesh, pad=task.pad)
    pairs = zip(calls, resident.items(calls), streamed.items(calls), strict=True)
    shapes = set()
    for call, row, item in pairs:
        arrays = resident.arrays_of(order.length(call.start))
        there = gather_batch(arrays, jax.tree.map(lambda x: x[0], row))
        here = jax.tree.map(lambda x: x[0], item)
        assert there.keys() == here.keys() == {"token", "length", "index", "epoch", "mask"}
        for key in there:
            np.testing.assert_array_equal(there[key], here[key])
        texts = [source[int(i)]["text"].item() for i in there["index"]]
        assert [t.decode() for t in texts] == [
            bytes(np.asarray(t)[:n].astype(np.uint8)).decode()
            for t, n in zip(there["token"], there["length"], strict=True)
        ]
        shapes.add(there["token"].shape)
    assert len(shapes) > 1


def test_a_run_compiles_what_it_said_learns_and_resumes(recipe, tmp_path, capsys, monkeypatch):
    whole = ja.train(recipe, run=tmp_path / "whole")
    said = capsys.readouterr().out
    steps, _ = map(int, re.search(r"compiling (\d+) programs of steps and (\d+) of", said).groups())
    assert steps == 3 and "padding is" in said
    assert whole.summary["eval"]["perplexity"] < 250
    assert 0 <= whole.summary["eval"]["hits"] <= 1

    compiled, made = [], Programs._compile_step
    monkeypatch.setattr(Programs, "_compile_step", lambda *a: compiled.append(a[1:]) or made(*a))
    ran = Programs.run

    def killed(programs, call, state, item):
        if call.start == whole.summary["steps"] - 9:
            raise KeyboardInterrupt
        return ran(programs, call, state, item)

    monkeypatch.setattr(Programs, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        ja.train(recipe, run=tmp_path / "killed")
    assert len(compiled) == len(set(compiled)) == steps
    monkeypatch.setattr(Programs, "run", ran)
    monkeypatch.setattr(NextByte, "fit", None)  # what was learned of the data is not learned anew
    result = ja.train(recipe, run=tmp_path / "killed", resume=True)
    assert result.summary["state_sha256"] == whole.summary["state_sha256"]
    assert result.summary["eval"] == whole.summary["eval"]
    facts = json.loads((tmp_path / "killed" / "facts.json").read_text())
    assert facts["fitted"]["limits"] == list(facts_bounds(whole))
    opened = ja.load(tmp_path / "killed", which="last")
    found = opened.evaluate()
    assert found == pytest.approx(whole.summary["eval"], rel=1e-5)


def facts_bounds(result):
    return result.task.bounds


def test_rows_come_back_in_the_order_of_the_split(recipe, tmp_path, name):
    result = ja.train(dataclasses.replace(recipe, epochs=1), run=tmp_path / "run")
    source = ja.data.open(name, "test")
    model = result.training.bind(result.state.weights(), result.state.model_state)
    task, hits = result.task, []
    for i in range(len(source)):
        token = task.element(source[i])["token"]
        hits.append(np.mean(np.asarray(model(jnp.asarray(token[None, :-1])).argmax(-1))[0] == token[1:]))
    assert result.summary["eval"]["hits"] == pytest.approx(np.mean(hits), rel=1e-6)


def step_of(recipe, tmp_path, **changes):
    from jaxaccel.training.problem import Problem
    from jaxaccel.training.run_setup import set_up_run

    recipe = dataclasses.replace(recipe, **changes)
    return set_up_run(Problem(recipe), make_mesh(MeshShape(data=1)), tmp_path)


def test_parts_that_are_accumulated_weigh_by_their_tokens(recipe, tmp_path):
    def grads(accumulate):
        optimizer = ja.Optimizer("sgd", learning_rate=1.0, accumulate=accumulate)
        setup = step_of(recipe, tmp_path, optimizer=optimizer)
        training = setup.trainer
        state = training.init()
        source = setup.problem.splits.train
        rows = [setup.problem.task.example(source[i], 40) for i in range(16)]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        batch |= {"index": np.arange(16), "epoch": np.zeros(16, int), "mask": np.ones(16, np.float32)}
        assert len({int(n) for n in batch["length"]}) > 4
        after, metrics = jax.jit(training.step)(state, batch)
        return after.params, metrics.means["loss"].value()

    (one, loss), (four, loss_of_parts) = grads(1), grads(4)
    assert loss_of_parts == pytest.approx(float(loss), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, four)


def test_padding_changes_neither_loss_nor_gradient_nor_lesson(recipe, tmp_path):
    from jaxaccel.training.teacher import Distill, Teacher

    setup = step_of(recipe, tmp_path)
    source, task = setup.problem.splits.train, setup.problem.task
    teacher = Teacher(setup.model, task, Distill(tmp_path, soft=0.5))
    training = dataclasses.replace(setup.trainer, teacher=teacher)
    params, state = setup.model.init(jax.random.key(0))
    theirs = dict(zip(("params", "model_state"), setup.model.init(jax.random.key(1)), strict=True))
    loss_fn = jax.value_and_grad(training.loss.make(None, theirs), has_aux=True)

    def of(indices, length):
        rows = [task.example(source[i], length) for i in indices]
        batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        batch |= {"mask": np.ones(len(rows), np.float32)}
        return loss_fn(params, state, task.features(batch), jax.random.key(0))

    short = [i for i in range(len(source)) if len(source[i]["text"].item()) < 16][:4]
    (loss, aux), grads = of(short, 16)
    (padded, more), same = of(short, 40)
    assert float(aux[0]["distill"].value()) > 1e-3
    assert float(more[0]["distill"].value()) == pytest.approx(float(aux[0]["distill"].value()), rel=1e-5)
    assert float(padded) == pytest.approx(float(loss), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), grads, same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": "auto"}, "for examples of one shape"),
        (
            {"phases": ja.training.Phases(at=(0.5,), batch_size=(8, 16))},
            "phases are for examples of one shape",
        ),
    ],
)
def test_what_does_not_go_with_lengths_is_said(recipe, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        ja.train(dataclasses.replace(recipe, **changes), run=tmp_path / "run")


def test_tokens_a_step_are_for_lengths(tmp_path):
    recipe = dataclasses.replace(ja.load_recipe("digits"), batch_tokens=4096)
    with pytest.raises(UserError, match="batch_tokens is for examples that vary in length: give batch_size"):
        ja.train(recipe, run=tmp_path / "run")


def test_replicas_see_buckets_of_one_shape(recipe, tmp_path):
    result = ja.train(dataclasses.replace(recipe, epochs=1, replicas=2), run=tmp_path / "run")
    alone = ja.train(dataclasses.replace(recipe, epochs=1, seed=1), run=tmp_path / "alone")
    rows = result.summary["replicas"]
    assert rows[1]["loss"] == pytest.approx(alone.summary["eval"]["loss"], rel=1e-4)
    assert rows[1]["hits"] == pytest.approx(alone.summary["eval"]["hits"], rel=1e-4)


@pytest.mark.data
@pytest.mark.slow
def test_little_of_pairs_of_sentences_is_padding():
    """Multi30k, English and German: both sides of a pair are filled up to one length."""
    folder = Path(os.environ["JAXACCEL_DATA_DIR"]) / "multi30k"
    files = (folder / f"train.{name}.gz" for name in ("en", "de"))
    sides = [gzip.decompress(file.read_bytes()).decode().splitlines() for file in files]
    tokenizer = ja.data.train_tokenizer([text for side in sides for text in side[:4000]], "bpe", 6000)
    lengths = np.array([[len(tokens) for tokens in tokenizer.encode(side)] for side in sides])
    longer = lengths.max(0)
    bounds = choose_bounds(longer)
    filled = sum(
        bound * len(part) for bound, part in zip(bounds, divide_by_length(longer, bounds), strict=True)
    )
    assert len(bounds) == 6 and 1 - lengths.sum() / (2 * filled) < 0.2
