"""``python -m jaxaccel.export``, and what the commands do with a bundle."""

import json

import numpy as np
import pytest
from PIL import Image

import jaxaccel as ja
from jaxaccel.errors import UserError
from jaxaccel.export import main, split_commas
from jaxaccel.predict import main as predict


@pytest.fixture(scope="module")
def exported(digits_run, tmp_path_factory):
    place = tmp_path_factory.mktemp("exported") / "numbers.zip"
    words = ["--to", "bundle", "--batch", "1,2", "--backend=cpu,cuda", "--untimed"]
    assert main([str(digits_run.directory), "--output", str(place), *words]) == 0
    return place


@pytest.fixture
def picture(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(levels).save(tmp_path / "four.png")
    return tmp_path / "four.png"


def test_a_run_is_exported_and_predicted_with(exported, digits_run, picture, capfdbinary):
    manifest = ja.deployment.open_bundle(exported).manifest
    assert manifest.name == "small" and manifest.origin["run"] == str(digits_run.directory)
    assert manifest.receipts["scores"] == pytest.approx(digits_run.summary["eval"])
    assert {(x.backend, x.batch) for x in manifest.programs} == {
        ("cpu", 1), ("cpu", 2), ("cpu", None), ("cuda", 1), ("cuda", 2), ("cuda", None)
    }  # fmt: skip
    said = []
    for place in (digits_run.directory, exported):
        assert predict([str(place), str(picture), "--top", "3"]) == 0
        said.append(json.loads(capfdbinary.readouterr().out))
    assert said[0]["label"] == said[1]["label"]
    assert said[0]["scores"] == pytest.approx(said[1]["scores"], abs=1e-5)


def test_what_it_says(digits_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(digits_run.directory), "--batch", "2"]) == 0
    said = capsys.readouterr().out
    assert "1 or more" in said and "bundles/small: " in said and "files" in said
    with pytest.raises(UserError) as raised:
        main([str(digits_run.directory)])
    assert raised.value.as_flags() == "bundles/small is a bundle already: replace it with --overwrite"
    assert main([str(digits_run.directory), "--batch", "2", "--overwrite", "--untimed"]) == 0
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == ["small"]


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "name a run"),
        (["--batch", "1"], "name a run"),
        (["none"], "none is not there"),
        (["RUN", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["RUN", "--batch", "two"], "two"),
        (["RUN", "--backend", "gpu"], "invalid choice 'gpu'"),
        (["RUN", "--to", "pickle"], "invalid choice 'pickle'"),
        (["RUN", "--which", "12345"], "12345"),
        (["RUN", "--bach", "1"], "--batch"),
        (["RUN", "--output", "RUN"], "is no bundle: choose another place with --output"),
    ],
)
def test_bad_words_are_one_line(digits_run, words, says):
    with pytest.raises(UserError) as raised:
        main([str(digits_run.directory) if word == "RUN" else word for word in words])
    assert says in raised.value.as_flags() and "\n" not in raised.value.as_flags()


@pytest.mark.parametrize(
    "words, says",
    [
        (["--split", "train"], "--split needs a run, and"),
        (["--stream"], "--stream needs a run, and"),
        (["--beam", "2", "FILE"], "is a bundle, which searches as it was exported: leave out --beam"),
        (["--nbest", "2", "FILE"], "leave out --nbest"),
        (["--which", "last", "FILE"], "is a bundle, which holds one model: leave out --which"),
        (
            ["--engine", "onnxruntime", "FILE"],
            "holds no ONNX model, which onnxruntime needs: python -m jaxaccel.export",
        ),
        (["--engine", "fast", "FILE"], "invalid choice 'fast'"),
    ],
)
def test_what_a_bundle_cannot_is_one_line(exported, picture, words, says):
    with pytest.raises(UserError) as raised:
        predict([str(exported), *(str(picture) if word == "FILE" else word for word in words)])
    assert says in raised.value.as_flags() and "\n" not in raised.value.as_flags()


def test_a_run_is_computed_by_xla_alone(digits_run, picture):
    with pytest.raises(UserError, match=r"engine='openvino' computes bundles: python -m jaxaccel.export"):
        ja.load(digits_run.directory, engine="openvino")
    assert isinstance(ja.load(digits_run.directory, engine="xla"), ja.deployment.Trained)


def test_commas_join_values_of_lists_alone():
    words = ["runs/a,b", "--batch", "1,16", "8", "--output", "x,y", "--to=bundle,stablehlo", "--name", "a,b"]
    assert split_commas(words) == [
        "runs/a,b", "--batch", "1", "16", "8", "--output", "x,y", "--to", "bundle", "stablehlo", "--name", "a,b"
    ]  # fmt: skip
