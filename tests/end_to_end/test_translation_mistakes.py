"""Bad input to a translation, through the commands: one line that says what to do, exit code 2, the rest translated."""

import json
import shutil

import pytest
from conftest import FIXTURES

from jaxaccel.data.tokenizers import train_tokenizer
from jaxaccel.errors import UserError
from jaxaccel.evaluate import main as evaluate
from jaxaccel.predict import main as predict
from jaxaccel.train import main as train

PAIRS = FIXTURES / "translation"
TINY = (
    "multi30k_en_de", "--epochs", "1", "--eval-every", "1", "--batch-tokens", "704", "--task.vocabulary", "330",
    "--task.fill-to", "44", "--optimizer.ema", "0",
    "--model", "translator_tiny(depth=1, width=8, heads=2, hidden=8, dropout=0)",
)  # fmt: skip
TOO_LONG = "word " * 10_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a run that has trained for one epoch."""
    place = tmp_path_factory.mktemp("translation") / "run"
    assert train([*TINY, "--data.name", str(PAIRS), "--run", str(place)]) == 0
    return place


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folders(tmp_path):
    """Parallel texts, each folder with another fault."""
    for name in ("unequal", "lacks", "odd", "blank"):
        shutil.copytree(PAIRS, tmp_path / name)
    for split in ("train", "test"):
        german = tmp_path / "unequal" / f"{split}.de"
        german.write_text(german.read_text() + "Noch ein Satz.\n")
        (tmp_path / "lacks" / f"{split}.de").rename(tmp_path / "lacks" / f"{split}.fr")
        english = tmp_path / "odd" / f"{split}.en"
        lines = english.read_text().splitlines()
        english.write_text("\n".join(["", TOO_LONG, *lines[2:]]) + "\n")
        (tmp_path / "blank" / f"{split}.en").write_text("\n" * len(lines))
    return tmp_path


def refuse(main, *words):
    """The one line that a command says."""
    with pytest.raises(UserError) as caught:
        main([*map(str, words)])
    said = caught.value.as_flags()
    assert "\n" not in said.strip()
    return said


def break_vocabulary(run, place, size):
    """A copy of a run whose tokens are others than those of its model."""
    shutil.copytree(run, place)
    facts = json.loads((place / "facts.json").read_text())
    texts = (PAIRS / "train.en").read_text().splitlines()
    facts["fitted"]["fitted_tokenizer"] = train_tokenizer(texts, "bpe", size, False).json
    (place / "facts.json").write_text(json.dumps(facts))
    return place


@pytest.mark.parametrize(
    ("folder", "training", "evaluation"),
    [
        ("unequal", "train.de has 321 lines and unequal/train.en has 320", "so make them equally many"),
        (
            "lacks",
            "the data set has no 'de', it has en, fr: say with --task.target what to take",
            "lacks has other parts than run was trained on: it has en, fr, and no 'de'",
        ),
        ("blank", "blank/train.en holds no texts: it is empty", "holds no texts: it is empty"),
    ],
)
def test_faulty_files_are_refused(run, folders, folder, training, evaluation):
    assert training in refuse(train, *TINY, "--data.name", folder)
    said = refuse(evaluate, run, "--data", folder, "--split", "test")
    assert evaluation in said.replace(str(run), "run")
    assert "--task" not in said, "the command has no such option"


def test_an_empty_line_and_a_long_one_are_counted_and_have_no_loss(run, folders, capfd):
    assert train([*TINY, "--data.name", "odd"]) == 0
    said = capfd.readouterr().out
    for split, pairs in (("train", 320), ("test", 60)):
        assert f"1 of {pairs} pairs of split {split} have an empty text: they have no loss" in said
        assert f"1 of {pairs} pairs of split {split} have more than 44 tokens: they have no loss" in said
    assert evaluate([str(run), "--data", "odd", "--split", "test", "--out", "out"]) == 0
    found = json.loads((folders / "out" / "evaluation.json").read_text())
    assert "bleu" in json.dumps(found)


def test_a_line_that_cannot_be_translated_is_an_error_of_its_own(run, tmp_path, capfdbinary):
    (tmp_path / "in.txt").write_text(f"The dog runs.\n\n{TOO_LONG}\nThe cat sleeps.\n")
    (tmp_path / "in.csv").write_text("en,de\n,Hund\nA dog.,Hund\n")
    (tmp_path / "fr.csv").write_text("fr,de\nun chien,ein Hund\n")
    said = refuse(predict, run, "in.txt", "in.csv", "fr.csv", "--text", "")
    assert said == "5 of 8 inputs could not be predicted: the lines with an error say why"
    rows = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    errors = {row["input"]: row["error"] for row in rows if "error" in row}
    empty = "the text is empty: there is nothing to translate"
    assert {name: errors.pop(name) for name in ("in.txt:2", "in.csv:2", "text:1")} == dict.fromkeys(
        ("in.txt:2", "in.csv:2", "text:1"), empty
    )
    assert "tokens, and the model was trained on up to 44: divide it into sentences" in errors.pop("in.txt:3")
    assert errors == {
        "fr.csv": "fr.csv has no column 'en'; its columns are fr, de: the model was trained with task.source en"
    }
    assert [row["input"] for row in rows if "translation" in row] == ["in.txt:1", "in.txt:4", "in.csv:3"]


@pytest.mark.parametrize("size", [280, 400])
def test_a_vocabulary_that_does_not_fit_the_checkpoint_is_refused(run, tmp_path, size):
    other = break_vocabulary(run, tmp_path / "other", size)
    for main, *words in ((predict, "--text", "A dog."), (evaluate,)):
        said = refuse(main, other, *words)
        assert f"is made for vocabulary 330, and the tokens or symbols give {size}" in said
        assert "facts.json anew" in said
    tokens = json.loads((other / "facts.json").read_text())["fitted"]["fitted_tokenizer"]
    (tmp_path / "tokenizer.json").write_text(tokens)
    words = "--data.name", PAIRS, "--init-from", run, "--task.tokenizer", "tokenizer.json"
    assert "is of another model: params/" in refuse(train, *TINY, *words)


@pytest.mark.slow
def test_every_command_ends_with_code_2_and_one_line(run, folders, run_train):
    calls = {
        "jaxaccel.train": [*TINY, "--data.name", "unequal"],
        "jaxaccel.evaluate": [run, "--data", "lacks", "--split", "test"],
        "jaxaccel.predict": [run, "--text", TOO_LONG],
    }
    for module, words in calls.items():
        code, _, err = run_train(*words, module=module)
        assert code == 2 and "Traceback" not in err, err
        assert err.splitlines()[-1].startswith("error: ") and err.count("error: ") == 1
