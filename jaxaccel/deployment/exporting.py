"""From a trained model to a bundle: ``ja.export(run, "bundles/digits")``."""

import dataclasses
import datetime
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
from annotated_types import MinLen

from jaxaccel.core import runtime
from jaxaccel.core.options import Count, Options, checked
from jaxaccel.deployment.bill_of_materials import SBOM, write_sbom
from jaxaccel.deployment.bundle import Bundle, is_bundle, open_bundle
from jaxaccel.deployment.bundle_files import Directory, digest_files, write_archive
from jaxaccel.deployment.card import write_card
from jaxaccel.deployment.engine_times import time_engines
from jaxaccel.deployment.manifest import CARD, MANIFEST, WEIGHTS, Manifest, ProgramEntry
from jaxaccel.deployment.model_function import ModelFunction, make_function
from jaxaccel.deployment.onnx_model import ONNX_FILE, compare_onnx, write_onnx
from jaxaccel.deployment.programs import Program, ProgramSpec, list_specs, make_program
from jaxaccel.deployment.trained import Trained, load_run
from jaxaccel.deployment.triton import write_repository
from jaxaccel.errors import UserError, option
from jaxaccel.tasks import Task
from jaxaccel.training import options_json
from jaxaccel.training.recipe_file import Written

Platform = Literal["cpu", "cuda", "tpu"]
Target = Literal["bundle", "onnx", "stablehlo", "triton"]
BATCHES = (1, 16)
"""Batch sizes that have a program of their own, by default."""


@dataclasses.dataclass(frozen=True)
class ExportSettings(Options):
    """What is exported, and for what."""

    to: tuple[Target, ...] = ()
    """Write these: bundle is weights, programs and manifest; onnx adds model.onnx; stablehlo adds each program as
    portable bytecode, for other compilers; triton adds a model repository for NVIDIA's server [default: bundle, and
    onnx where it is installed and has operators for the model]."""
    batch: tuple[Count, ...] = BATCHES
    """Batch sizes to make programs for; one more takes every other size."""
    backend: Annotated[tuple[Platform, ...], MinLen(1)] = ("cpu",)
    """Platforms to make programs for; they need not be here."""


@checked
def export(
    run: Path | str | Trained,
    output: Path | str,
    *,
    to: Sequence[Target] = (),
    batch: Sequence[int] = BATCHES,
    backend: Sequence[Platform] = ("cpu",),
    name: str = "",
    overwrite: bool = False,
    which: int | str = "best",
    trust: bool = False,
    timed: bool = True,
    advance: Callable[[int, int], Any] = lambda made, of: None,
) -> Bundle:
    """Writes a trained model as a bundle, which runs without its source and without training code.

    Each program is compared with the model before it is written. ``docs/deployment.md`` says what a bundle holds.

    Args:
      run: directory of a run or of a compressed model, or what `ja.load` made of it.
      output: directory to write, or a file that ends with ``.zip``.
      to: what to write besides weights, programs and manifest: ``onnx``, ``stablehlo`` (portable bytecode),
        ``triton`` (a model repository). By default ``onnx``, where it is installed and has operators for the model.
      batch: batch sizes to make programs for; one more takes every other size.
      backend: platforms to make programs for; they need not be here.
      name: of the model, by default that of the directory: letters, digits, ``_``, ``-`` and ``.``.
      overwrite: replace a bundle that is there.
      which: as of `ja.load`.
      trust: as of `ja.load`.
      timed: time the engines beside each other on this machine, so that ``auto`` takes the fastest.
      advance: ``advance(made, of)`` is called before each program and at the end.

    Raises:
      UserError: there is no such run, something else is at `output`, or the model cannot be exported.
    """
    settings = ExportSettings(to=tuple(to), batch=tuple(batch), backend=tuple(backend))
    place = Path(output)
    _check_place(place, overwrite)
    name = _check_name(name or place.stem)
    trained = run if isinstance(run, Trained) else load_run(run, which=which, trust=trust)
    function = make_function(trained.task, trained.facts.example, trained.run, trained.params)
    specs = list_specs(function, settings.backend, tuple(sorted({*settings.batch})))
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as temporary:
        draft = Path(temporary) / "bundle"
        draft.mkdir()
        programs = list(_write_programs(draft, function, specs, "stablehlo" in settings.to, advance))
        _write_weights(draft, function)
        manifest = _describe(trained, function, programs, name)
        manifest = _add_onnx(draft, manifest, trained, function, settings.to)
        _finish(draft, manifest)
        if timed and jax.default_backend().replace("gpu", "cuda") in settings.backend:
            engines = [dataclasses.asdict(row) for row in time_engines(draft)]
            _finish(draft, dataclasses.replace(manifest, receipts={**manifest.receipts, "engines": engines}))
        _put(draft, place)
    return open_bundle(place)


def _check_place(place: Path, overwrite: bool) -> None:
    if not place.exists():
        return
    if not is_bundle(place):
        raise UserError(
            f"{place} is there already and is no bundle: choose another place with {option('output')}"
        )
    if not overwrite:
        raise UserError(f"{place} is a bundle already: replace it with {option('overwrite', True)}")


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise UserError(
            f"a model cannot be called {name!r}, which would be part of addresses: give it another name, of letters, "
            f"digits, _, - and ., with {option('name', 'NAME')}"
        )
    return name


def _add_onnx(
    draft: Path, manifest: Manifest, trained: Trained, function: ModelFunction, targets: Sequence[Target]
) -> Manifest:
    """Writes what is made of the ONNX model, which is left out where nobody asked for it and it cannot be made."""
    asked = bool({"onnx", "triton"} & {*targets})
    if targets and not asked:
        return manifest
    rounded = trained.integers is not None and trained.integers.activations != "none"
    try:
        content = write_onnx(trained, function)
        compared = compare_onnx(content, function, manifest.signature, rounded=rounded)
    except UserError as error:
        if asked:
            raise
        return dataclasses.replace(manifest, receipts={**manifest.receipts, "without_onnx": str(error)})
    (draft / ONNX_FILE).write_bytes(content)
    if "triton" in targets:
        sizes = manifest.list_batches()
        write_repository(draft / "triton", manifest.name, draft / ONNX_FILE, manifest.signature, sizes)
    receipts = {**manifest.receipts, "onnx": dataclasses.asdict(compared)}
    return dataclasses.replace(manifest, models={"onnx": ONNX_FILE}, receipts=receipts)


def _write_programs(
    draft: Path,
    function: ModelFunction,
    specs: Sequence[ProgramSpec],
    stablehlo: bool,
    advance: Callable[[int, int], Any],
) -> list[ProgramEntry]:
    (draft / "programs").mkdir()
    entries = []
    for number, spec in enumerate(specs):
        advance(number, len(specs))
        program = make_program(function, spec)
        (draft / "programs" / f"{spec.name}.jax").write_bytes(program.content)
        if stablehlo:
            (draft / "stablehlo").mkdir(exist_ok=True)
            (draft / "stablehlo" / f"{spec.name}.mlirbc").write_bytes(program.stablehlo)
        entries.append(_list_program(function, program))
    advance(len(specs), len(specs))
    return entries


def _list_program(function: ModelFunction, program: Program) -> ProgramEntry:
    spec = program.spec
    shapes = tuple(x.shape for x in function.examples[spec.length].values())
    file = f"programs/{spec.name}.jax"
    return ProgramEntry(file, spec.backend, spec.batch, spec.length, spec.least, shapes, program.difference)


def _write_weights(draft: Path, function: ModelFunction) -> None:
    from safetensors.numpy import save_file

    save_file(dict(function.weights), draft / WEIGHTS)


def _describe(
    trained: Trained, function: ModelFunction, programs: Sequence[ProgramEntry], name: str
) -> Manifest:
    recipe, written = trained.recipe, Written()
    factory = getattr(recipe.model, "func", recipe.model)
    origin = {
        "run": str(trained.directory), "step": trained.step, "data": recipe.data.name,
        "model": getattr(factory, "__name__", type(factory).__name__), "seed": recipe.seed,
    }  # fmt: skip
    receipts = {
        "scores": {key: float(value) for key, value in trained.metrics.items()},
        "weights_bytes": sum(x.nbytes for x in function.weights.values()),
        "device": jax.devices()[0].device_kind,
        "processor": runtime.find_processor(),
    }
    return Manifest(
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions=runtime.versions(),
        signature=function.find_signature(),
        programs=programs,
        class_names=trained.class_names,
        task=options_json.encode(trained.task, Task, written),
        facts=trained.facts.as_json(),
        origin=origin,
        receipts=receipts,
    )


def _finish(draft: Path, manifest: Manifest) -> None:
    """Writes the card, the bill of materials and, last of all, the manifest with the digests of all other files."""
    (draft / CARD).write_text(write_card(manifest), encoding="utf-8")
    (draft / SBOM).unlink(missing_ok=True)
    bill = write_sbom(_with_digests(draft, manifest))
    if bill is not None:
        (draft / SBOM).write_text(bill, encoding="utf-8")
    (draft / MANIFEST).write_text(_with_digests(draft, manifest).as_text(), encoding="utf-8")


def _with_digests(draft: Path, manifest: Manifest) -> Manifest:
    files = Directory(draft)
    digests = digest_files({name: files.read(name) for name in files.list_names() if name != MANIFEST})
    return dataclasses.replace(manifest, files=digests)


def _put(draft: Path, place: Path) -> None:
    """Puts the draft in its place; what is replaced is deleted last."""
    if place.suffix == ".zip":
        write_archive(draft, place)
        return
    old = draft.with_name("replaced")
    if place.exists():
        place.rename(old)
    draft.rename(place)
    if old.exists():
        shutil.rmtree(old)
