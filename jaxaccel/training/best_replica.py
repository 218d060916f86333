"""The best of several replicas, kept as a run of its own, which all commands take."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from jaxaccel.training import run_directory
from jaxaccel.training.checkpoint import Checkpoints
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.replicas import Replicas, pick_numbers, pick_replica
from jaxaccel.training.saved_checkpoints import CHECKPOINTS
from jaxaccel.training.state import TrainState
from jaxaccel.training.sweep import with_values


def keep_best(
    directory: Path,
    recipe: Recipe,
    source: Path | None,
    replicas: Replicas,
    state: TrainState,
    scores: Sequence[Mapping[str, float]],
) -> int:
    """Writes the best replica to ``directory/best`` as a run of its own; returns which one it is."""
    best = replicas.best(scores, state, recipe.task.headline)
    alone = with_values(recipe, pick_numbers(replicas.values, best))
    # From the host, where it is split over devices: no small program for each array.
    own = pick_replica(jax.device_get(state) if jax.process_count() == 1 else state, best)
    # Its recipe alone leaves out what is 0 there: an average, and parts of the optimizer that have no arrays.
    shape = jax.eval_shape(replicas.alone(best).init)
    own = dataclasses.replace(own, average=None) if shape.average is None else own
    own = jax.tree.unflatten(jax.tree.structure(shape), jax.tree.leaves(own))
    with run_directory.claim_run(directory / "best", alone, source=source, overwrite=True) as claim:
        claim.begin()
        run_directory.keep_teacher(directory / run_directory.TEACHER, directory / "best")
        checkpoints = Checkpoints(
            directory / "best" / CHECKPOINTS, keep=1, metric=recipe.task.metric, better=recipe.task.better
        )
        checkpoints.save(int(own.step), own, scores[best])
        checkpoints.close()
    return best
