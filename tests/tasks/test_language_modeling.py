"""Language modeling: perplexity, bits a byte, and texts that go on, each keyed by its own line."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_translators import Bigrams

import jaxaccel as ja
from jaxaccel.errors import UserError
from jaxaccel.tasks import LanguageModeling
from jaxaccel.tasks.batches import make_elements, stack_examples
from jaxaccel.tasks.token_loss import find_perplexity
from jaxaccel.training import Data
from jaxaccel.training.evaluation import compile_predict

PAIRS = str(Path(__file__).parents[1] / "fixtures" / "translation")
TASK = LanguageModeling(text="de", vocabulary=330, fill_to=(44,), write=12)


@pytest.fixture(scope="module")
def source():
    return ja.data.open(PAIRS, "train")


@pytest.fixture(scope="module")
def task(source):
    return TASK.fit(source)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    recipe = ja.Recipe(
        name="lm", model=Bigrams, task=TASK, data=Data(name=PAIRS), epochs=6, batch_size=16,
        optimizer=ja.Optimizer("adamw", learning_rate=1e-2),
    )  # fmt: skip
    return ja.train(recipe, run=tmp_path_factory.mktemp("lm") / "run")


def test_perplexity_is_of_tokens_and_bits_are_of_bytes(task, source):
    batch = {k: jnp.asarray(v) for k, v in stack_examples(make_elements(task, source, range(4))).items()}
    logits = jax.random.normal(jax.random.key(0), (*batch["token"].shape, 330))
    scores = task.summarize(task.evaluate(lambda *_: logits, batch))
    wide = np.asarray(logits, np.float64)
    logs = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    nats = [-logs[i, j, batch["token"][i, j]] for i in range(4) for j in range(int(batch["length"][i]))]
    letters = sum(len(source[i]["de"].item()) + 1 for i in range(4))
    assert scores["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / letters, rel=1e-5)


def test_a_longer_text_is_cut_with_its_bytes(task):
    element = task.element({"de": np.array("Der Hund läuft und der Vogel singt.".encode(), object)})
    cut = task.pad(element, 5)
    assert cut["length"] == 5 and task.end not in cut["token"]
    assert cut["bytes"] == len(task.tokens.decode(cut["token"]).encode())


def test_a_model_learns_from_the_tokens_before(trained):
    rows = [json.loads(line) for line in (trained.directory / "metrics.jsonl").read_text().splitlines()]
    scores = [row["perplexity"] for row in rows if row["kind"] == "eval"]
    assert scores[-1] < 0.5 * scores[0] and scores[-1] < 20
    assert trained.summary["eval"]["perplexity"] == min(scores)


def test_texts_go_on_behind_their_prompts_the_same_alone_and_together(trained):
    run = ja.load(trained.directory, which="last")
    prompts = ["Der Hund", "Die Frau sieht", "", "Ein Kind"]
    together = run.predict(prompts)
    texts = [run.task.decode(tokens) for tokens in together["tokens"]]
    assert all(text.startswith(prompt) for text, prompt in zip(texts, prompts, strict=True))
    assert any(len(text) > len(prompt) for text, prompt in zip(texts, prompts, strict=True))
    alone = run.predict(prompts[0])  # number 0 in both
    assert run.task.decode(alone["tokens"]) == texts[0]
    np.testing.assert_allclose(alone["score"], together["score"][0], rtol=1e-4)
    counts = (together["tokens"] >= 0).sum(1) - [
        len(t) for t in run.task.tokens.encode(prompts, template=False)
    ]
    assert (counts <= 12).all() and (together["score"] < 0).all()


def test_texts_of_the_data_go_on_behind_their_last_word(trained, source):
    run = ja.load(trained.directory, which="last").with_task(temperature=0.0)
    element = run.task.element(source[0])
    batch = stack_examples([run.task.pad(element, 44)]) | {"index": np.zeros(1, np.int32)}
    found = compile_predict(run.task, run.call)(run.params, batch)
    text = source[0]["de"].item().decode()
    alone = run.predict([text])
    np.testing.assert_array_equal(found["tokens"][0], alone["tokens"][0])
    np.testing.assert_allclose(found["score"][0], alone["score"][0], rtol=1e-4)
    assert found["score"][0] < 0  # an end that was given, and not written, would have cost nothing


def test_a_split_is_written_with_what_the_model_adds(trained, tmp_path):
    from jaxaccel.predict import PredictOptions, write_predictions

    out = tmp_path / "more.jsonl"
    write_predictions(trained.directory, PredictOptions(which="last", split="train[:4]", output=out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    texts = [ja.data.open(PAIRS, "train")[i]["de"].item().decode() for i in range(4)]
    assert all(
        list(row) == ["de"] and row["de"].startswith(text) for row, text in zip(rows, texts, strict=True)
    )


def test_perplexity_says_what_the_loss_says():
    assert find_perplexity({"loss": math.log(7.0)}) == pytest.approx(7.0)
    assert find_perplexity({"loss": 1e4}) == math.inf and math.isnan(find_perplexity({"loss": math.nan}))


def test_what_is_drawn_depends_on_the_line_and_the_seed(trained):
    run = ja.load(trained.directory, which="last")
    same = run.predict(["Der"] * 6)
    texts = [run.task.decode(tokens) for tokens in same["tokens"]]
    assert len(set(texts)) > 1
    other = run.with_task(draw=1).predict(["Der"] * 6)
    assert [run.task.decode(tokens) for tokens in other["tokens"]] != texts
    greedy = run.with_task(temperature=0.0).predict(["Der"] * 6)
    assert len({run.task.decode(tokens) for tokens in greedy["tokens"]}) == 1


def test_prompts_in_a_file_are_keyed_by_their_line_whatever_the_batch(trained, tmp_path):
    from jaxaccel.predict import PredictOptions, write_predictions

    (tmp_path / "prompts.txt").write_text("Der\n" * 5)
    found = []
    for size in (2, 5):
        out = tmp_path / f"{size}.jsonl"
        options = PredictOptions((tmp_path / "prompts.txt",), which="last", batch=size, output=out)
        assert write_predictions(trained.directory, options).errors == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert all(row["prompt"] == "Der" for row in rows)
        found.append([row["text"] for row in rows])
    assert found[0] == found[1] and len(set(found[0])) > 1


def test_a_prompt_without_a_place_behind_it_is_refused(trained):
    run = ja.load(trained.directory, which="last")
    with pytest.raises(UserError, match=r"prompt 1 has [\d,]+ tokens, and the model was trained on up to 44"):
        run.predict(["Der", "x " * 10_000])
    with pytest.raises(UserError, match="beam is nothing that LanguageModeling knows"):
        run.with_task(beam=2)
