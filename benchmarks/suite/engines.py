"""Times what a bundle can be computed by: XLA, ONNX Runtime and OpenVINO, of the same weights, on the processor.

    python -m benchmarks engines                               # all image models, an LSTM and an encoder
    python -m benchmarks engines --models resnet20 encoder --batch 1 16

Each network is exported in float32 and, quantized by our calibration, in static int8; XLA runs the form that an export
makes programs of (folded, retargeted), oneDNN the same with its kernels, where `native/` is installed, the others the
ONNX model of our exporter. Every result is compared with float32
before it is timed. Random weights; a call takes NumPy arrays and gives such, as a server's does.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

import jaxaccel as ja
from benchmarks.harness import Benchmark, set_up_trainer
from benchmarks.networks import NETWORKS, Network, make_function
from benchmarks.options import Mistake, Options, choose_batches, choose_names, time_by
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, format_short
from benchmarks.variants import LIMITS, measure_error
from jaxaccel import models
from jaxaccel.core import kernels
from jaxaccel.core.timing import run_repeatedly, time_in_turns
from jaxaccel.deployment.onnx import to_onnx
from jaxaccel.deployment.onnx_engines import open_onnxruntime, open_openvino
from jaxaccel.deployment.signature import Signature, TensorSpec

SIDES = {
    "inception_v3": 299,
    **dict.fromkeys(("cifar_fast", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), 32),
}
"""Sides of images, where they are not 224."""
ENGINES = {"ONNX Runtime": open_onnxruntime, "OpenVINO": open_openvino}
COLUMNS = [f"{engine} {form}" for form in ("float32", "int8") for engine in ("XLA", "oneDNN", *ENGINES)]
SMALL = ("resnet20", "resnet50", "mobilenet_v2", "efficientnet_b0", "vit_s16", "mlp", "lstm", "encoder")


def list_networks() -> Mapping[str, Network]:
    """All image models that come with the package, and the networks of the other benchmarks."""
    images = {
        name: Network(name, getattr(models, name), (SIDES.get(name, 224), SIDES.get(name, 224), 3))
        for name in dir(models)
        if name[0].islower() and ".vision." in getattr(getattr(models, name), "__module__", "")
    }
    return {**images, **NETWORKS}


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each network and batch size."""
    networks = list_networks()
    for name in options.models:
        for size in options.batch:
            yield measure_cell(networks[name], size, options)
            jax.clear_caches()


def measure_cell(network: Network, size: int, options: Options) -> Cell:
    """Compares all contenders with float32, then times them in turns."""
    x = np.asarray(network.examples(size))
    calls, failed, errors = {}, {}, {}
    for name, make in list_contenders(network, size).items():
        try:
            calls[name] = functools.partial(make(), x)
            found = calls[name]()
        except ja.UserError as error:
            calls.pop(name, None)
            failed[name] = str(error)
            continue
        errors[name] = measure_error(found, calls["XLA float32"]())
        limit = LIMITS["float32" if name.endswith("float32") else "int8"]
        if not errors[name] <= limit:
            raise Mistake(f"{network.name}, {name}: the result is off by {errors[name]:.1%} of float32's")
    turns = {name: run_repeatedly(call) for name, call in calls.items()}
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    rows = [
        {"name": name, "relative_error": errors[name], **summarize_times(found),
         "gain": times.gain(name, "XLA float32").ratio}
        for name, found in times.rounds.items()
    ]  # fmt: skip
    versions = {name: metadata.version(name) for name in ("onnx", "onnxruntime", "openvino")}
    return {"model": network.name, "batch_size": size, "rows": rows, "failed": failed, "versions": versions}


def list_contenders(
    network: Network, size: int
) -> dict[str, Callable[[], Callable[[np.ndarray], np.ndarray]]]:
    """How each column's function of an array is made."""
    f, variables = make_function(network)
    examples = [network.examples(size, seed) for seed in (2, 3, 4)]
    folded, weights = ja.fold(f, variables, examples[0])
    calibration = ja.calibrate(folded, weights, examples)
    quantized = ja.quantize(weights)
    static = ja.int8(folded, calibration=calibration)
    forms: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "float32": (folded, weights, {}),
        "int8": (static, quantized, {"calibration": calibration}),
    }
    found: dict[str, Any] = {}
    for form, (function, params, options) in forms.items():
        found[f"XLA {form}"] = functools.partial(_compile_for_all, function, params, size, network)
        if kernels.is_available():
            found[f"oneDNN {form}"] = functools.partial(_compile, function, params, size, network)
        for engine in ENGINES:
            found[f"{engine} {form}"] = functools.partial(
                _open, engine, folded, params, size, network, options
            )
    return found


def _compile(f: Any, params: Any, size: int, network: Network) -> Callable[[np.ndarray], np.ndarray]:
    params = jax.device_put(params)
    shape = jax.ShapeDtypeStruct((size, *network.shape), np.float32)
    compiled = jax.jit(ja.retarget(f)).lower(params, shape).compile()
    return lambda x: np.asarray(compiled(params, x))


def _compile_for_all(*args: Any) -> Callable[[np.ndarray], np.ndarray]:
    with kernels.left_out():
        return _compile(*args)


def _open(
    engine: str, f: Any, params: Any, size: int, network: Network, options: Mapping[str, Any]
) -> Callable[[np.ndarray], np.ndarray]:
    shape = jax.ShapeDtypeStruct((size, *network.shape), np.float32)
    model = to_onnx(f, params, [shape], input_names=["x"], output_names=["y"], **options)
    outputs = jax.eval_shape(f if not options else ja.int8(f, **options), params, shape)
    signature = Signature(
        (TensorSpec("x", "float32", (None, *network.shape)),),
        (TensorSpec("y", "float32", (None, *outputs.shape[1:])),),
    )
    opened = ENGINES[engine](model.SerializeToString(), signature, [size])
    return lambda x: opened.run({"x": x})["y"]


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes a table of milliseconds, and one of how far the fastest is ahead of XLA."""
    return [tabulate_times(cells), tabulate_failures(cells)]


def tabulate_times(cells: Sequence[Cell]) -> Table:
    """Makes one line a cell: milliseconds of each, and the fastest."""
    rows = []
    for cell in cells:
        times = {row["name"]: row["median_ms"] for row in cell["rows"]}
        fastest = min(times, key=lambda name: times[name])
        values = [format_short(times[name]) if name in times else "" for name in COLUMNS]
        rows.append([cell["model"], str(cell["batch_size"]), *values, fastest])
    return Table("Milliseconds a call", ["network", "batch", *COLUMNS, "fastest"], rows, words=1)


def tabulate_failures(cells: Sequence[Cell]) -> Table:
    """Makes one line for each network that an engine could not compute, and why."""
    rows = [
        [cell["model"], name, reason]
        for cell in cells
        if cell["batch_size"] == min(c["batch_size"] for c in cells)
        for name, reason in cell["failed"].items()
    ]
    return Table("Not computed", ["network", "engine and form", "why"], rows, words=3)


BENCHMARK = Benchmark(
    measure, tabulate, ("model", "batch_size"), prepare=set_up_trainer,
    options=(
        choose_names("models", list_networks(), "Networks.", default=SMALL),
        choose_batches(1, 16, quick=(2,)),
        *time_by(9, 0.1, 60),
    ),
)  # fmt: skip
