"""Executes the notebooks of colab/ as a person would: run all, lose the machine, run all again."""

import base64
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
from conftest import FIXTURES, QUICKLY
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
KERNEL = "jaxaccel-tests"
CELL_SECONDS = 300

# Without JAXACCEL_DATA_DIR the digits, which come with the package, take the place of Fashion-MNIST.
DATA_DIR = os.environ.get("JAXACCEL_DATA_DIR")
SETTINGS = {"DIGITS_EPOCHS": 12, "EPOCHS": 5} | (
    {"TRAIN_SPLIT": "train[:5%]", "DOWNLOADS": DATA_DIR} if DATA_DIR else {"DATASET": "digits"}
)


def kernel(folder, monkeypatch, settings):
    """A Jupyter kernel of the running interpreter that writes to `folder` and where all tests write."""
    home = folder / "home"
    home.mkdir()
    environment = {
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICKLY,
        "JAXACCEL_NOTEBOOK": json.dumps(settings),
    }
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": KERNEL, "language": "python", "env": environment}
    (folder / "kernels" / KERNEL).mkdir(parents=True)
    (folder / "kernels" / KERNEL / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))


def client(path, folder, **hooks):
    resources = {"metadata": {"path": str(folder)}}
    notebook = nbformat.read(path, as_version=4)
    return NotebookClient(notebook, kernel_name=KERNEL, timeout=CELL_SECONDS, resources=resources, **hooks)


def checkpoints(run):
    return sorted(int(p.name) for p in run.glob("checkpoints/*") if p.name.isdigit())


def said(notebook, cell):
    """The text that a cell printed, and its pictures."""
    outputs = next(c.outputs for c in notebook.cells if c.id == cell)
    text = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    return "\n".join(text), [base64.b64decode(picture) for picture in pictures]


def kept(notebook, name):
    """Writes the executed notebook to a folder, to look at what was drawn, where one is asked for."""
    if keep := os.environ.get("JAXACCEL_KEEP_NOTEBOOK"):
        nbformat.write(notebook, Path(keep) / name)


@pytest.mark.slow
def test_quickstart_survives_a_disconnect(tmp_path, monkeypatch):
    kernel(tmp_path, monkeypatch, SETTINGS)
    runs = tmp_path / "jaxaccel-runs"
    name = SETTINGS.get("DATASET", "fashion_mnist")
    first, second = runs / "digits-12-epochs", runs / f"{name}-5-epochs"

    # ---- run all; the machine goes away in the midst of the second training -----------------------------
    cut = client(ROOT / "colab" / "quickstart.ipynb", tmp_path)

    def pull_the_plug():
        while not checkpoints(second) and not (second / "result.json").exists():
            time.sleep(0.02)
        os.kill(cut.km.provisioner.pid, signal.SIGKILL)

    threading.Thread(target=pull_the_plug, daemon=True).start()
    with pytest.raises(DeadKernelError):
        cut.execute()
    assert not (second / "result.json").exists()
    before = json.loads((first / "result.json").read_text())
    assert before["finished"] and before["eval"]["accuracy"] > 0.9
    saved = checkpoints(second)

    # ---- run all again ------------------------------------------------------------------------------------
    done = client(ROOT / "colab" / "quickstart.ipynb", tmp_path).execute()
    kept(done, "quickstart.ipynb")
    assert "installed already" in said(done, "install")[0]
    assert "CPU" in said(done, "device")[0]
    assert "training digits" not in said(done, "digits")[0]
    assert "evaluation:" not in said(done, "digits")[0]
    resumed = re.search(r"resuming fashion_mnist at step (\d+):", said(done, "train")[0])
    after = json.loads((second / "result.json").read_text())
    assert resumed and saved[0] <= int(resumed[1]) < after["steps"]
    assert after["finished"] and after["eval"]["accuracy"] > 0.7

    # ---- what the person sees -------------------------------------------------------------------------------
    drawn = {cell: len(said(done, cell)[1]) for cell in ("digits-curves", "data", "train", "predictions")}
    assert drawn == {"digits-curves": 1, "data": 1, "train": 1, "predictions": 2}
    for cell in drawn:
        assert all(picture.startswith(b"\x89PNG") and len(picture) > 5000 for picture in said(done, cell)[1])
    wrong = int(re.search(r"(\d+) of the first (\d+) test pictures", said(done, "predictions")[0])[1])
    assert wrong > 0
    table = next(c.outputs for c in done.cells if c.id == "results")[0].data["text/markdown"]
    assert f"{after['eval']['accuracy']:.4f}" in table and "training examples a second" in table
    assert str(after["steps"]) in said(done, "saved")[0]
    guesses = re.findall(r": (\w+), [\d.]+", said(done, "text-predict")[0])
    assert guesses == ["lights", "alarm", "music"]
    receipts = next(c.outputs for c in done.cells if c.id == "text-int8")[-1].data["text/markdown"]
    packed = [float(line.split("|")[3]) for line in receipts.splitlines()[2:]]
    assert packed[-1] < packed[0] / 3

    assert (
        json.loads((first / "result.json").read_text()) == before
    )  # resuming a finished run changes nothing


@pytest.mark.slow
def test_speech_is_heard_and_streamed(tmp_path, monkeypatch):
    data = (
        {"DOWNLOADS": str(Path(DATA_DIR) / "spoken_digit"), "TRAIN_SPLIT": "train[:5%]"}
        if DATA_DIR
        else {"DATASET": str(FIXTURES / "spoken_digits")}
    )
    kernel(tmp_path, monkeypatch, data | {"EPOCHS": 2, "STREAM_EPOCHS": 1})
    done = client(ROOT / "colab" / "speech.ipynb", tmp_path).execute()
    kept(done, "speech.ipynb")
    for cell in ("features", "train", "alignment"):
        assert [
            picture.startswith(b"\x89PNG") and len(picture) > 5000 for picture in said(done, cell)[1]
        ] == [True]
    assert any("text/html" in o.get("data", {}) for c in done.cells if c.id == "listen" for o in c.outputs)
    table = next(c.outputs for c in done.cells if c.id == "heard")[0].data["text/markdown"]
    assert table.count("\n") >= 3 and any(
        word in table for word in ("zero", "one", "two", "three", "four", "five")
    )
    streamed = said(done, "stream")[0]
    assert re.search(r"^ +0\.25 s", streamed, re.M) and "s of computing for a second" in streamed
    receipts = next(c.outputs for c in done.cells if c.id == "int8")[-1].data["text/markdown"]
    packed = [float(line.split("|")[3].replace(",", "")) for line in receipts.splitlines()[2:]]
    assert packed[-1] < packed[0] / 3


@pytest.mark.slow
def test_texts_are_translated_and_attention_is_drawn(tmp_path, monkeypatch):
    settings = {
        "DATASET": str(FIXTURES / "translation"),
        "EPOCHS": 4,
        "SIZE": {"depth": 1, "width": 32, "hidden": 64, "dropout": 0.0},
    }
    kernel(tmp_path, monkeypatch, settings)
    done = client(ROOT / "colab" / "translation.ipynb", tmp_path).execute()
    kept(done, "translation.ipynb")
    for cell in ("train", "attention"):
        assert [
            picture.startswith(b"\x89PNG") and len(picture) > 5000 for picture in said(done, cell)[1]
        ] == [True]
    (table,) = (c.outputs[0].data["text/markdown"] for c in done.cells if c.id == "translate")
    assert table.count("<br>") == 5 * 2 * 2  # three translations of each of five sentences, and their scores
    receipts = next(c.outputs for c in done.cells if c.id == "int8")[-1].data["text/markdown"]
    packed = [float(line.split("|")[3].replace(",", "")) for line in receipts.splitlines()[2:]]
    assert packed[-1] < packed[0] / 2


@pytest.mark.slow
def test_compress_goes_from_a_run_to_an_int8_model(tmp_path, monkeypatch):
    kernel(tmp_path, monkeypatch, {"EPOCHS": 5, "TUNING": 1.0})
    done = client(ROOT / "colab" / "compress.ipynb", tmp_path).execute()
    kept(done, "compress.ipynb")
    table = next(c.outputs for c in done.cells if c.id == "pieces")[0].data["text/markdown"]
    packed = {
        row[0].strip(): float(row[2].replace(",", ""))
        for row in (line.strip("|").split("|") for line in table.splitlines()[2:])
    }
    assert (
        packed["int8"] < packed["as trained"] / 3 and packed["16 values a layer"] < packed["as trained"] / 6
    )
    assert {cell: len(said(done, cell)[1]) for cell in ("pruning", "pipeline", "own")} == {
        "pruning": 1,
        "pipeline": 1,
        "own": 1,
    }
    assert re.search(r"\d+ -> \d+", said(done, "channels")[0])
    right = float(re.search(r"([\d.]+) of the first", said(done, "result")[0])[1])
    receipts = json.loads((tmp_path / "jaxaccel-runs" / "digits-thin" / "receipts.json").read_text())[
        "receipts"
    ]
    assert receipts[-1]["scores"]["accuracy"] == pytest.approx(
        right, abs=1e-4
    )  # 450 test pictures, all shown
    assert right > 0.9 and receipts[-1]["flops"] < 0.51 * receipts[0]["flops"]


@pytest.mark.slow
def test_deploy_goes_from_a_run_to_a_request(tmp_path, monkeypatch):
    kernel(tmp_path, monkeypatch, {"EPOCHS": 5})
    done = client(ROOT / "colab" / "deploy.ipynb", tmp_path).execute()
    kept(done, "deploy.ipynb")
    assert "model.onnx" in said(done, "export")[0]
    assert {cell: len(said(done, cell)[1]) for cell in ("predict", "engines")} == {"predict": 1, "engines": 1}
    assert float(re.search(r"difference of the logits (\S+)", said(done, "predict")[0])[1]) < 1e-3
    assert "as it was signed" in said(done, "sign")[0] and "README.md was changed" in said(done, "sign")[0]
    answered = re.search(r"answered \[(.*?)\]", said(done, "serve")[0])[1].split()
    assert len(answered) == 4 and {*answered} <= {*"0123456789"}
    assert "ended with 0" in said(done, "serve")[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"clear the outputs of {cell.id}"
