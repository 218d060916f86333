"""Trains small models on eight devices in several meshes and prints what the tests of meshes want to know."""

import json
import re
from functools import partial

from jaxaccel.core import runtime

runtime.setup()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from jaxaccel import augment, models  # noqa: E402
from jaxaccel.data.data_sets import open_source  # noqa: E402
from jaxaccel.data.order import Phase, Shuffled  # noqa: E402
from jaxaccel.distributed import MeshShape, batch_sharding, make_mesh, state_sharding  # noqa: E402
from jaxaccel.models.adapter import as_model  # noqa: E402
from jaxaccel.optim import Optimizer, Schedule  # noqa: E402
from jaxaccel.tasks import ImageClassification  # noqa: E402
from jaxaccel.training.build import build_trainer  # noqa: E402
from jaxaccel.training.checkpoint import flatten_by_path  # noqa: E402
from jaxaccel.training.feed import resident_feed  # noqa: E402
from jaxaccel.training.fused_steps import fuse_steps  # noqa: E402
from jaxaccel.training.recipe import Recipe  # noqa: E402
from jaxaccel.training.run_plan import PhasePlan  # noqa: E402
from jaxaccel.training.step import Training  # noqa: E402

STEPS, BATCH = 12, 32
# The compile time is the cost here: a third of it without LLVM's optimizations.
QUICKLY = {"xla_backend_optimization_level": 0}
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute")


def run(model, augmentation, mesh_shape):
    mesh = make_mesh(MeshShape(*mesh_shape), jax.devices()[: int(np.prod(mesh_shape))])
    task, source = ImageClassification(), open_source("digits", "train")
    order = Shuffled(0, len(source), BATCH)
    feed = resident_feed(source, task.element, order, mesh)
    schedule = Schedule("constant").build(3e-3, STEPS)
    inputs = (jax.ShapeDtypeStruct((BATCH, 8, 8, 1), "float32"),)
    training = Training(
        as_model(model, {"classes": 10, "channels": 1, "image_size": 8}, inputs), task,
        Optimizer("adam").build(schedule), schedule, augmentation,
    )  # fmt: skip
    shardings = state_sharding(jax.eval_shape(training.init), mesh)
    state = jax.jit(training.init, out_shardings=shardings)()
    constrain = lambda batch: jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))  # noqa: E731
    step = jax.jit(fuse_steps(training, constrain), donate_argnums=0, out_shardings=(shardings, None))
    calls = [range(i, i + 1) for i in range(STEPS)]
    compiled = step.lower(state, feed.arrays, next(feed.items(calls))).compile(QUICKLY)
    hlo = compiled.as_text()
    losses = []
    for item in feed.items(calls):
        state, metrics = compiled(state, feed.arrays, item)
        losses.append(float(metrics.means["loss"].value()[0]))
    leaves = {
        name[name.index("mu/") :] if "/mu/" in name else name: x for name, x in flatten_by_path(state).items()
    }
    return {
        "losses": losses,
        "shards": {name: (x.shape, x.addressable_shards[0].data.shape) for name, x in leaves.items()},
        "collectives": {name: len(re.findall(rf" {name}(?:-start)?\(", hlo)) for name in COLLECTIVES},
    }


def replicas(devices):
    """Eight replicas of a small network on so many devices, after some steps."""
    mesh = make_mesh(MeshShape(devices), jax.devices()[:devices])
    recipe = Recipe(
        name="eight", model=partial(models.ConvNet, widths=(4,), hidden=0, image_size=8), replicas=4, batch_size=BATCH,
        augment=(augment.horizontal_flip,), optimizer=Optimizer("adam", 3e-3),
        sweep={"optimizer.learning_rate": (1e-3, 1e-2)},
    )  # fmt: skip
    source = open_source("digits", "train")
    inputs = (jax.ShapeDtypeStruct((BATCH, 8, 8, 1), "float32"),)
    model = as_model(recipe.model, {"classes": 10, "channels": 1}, inputs)
    training = build_trainer(recipe, model, [10], mesh)
    shardings = training.sharding(jax.eval_shape(training.init), mesh)
    state = jax.jit(training.init, out_shardings=shardings)()
    plan = PhasePlan(len(source), (Phase(0, 9, 0, BATCH),))
    feed = resident_feed(source, recipe.task.element, training.order(plan.order), mesh)
    constrain = lambda batch: jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))  # noqa: E731
    step = jax.jit(fuse_steps(training, constrain), donate_argnums=0, out_shardings=(shardings, None))
    calls = [range(i, i + 1) for i in range(3)]
    compiled = step.lower(state, feed.arrays, next(feed.items(calls))).compile(QUICKLY)
    for item in feed.items(calls):
        state, metrics = compiled(state, feed.arrays, item)
    kernel = state.params["head"]["kernel"]
    return {
        "losses": np.asarray(metrics.means["loss"].value()).tolist(),
        "shards": (kernel.shape, kernel.addressable_shards[0].data.shape),
        "collectives": {
            name: len(re.findall(rf" {name}(?:-start)?\(", compiled.as_text())) for name in COLLECTIVES
        },
    }


def main():
    vit = partial(models.VisionTransformer, width=32, depth=2, heads=4, patch_size=2)
    convnet = partial(models.ConvNet, widths=(16,), hidden=32, dropout=0.0)
    affine = augment.chain(
        partial(augment.affine, rotation=10.0, translation=0.1), partial(augment.cutout, size=2)
    )
    vit_meshes = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (4, 1, 2), (1, 2, 4)]
    report = {
        "vit": {",".join(map(str, m)): run(vit, augment.chain(), m) for m in vit_meshes},
        "replicas": {devices: replicas(devices) for devices in (1, 8)},
        "convnet": {",".join(map(str, m)): run(convnet, affine, m) for m in [(1, 1, 1), (8, 1, 1)]},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
