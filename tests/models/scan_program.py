"""Compiles a training step of a scanned model for eight devices and prints what moves between them."""

import json
from functools import partial

from jaxaccel.core import runtime

runtime.setup()

import jax  # noqa: E402

from jaxaccel import augment, models  # noqa: E402
from jaxaccel.core.hlo.text import list_calls, parse  # noqa: E402
from jaxaccel.distributed import MeshShape, batch_sharding, make_mesh, placed  # noqa: E402
from jaxaccel.models.adapter import as_model  # noqa: E402
from jaxaccel.optim import Optimizer, Schedule  # noqa: E402
from jaxaccel.tasks import ImageClassification  # noqa: E402
from jaxaccel.training.step import Training  # noqa: E402

BATCH = 32


def moved(scan):
    """{collective operation: numbers that it gives, as multiples of the parameters}."""
    mesh = make_mesh(MeshShape(data=1, fsdp=8))
    factory = partial(models.VisionTransformer, patch_size=8, width=64, depth=4, heads=4, scan=scan)
    inputs = (jax.ShapeDtypeStruct((BATCH, 32, 32, 3), "float32"),)
    model = as_model(factory, {"classes": 10, "channels": 3, "image_size": 32}, inputs)
    schedule = Schedule("constant").build(1e-3, 10)
    training = Training(
        model, ImageClassification(), Optimizer("sgd").build(schedule), schedule, augment.chain()
    )
    state = jax.eval_shape(training.init)
    shardings = training.sharding(state, mesh)
    kinds = {
        "image": ((32, 32, 3), "uint8"),
        "label": ((), "int32"),
        "mask": ((), "float32"),
        "index": ((), "int32"),
    }
    batch = {
        name: jax.ShapeDtypeStruct((BATCH, *shape), dtype, sharding=batch_sharding(mesh))
        for name, (shape, dtype) in kinds.items()
    }
    with jax.set_mesh(mesh):
        lowered = jax.jit(training.step, out_shardings=(shardings, None)).lower(
            placed(state, shardings), batch
        )
    compiled = lowered.compile({"xla_backend_optimization_level": 0})
    computations, entry = parse(compiled.as_text())
    total: dict[str, float] = {}
    size = sum(x.size for x in jax.tree.leaves(state.params))
    for place in list_calls(computations, entry):
        for it in place.computation.values():
            name = it.opcode.removesuffix("-start")
            if name in ("all-gather", "all-reduce", "reduce-scatter"):
                total[name] = (
                    total.get(name, 0) + (place.trips or 1) * sum(x.bytes for x in it.results) / 4 / size
                )
    return total


print(json.dumps({"scanned": moved(True), "unrolled": moved(False)}))
