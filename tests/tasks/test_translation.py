"""Translation: from pairs of texts to batches, loss and BLEU, training on a small set, predictions, and refusals."""

import dataclasses
import functools
import json
import logging
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_translators import OneLook

import jaxaccel as ja
from jaxaccel.errors import UserError
from jaxaccel.tasks import Translation
from jaxaccel.tasks.batches import make_elements, stack_examples
from jaxaccel.tasks.bleu import score_translations
from jaxaccel.tasks.token_loss import find_hits, measure_tokens
from jaxaccel.training import Data
from jaxaccel.training import fit as fit_module

PAIRS = str(Path(__file__).parents[1] / "fixtures" / "translation")
TASK = Translation(vocabulary=330, fill_to=(44,))


def make_recipe(**changes):
    recipe = ja.Recipe(
        name="pairs", model=OneLook, task=TASK, data=Data(name=PAIRS), epochs=24, eval_every=12, batch_tokens=704,
        optimizer=ja.Optimizer("adamw", learning_rate=1e-2),
    )  # fmt: skip
    return dataclasses.replace(recipe, **changes)


@pytest.fixture(scope="module")
def source():
    return ja.data.open(PAIRS, "train")


@pytest.fixture(scope="module")
def task(source):
    return TASK.fit(source)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return ja.train(make_recipe(), run=tmp_path_factory.mktemp("pairs") / "run")


def pair(en, de):
    return {"en": np.array(en.encode(), object), "de": np.array(de.encode(), object)}


def test_both_languages_have_one_tokenizer_and_end_with_the_end(task, source):
    facts = task.facts(source.features)
    assert facts["vocabulary"] <= 330 and len({facts["pad"], facts["begin"], facts["end"]}) == 3
    for example in source.__getitems__(range(5)):
        element = task.element(example)
        assert element["source"][-1] == element["target"][-1] == facts["end"]
        assert facts["begin"] not in element["target"]
        for part, language in (("source", "en"), ("target", "de")):
            assert task.decode(element[part][:-1]) == example[language].item().decode()
            assert element[f"{part}_length"] == len(element[part])
    assert facts["max_length"] == task.bounds[-1] >= task.lengths(source).max()


def test_the_other_direction_is_one_flag(source):
    back = Translation(vocabulary=330, fill_to=(44,), source="de", target="en").fit(source)
    element = back.element(source[0])
    assert back.decode(element["source"][:-1]) == source[0]["de"].item().decode()
    assert back.decode(element["target"][:-1]) == source[0]["en"].item().decode()


def test_inputs_are_the_target_moved_by_one_place(task, source):
    batch = {k: jnp.asarray(v) for k, v in stack_examples(make_elements(task, source, range(4))).items()}
    given, mask, previous = task.inputs(batch)
    np.testing.assert_array_equal(previous[:, 1:], batch["target"][:, :-1])
    assert (previous[:, 0] == task.begin).all()
    np.testing.assert_array_equal(mask.sum(1), batch["source_length"])
    np.testing.assert_array_equal(given != task.tokens.pad, mask)
    np.testing.assert_array_equal(task.weights(batch).sum(1), batch["target_length"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_smoothed_targets_in_float64(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 7)) * 4
    target, weights = rng.integers(0, 7, (3, 4)), np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = (1 - smoothing) * np.eye(7)[target] + smoothing / 7
    expected = -(wanted * logs).sum(-1)
    logits[2] = np.nan  # of padding alone
    found = measure_tokens(
        jnp.asarray(logits, jnp.float32), jnp.asarray(target), jnp.asarray(weights), smoothing
    )
    assert float(found.smoothed.value()) == pytest.approx((expected * weights).sum() / 4, rel=1e-5)
    assert float(found.smoothed.count) == 4
    plain = -np.take_along_axis(logs, target[..., None], -1)[..., 0]
    assert float(found.loss.value()) == pytest.approx((plain * weights).sum() / 4, rel=1e-5)


@pytest.mark.parametrize("values", [3, 1, 1000])
def test_hits_are_those_of_argmax_also_where_logits_are_equal(values):
    rng = np.random.default_rng(values)
    logits = rng.integers(0, values, (4, 9, 7)).astype(np.float32)
    target = rng.integers(0, 7, (4, 9))
    right = np.take_along_axis(logits, target[..., None], -1)[..., 0]
    hits = find_hits(jnp.asarray(logits), jnp.asarray(right), jnp.asarray(target))
    np.testing.assert_array_equal(hits, logits.argmax(-1) == target)
    assert 0 < np.asarray(hits).sum() < hits.size


def test_what_stands_in_padding_changes_neither_loss_nor_gradient(task, source):
    rows = make_elements(task, source, range(4))
    batch = {k: jnp.asarray(v) for k, v in stack_examples(rows).items()}
    wide = {
        k: jnp.pad(v, ((0, 0), (0, 5)), constant_values=7) if v.ndim == 2 else v for k, v in batch.items()
    }
    logits = jax.random.normal(jax.random.key(0), (*batch["target"].shape, 330))
    more = jnp.pad(logits, ((0, 0), (0, 5), (0, 0)), constant_values=50.0)
    (loss, _), grads = jax.value_and_grad(_total, has_aux=True)(logits, task, batch)
    (padded, _), padded_grads = jax.value_and_grad(_total, has_aux=True)(more, task, wide)
    assert float(loss) == pytest.approx(float(padded), rel=1e-6)
    np.testing.assert_allclose(padded_grads[:, : logits.shape[1]], grads, atol=1e-7)
    assert not padded_grads[:, logits.shape[1] :].any()


def _total(logits, task, batch):
    loss, means = task.loss(logits, batch)
    return loss.value(), means


def test_long_and_empty_pairs_have_no_loss_and_are_counted(task, caplog):
    long = pair("a dog " * 200, "ein Hund")
    assert task.pad(task.element(long), 8)["target_length"] == 0
    assert task.element(pair("", "ein Hund"))["target_length"] == 0
    assert task.element(pair("a dog", " "))["target_length"] == 0
    assert task.pad(task.element(long), 8)["source"][-1] == task.end

    name = ja.data.from_arrays(
        {"en": ["a dog " * 200, "a", "", "b"], "de": ["x", "y", "z", "w"]}, test={"en": ["a"], "de": ["x"]}
    )
    with caplog.at_level(logging.WARNING):
        task.lengths(ja.data.open(name, "train"))
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "1 of 4 pairs of split train have an empty text: they have no loss"
    assert said[1].startswith(
        f"1 of 4 pairs of split train have more than {task.bounds[-1]} tokens: they have no loss"
    )


def test_bleu_is_that_of_sacrebleu(caplog):
    import sacrebleu

    found = ["The cat sat on the mat.", "there is a Dog", "", "a b c d e"]
    references = ["The cat sat on a mat.", "There is a dog", "nothing", "a b c d e f"]
    with caplog.at_level(logging.INFO):
        scores = score_translations(found, references)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(found, [references]).score)
    assert scores["bleu_lc"] == pytest.approx(
        sacrebleu.corpus_bleu(found, [references], lowercase=True).score
    )
    assert scores["bleu_lc"] > scores["bleu"] > 0
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(found, [references]).score)
    assert "|tok:13a|" in caplog.text and "|case:mixed|" in caplog.text


def test_a_small_model_learns_to_translate(trained):
    rows = [json.loads(line) for line in (trained.directory / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    scores = [row for row in rows if row["kind"] == "eval"]
    assert losses[-1] < 0.5 * losses[0]
    assert scores[-1]["bleu"] > scores[0]["bleu"] and scores[-1]["bleu"] > 25
    assert scores[-1]["perplexity"] == pytest.approx(math.exp(scores[-1]["loss"]), rel=1e-5)
    assert len({row["step"] for row in scores}) == 2


def test_translations_do_not_depend_on_what_else_is_translated(trained):
    run = ja.load(trained.directory, which="last")
    texts = ["The dog runs.", "The woman sits in the garden.", "Today, a child sees the ball."]
    together = run.predict(texts)
    for i, text in enumerate(texts):
        alone = run.predict(text)
        tokens = together["tokens"][i, 0]
        assert run.task.decode(alone["tokens"][0]) == run.task.decode(tokens)
        np.testing.assert_allclose(alone["score"], together["score"][i], rtol=1e-4)


def test_beams_give_several_translations_with_scores(trained):
    run = ja.load(trained.directory, which="last")
    wide = run.with_task(beam=4, nbest=3)
    greedy, found = run.predict(["The dog runs."]), wide.predict(["The dog runs."])
    assert found["score"].shape == (1, 3) and (np.diff(found["score"][0]) <= 0).all()
    assert found["score"][0, 0] >= greedy["score"][0, 0] - 1e-5
    told = wide.task.describe("The dog runs.", jax.tree.map(lambda x: x[0], found), {}, top=5)
    assert [row["score"] for row in told["nbest"]] == sorted(
        (row["score"] for row in told["nbest"]), reverse=True
    )
    assert told["translation"] == told["nbest"][0]["translation"]


@pytest.mark.parametrize(
    ("own", "asked", "beam"),
    [
        (5, {"nbest": 2}, 5),
        (5, {"nbest": 7}, 7),
        (5, {"beam": 3, "nbest": 2}, 3),
        (5, {}, 5),
        (1, {"nbest": 2}, 2),
    ],
)
def test_more_translations_never_make_the_search_narrower(trained, own, asked, beam):
    from jaxaccel.predict import PredictOptions, search_wider

    task = search_wider(ja.load(trained.directory).with_task(beam=own), PredictOptions(**asked)).task
    assert (task.beam, task.nbest) == (beam, asked.get("nbest", 1))


def test_an_evaluation_takes_a_beam(trained, tmp_path):
    from jaxaccel.evaluate import EvaluateOptions, evaluate

    found = evaluate(trained.directory, EvaluateOptions(which="last", beam=2, out=tmp_path))
    greedy = trained.summary["eval"]
    assert found.metrics["perplexity"] == pytest.approx(greedy["perplexity"], rel=1e-4)
    assert found.metrics["bleu"] > 0.8 * greedy["bleu"]
    assert json.loads((tmp_path / "evaluation.json").read_text())


def test_an_empty_line_and_a_long_one_are_errors_of_these_lines_alone(trained, tmp_path):
    from jaxaccel.predict import PredictOptions, main, write_predictions

    lines = ["The dog runs.", "", "word " * 10_000, "A doctor sings."]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.jsonl"
    counts = write_predictions(
        trained.directory, PredictOptions((tmp_path / "in.txt",), which="last", output=out)
    )
    assert (counts.inputs, counts.errors) == (4, 2)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [sorted(row) for row in (rows[0], rows[3])] == [["input", "score", "text", "translation"]] * 2
    assert rows[1]["error"] == "the text is empty: there is nothing to translate"
    assert "tokens, and the model was trained on up to" in rows[2]["error"]
    with pytest.raises(UserError, match="2 of 4 inputs could not be predicted"):
        main([str(trained.directory), str(tmp_path / "in.txt"), "--output", str(out), "--beam", "2"])


def test_a_student_trains_on_the_translations_of_its_teacher(trained, tmp_path):
    from jaxaccel.predict import PredictOptions, write_predictions

    out = tmp_path / "taught.jsonl"
    options = PredictOptions(which="last", split="train[:40]", beam=2, output=out)
    counts = write_predictions(trained.directory, options)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert counts.inputs == len(rows) == 40 and all(sorted(row) == ["de", "en"] for row in rows)
    source = ja.data.open(PAIRS, "train")
    assert [row["en"] for row in rows] == [source[i]["en"].item().decode() for i in range(40)]
    assert any(row["de"] != source[i]["de"].item().decode() for i, row in enumerate(rows))
    student = make_recipe(
        name="student",
        model=functools.partial(OneLook, width=16),
        data=Data(name=str(out), eval_name=PAIRS),
        epochs=1,
    )
    done = ja.train(student, run=tmp_path / "student")
    assert {"bleu", "bleu_lc", "chrf", "perplexity"} <= set(done.summary["eval"])


def test_a_student_learns_from_the_soft_targets_of_its_teacher(trained, tmp_path):
    from jaxaccel.training import Distill

    recipe = make_recipe(
        name="soft", model=functools.partial(OneLook, width=16), epochs=1, distill=Distill(trained.directory)
    )
    done = ja.train(recipe, run=tmp_path / "soft")
    assert done.task.fitted_tokenizer == trained.task.fitted_tokenizer


def test_a_teacher_of_other_tokens_is_refused(trained, tmp_path):
    from jaxaccel.data.tokenizers import train_tokenizer
    from jaxaccel.training import Distill

    other = ja.train(
        make_recipe(task=dataclasses.replace(TASK, vocabulary=300), epochs=1), run=tmp_path / "other"
    )
    soft = make_recipe(name="soft", epochs=1, distill=Distill(trained.directory))
    with pytest.raises(
        UserError, match="are others than those of the run that weights are taken from, and its"
    ):
        ja.train(soft, run=tmp_path / "soft", init_from=other.directory)
    file = tmp_path / "tokenizer.json"
    file.write_text(train_tokenizer(["a b c"] * 3, "bpe", 280, False).json)
    given = dataclasses.replace(soft, task=dataclasses.replace(TASK, tokenizer=str(file)))
    with pytest.raises(UserError, match=r"are others than those of .*tokenizer\.json, and its"):
        ja.train(given, run=tmp_path / "given")
    file.write_text(trained.task.fitted_tokenizer)
    assert ja.train(given, run=tmp_path / "given").task.fitted_tokenizer == trained.task.fitted_tokenizer


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    short = make_recipe(epochs=2, eval_every=1, task=dataclasses.replace(TASK, fill_to=(28, 44)))
    whole = ja.train(short, run=tmp_path / "whole")
    ran = fit_module.evaluate_and_save

    def stop(*args):
        ran(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "evaluate_and_save", stop)
    with pytest.raises(KeyboardInterrupt):
        ja.train(short, run=tmp_path / "killed")
    monkeypatch.setattr(fit_module, "evaluate_and_save", ran)
    again = ja.train(short, run=tmp_path / "killed", resume=True)
    assert again.summary["state_sha256"] == whole.summary["state_sha256"]
    assert again.summary["eval"] == whole.summary["eval"]


def test_a_language_that_the_data_lack_is_refused():
    with pytest.raises(UserError, match=r"no 'fr', it has de, en: say with .*task.target"):
        ja.train(make_recipe(task=dataclasses.replace(TASK, target="fr")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": "de"}, "source and target are both 'de'"),
        ({"nbest": 3}, "nbest 3 needs as many hypotheses: beam=3"),
        ({"fill_to": (8, 4)}, "fill_to must rise"),
        ({"fill_to": (8, 512)}, "fill_to goes up to 512 and examples up to 256: raise max_length"),
    ],
)
def test_options_that_do_not_fit_each_other(options, said):
    with pytest.raises(UserError, match=said):
        Translation(**options)


def test_a_missing_package_is_named_before_a_run_trains(source, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics", None)
    with pytest.raises(
        UserError, match=r"BLEU needs the package sacrebleu: pip install 'jaxaccel\[translation\]'"
    ):
        TASK.fit(source)


def test_tokens_that_do_not_fit_the_weights_are_refused(trained, tmp_path):
    other = tmp_path / "tokenizer.json"
    from jaxaccel.data.tokenizers import train_tokenizer

    other.write_text(train_tokenizer(["a b c"] * 3, "bpe", 280, False).json)
    task = dataclasses.replace(TASK, tokenizer=str(other))
    with pytest.raises(UserError) as caught:
        ja.train(make_recipe(task=task, epochs=1), run=tmp_path / "other", init_from=trained.directory)
    assert "\n" not in str(caught.value) and "embed" in str(caught.value)
