"""Chooses batch sizes on meshes of forced CPU devices and prints what the tests want to know."""

import dataclasses
import json
from pathlib import Path

from jaxaccel.core import runtime

runtime.setup()

import jax  # noqa: E402
from flax import nnx  # noqa: E402

import jaxaccel as ja  # noqa: E402
from jaxaccel.distributed import MeshShape, make_mesh  # noqa: E402
from jaxaccel.training import batch_size  # noqa: E402
from jaxaccel.training.problem import Problem  # noqa: E402
from jaxaccel.training.run_setup import set_up_run  # noqa: E402


class Mlp(nnx.Module):
    def __init__(self, *, classes, rngs):
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.head = nnx.Linear(128, classes, rngs=rngs)

    def __call__(self, x):
        return self.head(jax.nn.relu(self.hidden(x.reshape(x.shape[0], -1))))


RECIPE = ja.Recipe(
    name="auto", model=Mlp, batch_size="auto", data=ja.training.Data(name="digits", feed="stream"),
    optimizer=ja.Optimizer("sgd", 0.1), steps_per_call=1,
)  # fmt: skip
NOWHERE = Path("nowhere")
LIMIT = 400_000


def choose(**changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    mesh = make_mesh(recipe.mesh)
    first = batch_size.begin_batch_size(recipe, mesh, NOWHERE, resume=False)
    setup, _ = batch_size.choose_batch_size(set_up_run(Problem(first), mesh, NOWHERE), limit=LIMIT)
    size = setup.recipe.batch_size
    larger = set_up_run(setup.problem.with_batch_size(2 * size), mesh, NOWHERE)
    need, more = batch_size.count_bytes(setup), batch_size.count_bytes(larger)
    return {"size": size, "limit": LIMIT, "need": need, "next": more}


found = {f"data={count}": choose(mesh=MeshShape(data=count)) for count in (2, 3)}
resident = dataclasses.replace(RECIPE.data, feed="resident")
found["replicas"] = choose(replicas=2, mesh=MeshShape(data=1), data=resident)
print(json.dumps(found))
