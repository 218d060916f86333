"""Mistakes: one line that says what to do, exit code 2, no traceback, nothing lost."""

import shutil
from pathlib import Path

import pytest
from conftest import FIXTURES

from jaxaccel.errors import UserError
from jaxaccel.train import main

SMALL = ("digits", "--model", "ConvNet(widths=(4,), hidden=0)", "--epochs", "0.1")


DIGITS = Path(__file__).parents[1] / "fixtures" / "spoken_digits"
CLINC = Path(__file__).parents[1] / "data" / "clinc150"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words, says",
    [
        (["digist"], "no recipe 'digist'; did you mean digits?"),
        (["no/such/file.py"], "no recipe file no/such/file.py"),
        (["--epocs", "3"], "unknown argument --epocs; did you mean --epochs?"),
        (["--optimizer.learning_rat", "3"], "did you mean --optimizer.learning-rate?"),
        (["--epochs", "many"], "Error parsing --epochs"),
        (["--schedule.name", "cosin"], "invalid choice 'cosin' for argument '--schedule.name'"),
        (["--model", "resnet21"], "unknown name 'resnet21'; did you mean resnet"),
        (["--augment", "horizontal_flip", "vertical_flap"], "unknown name 'vertical_flap'; did you mean"),
        (["--distill.model", "resnet21"], "unknown name 'resnet21'; did you mean resnet"),
        (["--optimizer.name", "adamm"], "there is no optimizer 'adamm'; did you mean adam"),
        (["--optimizer.args", "momentun", "0.9"], "takes no 'momentun'"),
        (["--batch-size", "0"], "--batch-size must be at least 1 or auto, got 0"),
        (["--batch-size", "autoo"], "Error parsing --batch-size: must be INT|{auto}, got 'autoo'"),
        (
            ["--batch-size", "65", "--optimizer.accumulate", "2"],
            "--batch-size must be a positive multiple of 2",
        ),
        (["--mesh.data", "64"], "needs 64 devices and there are"),
        (["--data.name", "dogits"], "unknown data set 'dogits': did you mean digits?"),
        (["--data.train-split", "tran"], "no split 'tran'; it has: train, test"),
        (["--data.name", "kmnist"], "pip install 'jaxaccel[tfds-prepare]'"),
        (["--data.name", "queries.csv"], "queries.csv cannot be read: No such file or directory"),
        (
            ["--data.name", str(CLINC), "--data.label", "mood"],
            "its columns are text, label: name one with --data.label",
        ),
        (
            ["--data.name", str(DIGITS), "--data.label", "mood"],
            "its columns are file, text, label, speaker: name one with --data.label",
        ),
        (["--model", "ConvNet(classes=7)"], "gives 7 logits and the data has 10 classes"),
        (["--model", "ConvNet(channels=3)"], "does not take the data's batches of shape"),
        (["--resume"], "nothing to resume in runs/digits"),
        (["--init-from", "nowhere"], "nowhere is no directory of a run"),
        (["--run", "/proc/nowhere"], "cannot write in /proc/nowhere"),
        (["--augment", "pad_and_crop(padding=-1)"], "padding"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(words, says, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", without_tensorflow)
    with pytest.raises(UserError) as error:
        main(words if words[0] in ("digist", "no/such/file.py") else [*SMALL, *words])
    assert says in error.value.as_flags()
    assert "\n" not in str(error.value).strip()
    assert not list(Path().glob("runs/*/checkpoints/*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--task.target", "fr"],
            "the data set has no 'fr', it has de, en: say with --task.target what to take",
        ),
        (["--task.target", "en"], "--task.source and --task.target are both 'en'"),
        (["--task.nbest", "3"], "--task.nbest 3 needs as many hypotheses: --task.beam 3"),
        (
            ["--data.name", "unequal"],
            "train.de has 1 lines and unequal/train.en has 2: lines of the same number",
        ),
        (["--task.max-length", "2"], "all 320 examples of"),
        (
            ["--task.vocabulary", "100"],
            "--task.vocabulary must be at least 260 for bpe, one for each byte, got 100",
        ),
    ],
)
def test_a_mistake_in_a_translation_is_one_line(words, says):
    Path("unequal").mkdir()
    Path("unequal/train.en").write_text("a\nb\n")
    Path("unequal/train.de").write_text("c\n")
    with pytest.raises(UserError) as error:
        main(["multi30k_en_de", "--data.name", str(FIXTURES / "translation"), *words])
    assert says in error.value.as_flags()
    assert "\n" not in str(error.value).strip()


def without_tensorflow(name, *rest):
    import importlib.machinery

    return None if name == "tensorflow" else importlib.machinery.PathFinder.find_spec(name)


def test_a_missing_download_names_what_is_missing(tmp_path):
    (tmp_path / "empty").mkdir()
    words = [
        "--data.name",
        "mnist",
        "--data.dir",
        str(tmp_path / "tfds"),
        "--data.downloads",
        str(tmp_path / "empty"),
    ]
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz.*data.downloads=DIR") as caught:
        main([*SMALL, *words])
    assert caught.value.as_flags().endswith("--data.downloads DIR")


def test_a_corrupt_download_is_named(tmp_path):
    downloads = tmp_path / "downloads"
    shutil.copytree(FIXTURES / "mnist", downloads)  # not the original files: other checksums
    words = ["--data.name", "mnist", "--data.dir", str(tmp_path / "tfds"), "--data.downloads", str(downloads)]
    with pytest.raises(UserError, match="sha256"):
        main([*SMALL, *words])


def test_a_corrupt_record_is_named(tmp_path, monkeypatch):
    from jaxaccel.data.data_sets import open_source

    open_source("digits", "train", directory=tmp_path)
    for record in tmp_path.rglob("*train*array_record*"):
        data = bytearray(record.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
        record.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        main([*SMALL, "--data.dir", str(tmp_path)])


def test_nothing_is_overwritten(tmp_path):
    directory = tmp_path / "mine"
    directory.mkdir()
    (directory / "thesis.txt").write_text("three years of work")
    for words in (["--run", "mine"], ["--run", "mine", "--overwrite"]):
        with pytest.raises(UserError, match="mine"):
            main([*SMALL, *words])
    assert (directory / "thesis.txt").read_text() == "three years of work"


def test_exit_code_and_no_traceback(run_train):
    code, out, err = run_train("digits", "--epocs", "3")
    assert (code, out) == (2, "")
    assert err == "error: unknown argument --epocs; did you mean --epochs? (--help shows all)\n"
    code, _, err = run_train("digits", "--epocs", "3", "--traceback")
    assert code == 2 and "Traceback" in err


def test_not_finite_stops_with_the_state_before_it(run_train, tmp_path):
    code, _, err = run_train(
        *SMALL,
        "--epochs",
        "4",
        "--optimizer.learning-rate",
        "1e30",
        "--optimizer.name",
        "sgd",
        "--optimizer.weight-decay",
        "0",
    )
    assert code == 2
    assert err.startswith("error: loss or gradient is not finite at step") and len(err.splitlines()) == 1
    saved = [int(p.name) for p in (tmp_path / "runs/digits/checkpoints").iterdir() if p.name.isdigit()]
    failed = int(err.split("at step ")[1].split(":")[0])
    assert max(saved) == failed  # the state in which `failed` steps are done is the last good one


@pytest.mark.slow
def test_a_full_disk_says_so(run_train, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    import subprocess

    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs privileges")
    try:
        code, _, err = run_train("digits", "--epochs", "0.2", "--run", small / "run")
        assert code == 2, err
        # TensorStore may print tracebacks of its own callbacks around it, past every hook of Python's.
        (said,) = (line for line in err.splitlines() if line.startswith("error: "))
        assert "disk is full" in said
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_help_and_list(run_train):
    code, out, _ = run_train("--list")
    assert code == 0 and "cifar10_resnet20" in out and "digits" in out
    code, out, _ = run_train("mnist", "--help")
    assert code == 0 and "--optimizer.learning-rate" in out and "Recipe mnist" in out


def test_the_function_and_the_module_share_a_name():
    import jaxaccel as ja

    assert callable(ja.train)
    with pytest.raises(UserError, match="needs 64 devices"):
        import dataclasses

        recipe = ja.load_recipe("digits")
        ja.train(dataclasses.replace(recipe, mesh=ja.distributed.MeshShape(data=64)))
