import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import optax
import pytest
from grids import slow_but

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("an installed package has no benchmarks", allow_module_level=True)
sys.path.append(str(ROOT))

from benchmarks import ahead, pages, records, tables
from benchmarks.command import find_benchmarks, main
from benchmarks.options import Option, choose_batches, read_options, time_by
from benchmarks.peers import serve
from benchmarks.peers.process import Peer, choose_peers
from benchmarks.suite.compiled import find_networks
from jaxaccel.core import kernels

NAMES = list(find_benchmarks())


def run(*words):
    """Runs a benchmark in a process of its own; what it printed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, words)],
        capture_output=True, text=True, timeout=300, cwd=ROOT, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_quick(name, out, *words):
    """The record that a benchmark writes under ``--quick``, and what it printed."""
    printed = run(name, "--quick", *words, "--output", out)
    (file,) = out.glob("*.json")
    record = json.loads(file.read_text())
    keys = {"date", "device_kind", "cpu", "cores", "versions", "load_average"}
    assert record["quick"] and record["benchmark"] == name and keys <= record["machine"].keys()
    assert record["command"].startswith(f"python -m benchmarks {name} --quick")
    return record, printed


def check_times(row):
    assert 0 < row["min_ms"] <= row["median_ms"] <= row["max_ms"]


def test_list_has_a_sentence_for_each(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name, sentence in find_benchmarks().items():
        assert f"  {name} " in printed and sentence in printed
        assert sentence.endswith(".") and sentence.split()[0].endswith("s"), "a sentence with a verb"


@pytest.mark.parametrize("name", slow_but(["train_step", "channels"], NAMES))
def test_help_teaches(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"python -m benchmarks {name}" in printed and find_benchmarks()[name] in printed
    assert "--quick" in printed and "--output" in printed and "--rounds" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian_step"], "there is no benchmark trian_step: did you mean train_step?"),
        (["xyz"], "python -m benchmarks lists them"),
        (["rolled", "--roundz", "3"], "there is no option --roundz: did you mean --rounds?"),
        (["rolled", "--workload", "mnits"], "--workload: 'mnits' is unknown: did you mean 'mnist'?"),
        (["rolled", "--rounds", "0"], "--rounds: '0' is not a whole number of at least 1"),
        (["rolled", "--seconds", "-1"], "--seconds: '-1' is not a number of at least 0"),
        (["train_step", "--peers-python", "/none"], "--peers-python /none does not run"),
    ],
)
def test_mistakes_are_one_line(words, said, capsys):
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and said in printed


def test_all_models_are_networks_for_images_of_their_size():
    networks = {network.name: network for network in find_networks(["all"])}
    assert len(networks) == 27
    for name in ("cifar_fast", "vit_ti16"):  # both ways to be told the size
        program = ahead.infer(networks[name], 2, lambda f, variables, network: (f, variables))
        classes = 10 if name == "cifar_fast" else 1000
        assert jax.eval_shape(program.f, *program.args).shape == (2, classes)


def test_missing_peers_say_what_to_install(capsys):
    peers = [Peer("one", ["json"], "pip install one"), Peer("two", ["no_such_package"], "pip install two")]
    options = read_options("x", "", [Option("without", "", (), several=True)], ["--without", "two"])
    assert choose_peers(peers, options) == {"one"}
    options.without = ()
    with pytest.raises(Exception, match=r"no no_such_package: pip install two .*--without two"):
        choose_peers(peers, options)
    options.without = ["missing"]
    assert choose_peers(peers, options) == {"one"}


def test_variants_of_precision_can_be_chosen(tmp_path):
    words = "--models", "mlp", "--variants", "int8 dynamic", "bfloat16", "--without", "qwix", "torch"
    record, _ = run_quick("precision", tmp_path, *words)
    (cell,) = record["cells"]
    assert [row["name"] for row in cell["variants"]] == ["float32", "bfloat16", "int8 dynamic"]


def test_every_variant_can_be_named():
    from benchmarks.suite.retargeted import QUICK
    from benchmarks.variants import NAMES, make_variants

    made = [variant.name for variant in make_variants(QUICK[1], 8)]
    assert sorted(made) == sorted(["float32", *NAMES])


def test_other_end_answers_between_prints(monkeypatch, capsys):
    def answer(command):
        print("noise")
        return command["count"] + 1

    monkeypatch.setattr(sys, "stdin", io.StringIO('{"count": 1}\n{"count": 2}\n'))
    serve.serve(answer)
    printed = capsys.readouterr()
    assert printed.out == "2\n3\n" and printed.err == "noise\nnoise\n"


def test_quick_changes_defaults_alone():
    declared = [choose_batches(1, 16), *time_by(9, 0.5)]
    assert read_options("x", "", declared, []).batch == (1, 16)
    quick = read_options("x", "", declared, ["--quick", "--rounds", "2"])
    assert (quick.batch, quick.rounds, quick.seconds) == ((4,), 2, 0.0)


def test_cells_of_the_same_machine_stay(tmp_path):
    file = tmp_path / "x.json"
    machine = {"versions": {"jax": "1"}, "cpu": "c", "cores": 2, "device_kind": "cpu"}
    old = [{"batch_size": 1, "ms": 1.0}, {"batch_size": 2, "ms": 2.0}]
    versions = machine["versions"] | {"torch": "2"}
    records.write_record(file, {"machine": machine | {"versions": versions}, "quick": False, "cells": old})
    new = [{"batch_size": 2, "ms": 3.0}]
    assert records.merge_cells(file, machine, new, ["batch_size"], quick=False) == [old[0], *new]
    assert records.merge_cells(file, machine, new, ["batch_size"], quick=True) == new
    other = machine | {"versions": {"jax": "2"}}
    assert records.merge_cells(file, other, new, ["batch_size"], quick=False) == new


def test_rivals_that_are_faster_are_named():
    said = tables.compare_with("X", {"a": 0.5, "b": 2.0, "c": 0.8})
    assert (
        said.startswith("**X is faster in 2 of 3 cells**, at most 2.00 times (a)")
        and "2.00 times as fast (b)" in said
    )
    assert (
        tables.compare_with("X", {"a": 1.5})
        == "X is faster in none of 1 cell; jaxaccel is up to 1.50 times as fast (a)."
    )


def test_columns_of_absent_peers_are_left_out():
    table = tables.Table("t", ["name", "peer", "ms"], [["a", "", "1"], ["b", "", "2"]])
    assert tables.write_markdown(table) == "| name | ms |\n|---|---:|\n| a | 1 |\n| b | 2 |"


def test_pages_are_what_the_records_say():
    stale = [file.name for file in pages.find_stale(pages.render_pages())]
    assert not stale, "python -m benchmarks tables writes them"


def test_every_benchmark_has_a_page():
    assert {name for topic in pages.TOPICS for name in topic.benchmarks} == set(NAMES)


@pytest.mark.slow
def test_train_step(tmp_path):
    words = "--workload", "mlp", "--without", "torch", "--rounds", "3"
    record, printed = run_quick("train_step", tmp_path, *words)
    assert next(tmp_path.glob("*.json")).name.startswith("train_step-mlp-")
    (cell,) = record["cells"]
    assert (cell["workload"], cell["batch_size"]) == ("mlp", 16) and cell["steps_per_call"] >= 1
    assert {row["name"] for row in cell["all"]} >= {"jaxaccel", "nnx.jit", "cached_partial"}
    assert cell["best"].keys() == {"jaxaccel", "nnx"}
    best = cell["best"]["jaxaccel"]
    check_times(best)
    assert best["examples_per_second"] == pytest.approx(16e3 / best["median_ms"])
    nnx = cell["best"]["nnx"]
    assert nnx["min_ms"] / best["max_ms"] <= cell["times_as_fast_as"]["nnx"] <= nnx["max_ms"] / best["min_ms"]
    assert "× NNX" in printed and "× PyTorch" not in printed


@pytest.mark.slow
def test_rolled(tmp_path):
    record, _ = run_quick("rolled", tmp_path, "--workload", "mlp")
    (cell,) = record["cells"]
    unrolled, rolled = cell["all"]
    assert cell["rolled_over_unrolled"] == pytest.approx(rolled["median_ms"] / unrolled["median_ms"])


@pytest.mark.slow
def test_allocator(tmp_path):
    record, _ = run_quick("allocator", tmp_path)
    (cell,) = record["cells"]
    assert cell["all"]["as shipped"][0]["allocator"].startswith("left alone")
    assert len(cell["medians"]) == 3 and cell["times_as_fast"]["as shipped"] == 1


@pytest.mark.slow
def test_models(tmp_path):
    words = "--dtypes", "float32", "--seconds", "0.001"
    record, _ = run_quick("models", tmp_path, *words)
    (cell,) = record["cells"]
    assert (cell["model"], cell["image_size"], cell["parameters"]) == ("resnet20", 8, 269_722)
    assert [program["name"] for program in cell["programs"]] == ["infer float32", "train float32"]
    for program in cell["programs"]:
        assert program["compile_seconds"] > 0
        assert program["images_per_second"] == pytest.approx(2e3 / program["median_ms"])


@pytest.mark.slow
def test_precision(tmp_path):
    words = "--models", "mlp", "resnet20", "--without", "qwix", "torch"
    printed = run("precision", "--quick", *words, "--output", tmp_path)
    files = [next(tmp_path.glob(f"precision-{name}-*.json")) for name in ("mlp", "resnet20")]
    cells = [cell for file in files for cell in json.loads(file.read_text())["cells"]]
    assert [(cell["model"], cell["batch_size"]) for cell in cells] == [("mlp", 2), ("resnet20", 2)]
    for cell in cells:
        rows = {row["name"]: row for row in cell["variants"]}
        assert rows.keys() >= {
            "float32",
            "bfloat16",
            "int8 dynamic",
            "int8 static, folded",
            "int8 weight-only",
        }
        assert cell["failed"] == {} and {row["group"] for row in rows.values()} == {"jaxaccel"}
        reference = rows["float32"]
        assert reference["relative_error"] == 0 and reference["explained_share"] is None
        for row in rows.values():
            check_times(row)
            assert row["ratio"] == pytest.approx(row["median_ms"] / reference["median_ms"])
        # Narrow arithmetic leaves a trace in the numbers; so do weights of one byte in their size.
        assert rows["float32, folded"]["relative_error"] < 1e-5 < 1e-4 < rows["bfloat16"]["relative_error"]
        assert rows["int8 weight-only"]["explained_share"] == 0
        assert rows["int8 dynamic"]["weight_bytes"] < 0.3 * reference["weight_bytes"]
    mlp, resnet = ({row["name"]: row for row in cell["variants"]} for cell in cells)
    assert mlp["int8 dynamic"]["explained_share"] == mlp["bfloat16"]["explained_share"] == pytest.approx(1)
    assert resnet["bfloat16"]["explained_share"] < 0.01, "XLA:CPU has no bfloat16 convolutions"
    assert 0.5 < resnet["int8 dynamic"]["explained_share"] < 1, "narrow stages stay in float32"
    assert "Times as fast as float32" in printed


@pytest.mark.slow
def test_precision_layers(tmp_path):
    words = "--sites", "lstm gate", "depthwise 14", "1-D, 64"
    record, _ = run_quick("precision_layers", tmp_path, *words)
    assert next(tmp_path.glob("*.png")).stat().st_size > 5000
    sites = {entry["site"]: entry for entry in record["cells"]}
    forms = {name: {row["name"] for row in entry["forms"]} for name, entry in sites.items()}
    assert forms == {
        "dot lstm gate": {"float32", "bfloat16", "int8"},
        "conv mobilenet depthwise 14": {"float32", "bfloat16", "int8"},
        "conv 1-D, 64 channels": {"float32", "bfloat16", "int8", "int8 as channels last", "int8 as patches"},
    }
    for entry in sites.values():
        rows = {row["name"]: row for row in entry["forms"]}
        assert all(row["right"] for row in rows.values())
        times = {name: row["median_ms"] for name, row in rows.items() if name != "bfloat16"}
        assert times[entry["fastest"]] == min(times.values())
        cost = times[entry["choice"]] / min(times.values())
        assert entry["choice_over_fastest"] == pytest.approx(cost) and entry["slower"] == (cost > 1.1)
    choices = [entry["choice"] for entry in sites.values()]
    assert choices == ["int8", "float32", "int8 as channels last"], "what is chosen on the CPU"


def test_lowerings(tmp_path):
    record, _ = run_quick("lowerings", tmp_path, "--sites", "pool 2x2")
    cells = record["cells"]
    assert len(cells) == 12 and next(tmp_path.glob("*.png")).exists()
    for cell in cells:
        assert cell["forms"][0]["name"] == "xla" and len(cell["forms"]) > 1
        assert cell["choice"] in [form["name"] for form in cell["forms"]]
        assert all(form["relative_error"] < 1e-5 for form in cell["forms"])


@pytest.mark.skipif(not kernels.is_available(), reason=kernels.why_unavailable() or "-")
def test_kernels(tmp_path):
    record, _ = run_quick("kernels", tmp_path, "--sites", "resnet20 stage 3, stride 2")
    assert len(record["cells"]) == 3
    for cell in record["cells"]:
        assert [row["name"] for row in cell["programs"]][:2] == ["xla", "oneDNN"]
        assert cell["error"] < 1e-3 and min(cell["speed_up"].values()) > 0


@pytest.mark.slow
def test_augment(tmp_path):
    words = "--only", "horizontal_flip", "CIFAR", "--without", "dm_pix", "augmax", "torchvision"
    record, printed = run_quick("augment", tmp_path, *words)
    assert next(tmp_path.glob("*.png")).stat().st_size > 5000
    cells = {cell["augmentation"]: cell for cell in record["cells"]}
    assert cells.keys() == {"horizontal_flip", "CIFAR"}
    for entry in cells.values():
        rows = entry["contenders"]
        assert (entry["size"], entry["batch_size"], entry["rounds"]) == (32, 32, 1)
        for row in rows.values():
            check_times(row)
            assert row["images_per_second"] == pytest.approx(32e3 / row["median_ms"])
        assert {"jaxaccel", "jaxaccel, uint8"} <= rows.keys()
    ratio = cells["CIFAR"]["times_as_fast_as"]["Pillow"]  # of one round, the ratio of the medians
    rows = cells["CIFAR"]["contenders"]
    assert ratio == pytest.approx(rows["Pillow"]["median_ms"] / rows["jaxaccel, uint8"]["median_ms"])
    assert "× Pillow" in printed and "× augmax" not in printed


def test_sparse_variants_can_be_made():
    from benchmarks.suite.sparse_step import make_variants

    made = [variant.name for variant in make_variants(optax.sgd(1e-3), set())]
    assert made == ["plain", "gradual", "straight_through", "rigl", "fixed"]


@pytest.mark.slow
def test_sparse_step(tmp_path):
    record, _ = run_quick("sparse_step", tmp_path, "--without", "jaxpruner")
    (cell,) = record["cells"]
    rows = cell["variants"]
    assert {"plain", "gradual", "straight_through", "rigl", "fixed"} == rows.keys()
    for name, row in rows.items():
        assert ("step_changing" in row) == (name not in ("plain", "fixed"))
        check_times(row["step"])
        # Of one round, the ratio of the medians.
        ratio = row["update"]["median_ms"] / rows["plain"]["update"]["median_ms"]
        assert row["update"]["over_plain"] == pytest.approx(ratio)
    assert rows["plain"]["sparsity"] == 0
    done = 3000 / 7500
    assert rows["gradual"]["sparsity"] == pytest.approx(0.8 * (1 - (1 - done) ** 3), abs=0.01)
    for name in ("straight_through", "rigl", "fixed"):
        assert rows[name]["sparsity"] == pytest.approx(0.8, abs=0.02)


@pytest.mark.slow
def test_channels(tmp_path):
    record, _ = run_quick("channels", tmp_path, "--without", "torch-pruning")
    (cell,) = record["cells"]
    whole, left = cell["results"]["JAX"], cell["results"]["jaxaccel"]
    assert 0.3 < left["multiply_adds"] / whole["multiply_adds"] <= 0.5
    assert left["parameters"] < whole["parameters"] and left["error"] < 1e-5
    times = cell["latency"]["2"]
    ratio = times["JAX"]["median_ms"] / times["jaxaccel"]["median_ms"]
    assert times["jaxaccel"]["times_as_fast"] == pytest.approx(ratio)


@pytest.mark.slow
def test_freezing(tmp_path):
    record, _ = run_quick("freezing", tmp_path)
    (cell,) = record["cells"]
    rows = {(row["frozen"], row["way"], row["step"]): row for row in cell["variants"]}
    assert len(rows) == 6
    parameters, head = 4 * 886, 4 * (8 * 10 + 10)  # bytes of their momentum
    for step in ("trainer's", "bare"):
        assert rows["nothing", "-", step]["over_nothing"] == 1
        assert parameters <= rows["nothing", "-", step]["optimizer_bytes"] <= parameters + 64
        for way in ("freeze", "multi_transform"):
            assert head <= rows["all but the head", way, step]["optimizer_bytes"] <= head + 64
        freeze, whole = rows["all but the head", "freeze", step], rows["nothing", "-", step]
        assert freeze["peak_bytes"] < whole["peak_bytes"]


@pytest.mark.slow
def test_retargeted(tmp_path):
    record, _ = run_quick("retargeted", tmp_path)
    assert [cell["network"] for cell in record["cells"]] == ["encoder", "small"]
    for cell in record["cells"]:
        xla, retargeted = cell["steps"]["XLA"], cell["steps"]["retargeted"]
        assert cell["times_as_fast"] == pytest.approx(xla["median_ms"] / retargeted["median_ms"])
        assert cell["losses"]["retargeted"] == pytest.approx(cell["losses"]["XLA"], rel=1e-3)


@pytest.mark.slow
def test_replicas(tmp_path):
    record, _ = run_quick("replicas", tmp_path, "--recipes", "digits")
    (cell,) = record["cells"]
    rows = {row["name"]: row for row in cell["variants"]}
    assert {"one after another", "unrolled", "vmap"} <= rows.keys()
    assert rows["one after another"]["times_as_fast"] == 1


def test_epochs_of_texts_are_filled_up_to_their_buckets():
    from benchmarks.texts import QUESTIONS_BY_LENGTH, draw_epoch, draw_lengths

    assert sum(QUESTIONS_BY_LENGTH) == 5452
    lengths = draw_lengths(400)
    assert lengths.max() == 50 and lengths.min() >= 5 and 13 <= lengths.mean() < 15
    whole, buckets = draw_epoch(400, 8, [52]), draw_epoch(400, 8, [12, 20, 52])
    assert len(whole) == 50 and 48 <= len(buckets) <= 50, "the last batch of a bucket is left out"
    for batch in buckets:
        (bound,) = {b for b in (12, 20, 52) if b == batch.token.shape[1]}
        assert ((batch.token != 0).sum(1) == batch.length).all() and batch.length.max() <= bound
        assert batch.length.min() > {12: 0, 20: 12, 52: 20}[bound]


@pytest.mark.slow
def test_text(tmp_path):
    printed = run("text", "--quick", "--without", "torch", "--models", "bilstm", "--output", tmp_path)
    cells = [json.loads(file.read_text())["cells"] for file in sorted(tmp_path.glob("text-*.json"))]
    (depth,), (epoch,), (length,) = cells
    assert [cell["table"] for cell in (depth, epoch, length)] == ["depths", "epochs", "lengths"]
    for cell in (depth, length):
        for what in ("train", "infer"):
            check_times(cell["programs"][what]["times"]["jaxaccel"])
    rows = epoch["contenders"]
    assert rows["jaxaccel, buckets"]["padding"] < rows["jaxaccel, longest"]["padding"] < 1
    for row in rows.values():
        check_times(row)
        assert row["texts_per_second"] == pytest.approx(1e3 * 4 * row["batches"] / row["median_ms"])
    assert "by depth, 32 tokens" in printed and "TREC" in printed and "× PyTorch" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("model", ["text_cnn", "text_encoder_ti", "bilstm"])
def test_text_computes_what_pytorch_does(model, tmp_path):
    pytest.importorskip("torch")
    record, printed = run_quick("text", tmp_path, "--tables", "lengths", "--models", model)
    (cell,) = record["cells"]  # the benchmark ends where loss or gradient differ
    for what in ("train", "infer"):
        found = cell["programs"][what]
        ratio = found["times"]["eager"]["median_ms"] / found["times"]["jaxaccel"]["median_ms"]
        assert found["times_as_fast_as"]["eager"] == pytest.approx(ratio)
    assert "× PyTorch" in printed


def test_sounds_have_room_for_their_transcripts():
    from benchmarks.sounds import RATE, SUBSAMPLING, draw_sounds
    from jaxaccel.tasks.ctc import count_least_outputs

    sounds = draw_sounds(4, 16)
    assert sounds.audio.shape == (16, 4 * RATE) and sounds.samples[0] == 4 * RATE
    assert (sounds.samples > 2 * RATE).all() and (sounds.samples <= 4 * RATE).all()
    assert ((sounds.label > 0).sum(1) == sounds.labels).all() and sounds.labels[0] == 4 * 12
    for samples, label, labels in zip(sounds.samples, sounds.label, sounds.labels, strict=True):
        outputs = samples / RATE * 100 / max(SUBSAMPLING.values())
        assert count_least_outputs(label[:labels].tolist()) <= outputs


def test_chunks_are_whole_outputs(capsys):
    assert main(["speech", "--chunks", "150"]) == 2
    assert "--chunks: '150' is no multiple of the 20 ms of an output" in capsys.readouterr().err


@pytest.mark.parametrize(("theirs", "says"), [(1.0001, None), (1.001, "the loss: .* differ by 0.001")])
def test_what_pytorch_computes_differs_by_little(theirs, says):
    import numpy as np

    from benchmarks.beside_torch import check_equal
    from benchmarks.options import Mistake

    if says is None:
        check_equal("the loss", np.float64(theirs), np.float64(1.00005))
        return
    with pytest.raises(Mistake, match=says):
        check_equal("the loss", np.float64(theirs), np.float64(1.0))
    check_equal("the loss", np.float64(theirs), np.float64(1.0), most=2e-3)


@pytest.mark.slow
def test_speech(tmp_path):
    printed = run("speech", "--quick", "--without", "torch", "--models", "lstm_ctc", "--output", tmp_path)
    cells = [json.loads(file.read_text())["cells"] for file in sorted(tmp_path.glob("speech-*.json"))]
    (depth,), (length,), (stream,) = cells
    assert [cell["table"] for cell in (depth, length, stream)] == ["depths", "lengths", "streams"]
    for cell in (depth, length):
        for what in ("train", "infer"):
            check_times(cell["programs"][what]["times"]["jaxaccel"])
    found = stream["programs"]["stream"]
    check_times(found["times"]["jaxaccel"])
    factor = found["times"]["jaxaccel"]["median_ms"] / 160
    assert found["real_time_factors"] == {"jaxaccel": pytest.approx(factor)}
    assert "by depth, 1 s" in printed and "jaxaccel real-time factor" in printed
    assert "× PyTorch" not in printed and "PyTorch real-time factor" not in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("lengths", "lstm_ctc"), ("lengths", "conformer_ctc"), ("streams", "lstm_ctc")]
)
def test_speech_computes_what_pytorch_does(words, tmp_path):
    pytest.importorskip("torch")
    record, printed = run_quick("speech", tmp_path, "--tables", words[0], "--models", words[1])
    (cell,) = record["cells"]  # the benchmark ends where losses, gradients or logits differ
    for found in cell["programs"].values():
        ratio = found["times"]["eager"]["median_ms"] / found["times"]["jaxaccel"]["median_ms"]
        assert found["times_as_fast_as"]["eager"] == pytest.approx(ratio)
    assert "× PyTorch" in printed


def test_sentences_end_where_their_length_says():
    from benchmarks.sentences import BEGIN, END, PAD, draw_pairs

    pairs = draw_pairs(32, 64)
    for tokens, lengths in ((pairs.source, pairs.source_length), (pairs.target, pairs.target_length)):
        assert tokens.shape == (64, 32) and lengths.min() > 24 and lengths.max() <= 32
        assert ((tokens != PAD).sum(1) == lengths).all() and (tokens != BEGIN).all()
        assert (tokens[range(64), lengths - 1] == END).all() and (tokens == END).sum() == 64
    assert (draw_pairs(32, 64).target == pairs.target).all(), "both processes draw the same"
    assert (pairs.source != pairs.target).any()


@pytest.mark.slow
def test_translation(tmp_path):
    printed = run("translation", "--quick", "--without", "torch", "--output", tmp_path)
    cells = [json.loads(file.read_text())["cells"] for file in sorted(tmp_path.glob("translation-*.json"))]
    (decoding,), (depth,), (length,) = cells
    assert [cell["table"] for cell in (decoding, depth, length)] == ["decoding", "depths", "lengths"]
    for cell in (depth, length):
        assert cell["batch_size"] * cell["length"] == 32
        check_times(cell["programs"]["train"]["times"]["jaxaccel"])
    for what in ("greedy", "beam"):
        found = decoding["programs"][what]
        assert list(found["times"]) == ["float32", "bfloat16", "int8", "int8, weights only"]
        for row in found["times"].values():
            check_times(row)
            tokens = decoding["batch_size"] * decoding["length"]
            assert row["tokens_per_second"] == pytest.approx(1e3 * tokens / row["median_ms"])
        ratio = found["times"]["int8"]["median_ms"] / found["times"]["float32"]["median_ms"]
        assert found["times_as_fast_as"]["int8"] == pytest.approx(ratio)
    assert "decoded with a beam of 2" in printed and "PyTorch" not in printed


@pytest.mark.slow
def test_decoding_writes_all_tokens_in_every_precision():
    import numpy as np

    from benchmarks.sentences import Sizes, draw_pairs
    from benchmarks.translation_programs import PRECISIONS, Decoder

    ours = Decoder(Sizes(depth=1, width=16, heads=2, hidden=16), draw_pairs(8, 4), 2)
    found = {name: ours.make_decoding("greedy", name)() for name in PRECISIONS}
    tokens, scores = found["float32"]
    assert tokens.shape == (4, 8) and (np.asarray(tokens) >= 0).all() and (np.asarray(scores) < 0).all()
    for name, (_, others) in found.items():
        np.testing.assert_allclose(others, scores, rtol=0.02, err_msg=name)
    best, most = ours.make_decoding("beam", "float32")()
    assert best.shape == tokens.shape and np.isfinite(most).all()


@pytest.mark.slow
@pytest.mark.parametrize("table", ["lengths", "decoding"])
def test_translation_computes_what_pytorch_does(table, tmp_path):
    pytest.importorskip("torch")
    record, printed = run_quick("translation", tmp_path, "--tables", table)
    (cell,) = record["cells"]  # the benchmark ends where losses, gradients or tokens differ
    for found in cell["programs"].values():
        rivals = found["times_as_fast_as"].keys() & {"eager", "cached", "whole"}
        assert rivals == ({"eager"} if table == "lengths" else {"cached", "whole"})
    assert "× PyTorch" in printed
