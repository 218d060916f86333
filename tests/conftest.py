"""One data directory and one compile cache for all tests, so that digits is prepared and steps compile once."""

import collections
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"
"""Small real files, which `README.md` there describes."""
PLATFORM = os.environ.get("JAXACCEL_TEST_PLATFORM", "cpu")
"""Where JAX computes: ``cuda`` is for `tests/gpu`, the tests that `benchmarks/gpu.sh` runs on an attached GPU."""
QUICKLY = "--xla_backend_optimization_level=0" if PLATFORM == "cpu" else os.environ.get("XLA_FLAGS", "")
"""XLA compiles with less of LLVM: most of what whole commands take here is compiling."""


sys.modules.setdefault("openvino_telemetry", None)  # OpenVINO's import would report over the network


def pytest_configure(config):
    base = Path(
        os.environ.get("JAXACCEL_TEST_HOME") or Path(os.environ.get("TMPDIR", "/tmp")) / "jaxaccel-tests"
    )
    os.environ["JAXACCEL_TEST_HOME"] = str(base)
    os.environ["JAXACCEL_CACHE"] = str(base / "xla")
    os.environ["TFDS_DATA_DIR"] = str(base / "tfds")
    os.environ["XDG_CONFIG_HOME"] = str(base / "config")
    os.environ["JAX_PLATFORMS"] = PLATFORM
    os.environ["XLA_FLAGS"] = QUICKLY
    os.environ.setdefault("JAXACCEL_ONEDNN", "0")  # tests see the same forms, whatever is installed


def pytest_make_parametrize_id(val):
    """The content of a file is no name of a test: packed bytes may hold the time, and workers must agree on names."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


EVERY_NTH = {
    "core/interpret/test_contract.py": 20,
    "core/interpret/test_hoist_products.py": 24,
    "core/interpret/test_identity.py": 48,
    "core/interpret/test_silence.py": 6,
    "data/augment/test_chain.py": 16,
    "data/augment/test_every.py": 24,
    "data/augment/test_geometry.py": 6,
    "data/augment/test_x64.py": 12,
    "data/test_images.py": 4,
    "deployment/serving/test_serve.py": 6,
    "deployment/test_trained.py": 6,
    "end_to_end/test_cli.py": 6,
    "gpu/test_gpu_gradients.py": 24,
    "gpu/test_gpu_values.py": 24,
    "models/audio/test_audio_models.py": 12,
    "models/audio/test_audio_padding.py": 12,
    "models/pretrained/test_cifar.py": 12,
    "models/test_bound.py": 3,
    "models/test_layers.py": 8,
    "models/text/test_bert_weights.py": 8,
    "models/text/test_text_models.py": 12,
    "models/text/test_text_padding.py": 12,
    "models/text/test_writing_models.py": 5,
    "models/test_models.py": 12,
    "models/test_scan.py": 8,
    "models/test_training.py": 12,
    "optim/test_every_optimizer.py": 4,
    "optim/test_freeze.py": 4,
    "optim/test_sparse.py": 6,
    "tasks/decoding/test_token_by_token.py": 6,
    "tasks/test_tasks.py": 10,
    "training/test_recipes.py": 8,
    "training/test_run_directory.py": 4,
    "training/test_step.py": 10,
    "training/test_warm_start.py": 4,
    "transforms/lowering/test_forms.py": 32,
    "transforms/lowering/test_gpu_forms.py": 16,
    "transforms/params/test_channel_axes.py": 32,
    "transforms/params/test_channels.py": 32,
    "transforms/params/test_choices.py": 6,
    "transforms/params/test_low_rank.py": 12,
    "transforms/params/test_prune.py": 12,
    "transforms/params/test_share.py": 12,
    "transforms/params/test_stacks.py": 8,
    "transforms/test_arrays.py": 20,
    "transforms/test_calibrate.py": 6,
    "transforms/test_distill.py": 6,
    "transforms/test_fake_int8.py": 16,
    "transforms/test_fold.py": 40,
    "transforms/test_hints.py": 12,
    "transforms/test_input_statistics.py": 4,
    "transforms/test_int8.py": 16,
    "transforms/test_int8_exact.py": 10,
    "transforms/test_int8_products.py": 24,
    "transforms/test_keywords.py": 8,
    "transforms/test_precision.py": 20,
    "transforms/test_quantize.py": 6,
    "transforms/test_retarget.py": 4,
    "transforms/test_stacked.py": 8,
    "transforms/test_strict_promotion.py": 12,
}
"""Files whose tests have many cases: the everyday run takes the first of each test and every n-th after it, the
others are slow."""
OTHERWISE = 32
"""The same of the heavy files that are not among them."""


LONG = frozenset((Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").splitlines())
"""Tests that take long beside quicker ones of the same: they are slow."""
HEAVY = {
    "advisor/test_doctor.py",
    "compression/test_compress.py",
    "compression/test_pipeline_directory.py",
    "compression/test_training_steps.py",
    "core/formats/test_hostile_files.py",
    "core/interpret/test_contract.py",
    "core/interpret/test_derivatives.py",
    "core/interpret/test_hoist_products.py",
    "core/interpret/test_identity.py",
    "core/interpret/test_silence.py",
    "data/augment/test_chain.py",
    "data/augment/test_color.py",
    "data/augment/test_crop.py",
    "data/augment/test_elastic.py",
    "data/augment/test_every.py",
    "data/augment/test_geometry.py",
    "data/augment/test_policies.py",
    "data/augment/test_sound.py",
    "deployment/serving/test_serve.py",
    "deployment/serving/test_tritonclient.py",
    "deployment/test_evaluate.py",
    "deployment/test_predict.py",
    "deployment/test_predict_sounds.py",
    "deployment/test_stream.py",
    "deployment/test_trained.py",
    "distributed/test_coverage.py",
    "distributed/test_mesh.py",
    "docs/test_benchmarks.py",
    "docs/test_extend.py",
    "docs/test_notebooks.py",
    "docs/test_readme.py",
    "end_to_end/test_cli.py",
    "end_to_end/test_distributed.py",
    "end_to_end/test_resume.py",
    "models/audio/test_audio_models.py",
    "models/audio/test_audio_padding.py",
    "models/audio/test_silero_vad.py",
    "models/pretrained/test_cifar.py",
    "models/pretrained/test_load.py",
    "models/test_bound.py",
    "models/test_layers.py",
    "models/text/test_bert_weights.py",
    "models/text/test_text_models.py",
    "models/text/test_text_padding.py",
    "models/text/test_writing_models.py",
    "models/test_models.py",
    "models/test_modules.py",
    "models/test_packed.py",
    "models/test_recurrent.py",
    "models/test_scan.py",
    "models/test_training.py",
    "optim/test_averaging.py",
    "optim/test_every_optimizer.py",
    "optim/test_freeze.py",
    "optim/test_sparse.py",
    "tasks/decoding/test_ctc_decoding.py",
    "tasks/decoding/test_token_by_token.py",
    "tasks/test_class_weights.py",
    "tasks/test_ctc.py",
    "tasks/test_tasks.py",
    "tasks/test_log_mel.py",
    "tasks/test_sound_tasks.py",
    "tasks/test_language_modeling.py",
    "tasks/test_text_classification.py",
    "tasks/test_translation.py",
    "test_floors.py",
    "test_package.py",
    "training/test_batch_size.py",
    "training/test_feed.py",
    "training/test_lengths.py",
    "training/test_older_versions.py",
    "training/test_recipes.py",
    "training/test_replicas.py",
    "training/test_run_directory.py",
    "training/test_run_plan.py",
    "training/test_step.py",
    "training/test_teacher.py",
    "training/test_validation.py",
    "training/test_warm_start.py",
    "transforms/lowering/test_forms.py",
    "transforms/params/test_channel_axes.py",
    "transforms/params/test_channels.py",
    "transforms/params/test_choices.py",
    "transforms/params/test_low_rank.py",
    "transforms/params/test_prune.py",
    "transforms/params/test_save.py",
    "transforms/params/test_share.py",
    "transforms/params/test_stacks.py",
    "transforms/test_arrays.py",
    "transforms/test_calibrate.py",
    "transforms/test_distill.py",
    "transforms/test_explanation.py",
    "transforms/test_fake_int8.py",
    "transforms/test_fold.py",
    "transforms/test_hints.py",
    "transforms/test_input_statistics.py",
    "transforms/test_int8.py",
    "transforms/test_int8_exact.py",
    "transforms/test_int8_products.py",
    "transforms/test_keywords.py",
    "transforms/test_loss_scale.py",
    "transforms/test_precision.py",
    "transforms/test_quantize.py",
    "transforms/test_retarget.py",
    "transforms/test_sharded.py",
    "transforms/test_stacked.py",
    "transforms/test_strict_promotion.py",
}
"""Files whose tests take about half a second each or more, most of it compiling: `-m fast` leaves them out."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    seen = collections.Counter()
    for item in items:
        name = item.path.relative_to(here).as_posix() if item.path.is_relative_to(here) else ""
        if nth := EVERY_NTH.get(name, OTHERWISE if name in HEAVY else 0):
            test = name, getattr(item, "originalname", item.name)
            if seen[test] % nth:
                item.add_marker(pytest.mark.slow)
            seen[test] += 1
        if item.nodeid.removeprefix("tests/") in LONG:
            item.add_marker(pytest.mark.slow)
        if name not in HEAVY and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.fast)
    if not os.environ.get("JAXACCEL_DATA_DIR"):
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason="JAXACCEL_DATA_DIR names no directory of data sets"))


@pytest.fixture(autouse=True)
def logged(monkeypatch):
    """`caplog` sees what the package logs, also after a test that trained in this process."""
    monkeypatch.setattr(logging.getLogger("jaxaccel"), "propagate", True)


@pytest.fixture
def run_train(tmp_path):
    """Runs `python -m jaxaccel.train WORDS` in `tmp_path`: (exit code, standard output, standard error)."""

    def run(*words, devices=1, env=None, wait=True, module="jaxaccel.train"):
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, words)],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | forced(devices) | (env or {}),
        )  # fmt: skip
        if not wait:
            return process
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return run


@pytest.fixture(scope="session")
def told(tmp_path_factory):
    """What a program prints, as JSON on its last line, on eight devices; it runs once for all workers."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root

    def tell(program, seconds=400):
        answer, lock = root / f"{program.stem}.json", root / f"{program.stem}.lock"
        try:
            lock.touch(exist_ok=False)
        except FileExistsError:  # another worker runs it
            until = time.monotonic() + seconds
            while not answer.exists() and time.monotonic() < until:
                time.sleep(0.2)
        else:
            done = subprocess.run(
                [sys.executable, str(program)], capture_output=True, text=True, timeout=seconds,
                env=os.environ | forced(8), check=False,
            )  # fmt: skip
            draft = answer.with_suffix(".draft")
            draft.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
            draft.rename(answer)
        code, out, error = json.loads(answer.read_text())
        assert code == 0, error[-3000:]
        return json.loads(out.splitlines()[-1])

    return tell


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A small run of digits with two checkpoints, trained once: do not write into it."""
    import dataclasses
    from functools import partial

    import jaxaccel as ja
    from jaxaccel import models

    recipe = dataclasses.replace(
        ja.load_recipe("digits"),
        name="small",
        model=partial(models.ConvNet, widths=(8, 16)),
        epochs=3,
        eval_every=1,
    )
    return ja.train(recipe, run=tmp_path_factory.mktemp("digits") / "small")


def forced(devices):
    """Environment of a process with that many CPU devices."""
    count = f" --xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    return {"XLA_FLAGS": QUICKLY + count}
