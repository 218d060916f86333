"""Bundles: what a run predicts, they predict, without its source; what was changed in them is refused."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export as jax_export

import jaxaccel as ja
from jaxaccel.core.platform import get_platform, trace_for
from jaxaccel.deployment import batches, programs
from jaxaccel.deployment.bundle import open_bundle
from jaxaccel.deployment.manifest import read_manifest
from jaxaccel.deployment.model_function import make_function
from jaxaccel.deployment.programs import ProgramSpec, list_specs, make_program, measure_difference
from jaxaccel.errors import UserError
from jaxaccel.tasks import TextClassification


@pytest.fixture(scope="module")
def bundle(digits_run, tmp_path_factory):
    """The digits run as a bundle: do not write into it."""
    place = tmp_path_factory.mktemp("bundles") / "digits"
    return ja.export(digits_run.directory, place, batch=(1, 4), to=("bundle", "stablehlo"), timed=False)


@pytest.fixture(scope="module")
def images(digits_run):
    source = ja.load(digits_run.directory).source()
    return np.stack([example["image"] for example in source.__getitems__(range(11))])


@pytest.fixture
def copied(bundle, tmp_path):
    return Path(shutil.copytree(bundle.place, tmp_path / "digits"))


def packages(folder, *names):
    """A directory in which Python finds these packages of this environment, and no others."""
    site = Path(sysconfig.get_paths()["purelib"])
    for name in names:
        for found in (site / name, site / f"{name}.libs", site / f"{name}.py"):
            if found.exists():
                (folder / found.name).symlink_to(found)
    return folder


# ---- the same predictions ---------------------------------------------------------------------------------------


def test_a_bundle_predicts_what_the_run_predicts(digits_run, bundle, images):
    run, deployed = ja.load(digits_run.directory), ja.load(bundle.place)
    np.testing.assert_allclose(deployed.predict(images), run.predict(images), atol=1e-5)
    assert deployed.predict(images[0]).shape == (10,)
    assert [x.name for x in deployed.classify(images[3])] == [x.name for x in run.classify(images[3])]
    assert deployed.class_names == run.class_names


@pytest.mark.parametrize("sizes", [(), (1,), (3, 8), (64,)])
def test_any_number_of_examples_in_batches_of_any_size(bundle, images, sizes):
    engine = bundle.engine("xla", sizes)
    assert list(engine.batches) == (list(sizes) or [1, 4])
    expected = bundle.engine().run({"image": images})["logits"]
    np.testing.assert_allclose(engine.run({"image": images})["logits"], expected, atol=1e-5)
    assert engine.run({"image": images[:0]})["logits"].shape == (0, 10)


def test_counts_are_split_into_few_sizes():
    assert batches.split_count(11, [1, 4]) == [4, 4, 4]
    assert batches.split_count(9, [1, 4]) == [4, 4, 1]
    assert batches.split_count(2, [1, 4, 16]) == [4]
    assert batches.split_count(16, [1, 4, 16]) == [16]
    assert batches.split_count(1, [8]) == [8]


def test_a_zip_is_the_same_bundle(bundle, digits_run, images, tmp_path):
    place = tmp_path / "digits.zip"
    ja.export(digits_run.directory, place, batch=(1,), timed=False)
    assert place.is_file() and [path.name for path in tmp_path.iterdir()] == ["digits.zip"]
    np.testing.assert_allclose(
        ja.load(place).predict(images), ja.load(bundle.place).predict(images), atol=1e-5
    )


def test_compressed_weights_stay_compressed(digits_run, images):
    run = ja.load(digits_run.directory)
    call = ja.int8(run.call)
    quantized = ja.quantize(run.params)
    compressed = dataclasses.replace(run, params=quantized, call=call, run=call)
    function = make_function(run.task, run.facts.example, compressed.run, quantized)
    assert function.weights["params/hidden/kernel/qvalue"].dtype == np.int8
    made = make_program(function, ProgramSpec("cpu", None, 0, 2))
    assert made.difference == 0
    found = jax_export.deserialize(bytearray(made.content)).call(function.weights, {"image": images})
    np.testing.assert_array_equal(found["logits"], compressed.predict(images))


def test_weights_of_16_bits_survive(digits_run, tmp_path, images):
    run = ja.load(digits_run.directory)
    params = jax.tree.map(lambda x: x.astype("bfloat16"), run.params)
    narrow = dataclasses.replace(run, params=params)
    made = ja.export(narrow, tmp_path / "narrow", batch=(), timed=False)
    assert {str(x.dtype) for x in made.weights.values()} == {"bfloat16"}
    np.testing.assert_allclose(ja.load(made.place).predict(images), narrow.predict(images), atol=1e-2)


# ---- lengths ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts_run(tmp_path_factory):
    texts = [
        f"{word} {end}" for word in ("wake me", "rain today", "play a song") for end in ("now", "then", "x")
    ]
    data = ja.data.from_arrays({"text": texts * 4, "label": [text.split()[0] for text in texts] * 4})
    recipe = ja.Recipe(
        name="intents", task=TextClassification(tokenizer="bpe", vocabulary=300, fill_to=(8, 32)),
        model=functools.partial(ja.models.fast_text, width=8, buckets=64),
        data=ja.training.Data(name=data, eval_split="train"), epochs=1, batch_size=8,
    )  # fmt: skip
    return ja.train(recipe, run=tmp_path_factory.mktemp("texts") / "intents").directory


def test_each_length_has_programs(texts_run, tmp_path):
    texts = ["wake", "play a song now", "rain", "a text that goes on and on"]
    made = ja.export(texts_run, tmp_path / "intents", batch=(1,), timed=False)
    assert {(entry.batch, entry.length) for entry in made.manifest.programs} == {
        (1, 8), (None, 8), (1, 32), (None, 32)
    }  # fmt: skip
    assert str(made.signature.inputs[0]) == "int32 (?, ?)"
    run, deployed = ja.load(texts_run), ja.load(made.place)
    for given in (texts, texts[:1], texts[1:2]):
        np.testing.assert_allclose(deployed.predict(given), run.predict(given), atol=1e-5)
    inputs = {
        spec.name: np.ones((2, *[9] * (len(spec.shape) - 1)), spec.dtype) for spec in made.signature.inputs
    }
    with pytest.raises(UserError, match=r"fit no program: fill them up to one of .*8.*32"):
        made.engine().run(inputs)


def test_labels_are_no_inputs(bundle):
    assert [spec.name for spec in bundle.signature.inputs] == ["image"]
    assert [str(spec) for spec in bundle.signature.outputs] == ["float32 (?, 10)"]


# ---- without the source -----------------------------------------------------------------------------------------


def test_the_card_loads_it_with_jax_numpy_and_safetensors_alone(bundle, tmp_path):
    text = (bundle.place / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    known = packages(
        tmp_path,
        *("jax", "jaxlib", "numpy", "safetensors"),
        *("ml_dtypes", "scipy", "opt_einsum", "flatbuffers"),
    )
    command = [sys.executable, "-S", "-c", code]
    found = subprocess.run(
        command, cwd=bundle.place, capture_output=True, text=True,
        env={"PYTHONPATH": str(known), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert found.stdout == "{'logits': (1, 10)}\n", found.stderr


def test_opening_and_running_imports_no_training_code(bundle, tmp_path):
    code = f"""
import sys, numpy as np
from jaxaccel.deployment.bundle import open_bundle
out = open_bundle({str(bundle.place)!r}).engine().run({{"image": np.zeros((2, 8, 8, 1), np.uint8)}})
print(out["logits"].shape, sorted({{m.split(".")[1] for m in sys.modules if m.startswith("jaxaccel.")}}))
print([m for m in ("flax", "optax", "orbax", "tensorflow_datasets", "PIL") if m in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "(2, 10) ['core', 'deployment', 'errors']\n[]\n", found.stderr


# ---- platforms --------------------------------------------------------------------------------------------------


def test_each_platform_has_its_own_trace(digits_run):
    seen = []
    run = ja.load(digits_run.directory)

    def call(params, x):
        seen.append(get_platform())
        return run.call(params, x)

    function = make_function(run.task, run.facts.example, call, run.params)
    seen.clear()
    for backend, traced in (("cpu", "cpu"), ("cuda", "gpu"), ("tpu", "tpu")):
        made = make_program(function, ProgramSpec(backend, 2, 0))
        assert seen[0] == traced and made.difference == pytest.approx(0, abs=1e-6)
        assert jax_export.deserialize(bytearray(made.content)).platforms == (backend,)
        seen.clear()
    assert get_platform() == "cpu"


def test_a_platform_is_traced_for_inside_alone():
    with trace_for("tpu"):
        assert get_platform() == "tpu"
    assert get_platform() == "cpu"


def test_a_bundle_for_another_platform_says_so(digits_run, tmp_path):
    made = ja.export(digits_run.directory, tmp_path / "far", backend=("cuda",), batch=(), timed=False)
    with pytest.raises(
        UserError, match=r"has programs for cuda, and this process runs on cpu: .*--backend cpu"
    ):
        made.engine()


def test_where_one_example_has_a_program_the_free_one_is_for_more(digits_run):
    run = ja.load(digits_run.directory)
    function = make_function(run.task, run.facts.example, run.run, run.params)
    assert [(x.name, x.least) for x in list_specs(function, ("cpu",), (1, 16))] == [
        ("cpu-batch1", 1), ("cpu-batch16", 1), ("cpu-batchany", 2)
    ]  # fmt: skip
    assert [x.least for x in list_specs(function, ("cpu",), ())] == [1]


# ---- what is compared -------------------------------------------------------------------------------------------


def test_a_program_that_computes_something_else_is_not_written(digits_run, tmp_path, monkeypatch):
    made = programs._export

    def wrong(function, spec, platform):
        off = dataclasses.replace(function, call=lambda w, x: {"logits": function.call(w, x)["logits"] + 1})
        return made(off, spec, platform)

    monkeypatch.setattr(programs, "_export", wrong)
    with pytest.raises(UserError, match=r"cpu-batch1 differs from the model by .* it is not written"):
        ja.export(digits_run.directory, tmp_path / "wrong", timed=False)
    assert not [*tmp_path.iterdir()]


def test_differences_are_shares_of_the_largest():
    of = lambda *values, dtype="float32": {"x": np.array(values, dtype)}  # noqa: E731
    assert measure_difference(of(1, 2, 4), of(1, 2, 4)) == 0
    assert measure_difference(of(1, 2, 3), of(1, 2, 4)) == 0.25
    assert measure_difference(of(np.nan, 1), of(np.nan, 1)) == 0
    assert measure_difference(of(np.nan, 1), of(0, 1)) == np.inf
    assert measure_difference(of(np.inf, 1), of(-np.inf, 1)) == np.inf
    assert measure_difference(of(1, 2, 3, 4, dtype="int32"), of(1, 2, 3, 9, dtype="int32")) == 0.25
    assert measure_difference(of(1), of(1, 2)) == np.inf
    assert measure_difference(of(1, dtype="int32"), of(1)) == np.inf


# ---- what is refused --------------------------------------------------------------------------------------------


def test_what_was_changed_is_refused_by_name(copied):
    file = copied / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"weights.safetensors in .* was changed or is damaged"):
        open_bundle(copied).engine()


def test_what_is_not_listed_is_not_read(copied):
    (copied / "more.bin").write_bytes(b"more")
    with pytest.raises(UserError, match=r"does not list more.bin: it is not read"):
        open_bundle(copied).read("more.bin")


@pytest.mark.parametrize("name", ["programs/cpu-batch1.jax", "weights.safetensors"])
def test_what_is_missing_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read: No such file"):
        open_bundle(copied).engine("xla").run({"image": np.zeros((1, 8, 8, 1), np.uint8)})


def test_a_link_out_of_the_bundle_is_refused(copied, tmp_path):
    (tmp_path / "elsewhere").write_bytes((copied / "weights.safetensors").read_bytes())
    (copied / "weights.safetensors").unlink()
    (copied / "weights.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of the bundle"):
        open_bundle(copied).engine()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"null",
        b'{"format": 1}',
        b"[" * 100_000,
        b'{"format": "x", "signature": 1}',
    ],
)
def test_a_damaged_manifest_is_one_line(content):
    with pytest.raises(UserError, match="is no manifest of a bundle, or is damaged"):
        read_manifest(content, "here")


def test_every_field_of_a_manifest_is_checked(bundle):
    whole = json.loads((bundle.place / "manifest.json").read_text())
    for name, value in whole.items():
        for wrong in (None, 3, "text", [1], {"a": 1}):
            if type(wrong) is type(value) or (wrong is None and value is None):
                continue
            try:
                read_manifest(json.dumps(whole | {name: wrong}).encode(), "here")
            except UserError:
                continue
            assert name in ("programs", "class_names", "sole_output", "receipts"), (name, wrong)
        missing = {key: x for key, x in whole.items() if key != name}
        if name in ("format", "signature", "programs", "class_names", "name", "created", "versions"):
            with pytest.raises(UserError):
                read_manifest(json.dumps(missing).encode(), "here")


def test_a_newer_format_says_to_upgrade(bundle):
    whole = json.loads((bundle.place / "manifest.json").read_text()) | {"format": 99}
    with pytest.raises(UserError, match="is of format 99, this jaxaccel reads up to 1: upgrade"):
        read_manifest(json.dumps(whole).encode(), "here")


def test_an_expired_program_names_the_command_that_exports_again(bundle, monkeypatch):
    def refuse(content):
        raise ValueError("calling convention version 1 is not supported any more")

    monkeypatch.setattr("jax.export.deserialize", refuse)
    with pytest.raises(
        UserError, match=r"JAX .* does not read it any more: python -m jaxaccel.export /.*/small"
    ):
        bundle.engine().run({"image": np.zeros((1, 8, 8, 1), np.uint8)})


def test_zips_that_may_grow_are_refused(bundle, tmp_path):
    place = tmp_path / "grown.zip"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in bundle.place.rglob("*.*"):
            opened.write(path, path.relative_to(bundle.place))
    with pytest.raises(UserError, match=r"manifest.json in .* is compressed: zip it with -0"):
        open_bundle(place)


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all"])
def test_what_is_no_zip_is_one_line(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match="is no whole zip"):
        open_bundle(tmp_path / "x.zip")


def test_what_is_no_bundle_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match=r"has no manifest.json; python -m jaxaccel.export RUN writes one"):
        open_bundle(tmp_path)
    with pytest.raises(UserError, match="is not there"):
        open_bundle(tmp_path / "none")


def test_nothing_of_somebody_elses_is_replaced(digits_run, bundle, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years")
    with pytest.raises(UserError, match="is there already and is no bundle"):
        ja.export(digits_run.directory, tmp_path / "mine", overwrite=True, timed=False)
    with pytest.raises(UserError, match="is a bundle already: replace it with overwrite=True"):
        ja.export(digits_run.directory, bundle.place, timed=False)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "ten years"


def test_code_that_a_bundle_names_is_not_executed(copied):
    whole = json.loads((copied / "manifest.json").read_text())
    whole["task"]["class"] = "os.system"
    (copied / "manifest.json").write_text(json.dumps(whole))
    with pytest.raises(UserError):
        ja.load(copied)
    assert open_bundle(copied).engine().run({"image": np.zeros((1, 8, 8, 1), np.uint8)})["logits"].shape == (
        1,
        10,
    )


# ---- ONNX -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_other_engines_predict_the_same(digits_run, tmp_path, images, engine):
    made = ja.export(
        digits_run.directory, tmp_path / "digits", to=("onnx", "triton"), batch=(1, 4), timed=False
    )
    assert max(made.manifest.receipts["onnx"]["differences"].values()) < 1e-5
    assert made.read("model.onnx") == made.read("triton/digits/1/model.onnx")
    deployed = ja.load(made.place, engine=engine)
    assert deployed.engine.name == engine
    np.testing.assert_allclose(
        deployed.predict(images), ja.load(digits_run.directory).predict(images), atol=1e-4
    )


def test_a_model_that_onnx_cannot_express_is_exported_without(digits_run, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise UserError("the primitive sort cannot be exported to ONNX: it has no rule")

    monkeypatch.setattr("jaxaccel.deployment.exporting.write_onnx", refuse)
    made = ja.export(digits_run.directory, tmp_path / "digits", batch=(), timed=False)
    assert (
        "model.onnx" not in made.files.list_names()
        and "primitive sort" in made.manifest.receipts["without_onnx"]
    )
    with pytest.raises(UserError, match="the primitive sort cannot be exported to ONNX"):
        ja.export(digits_run.directory, tmp_path / "asked", to=("onnx",), batch=(), timed=False)


@pytest.mark.parametrize("name", ["a b", "../x", ".hidden", "näme", "a/b"])
def test_a_name_is_part_of_an_address(digits_run, tmp_path, name):
    with pytest.raises(UserError, match="give it another name"):
        ja.export(digits_run.directory, tmp_path / "x", name=name)
