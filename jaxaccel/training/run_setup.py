"""All that is known of a run before it begins: its plan, what trains in each phase, and the shapes of its state."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxaccel.data.order import Form
from jaxaccel.distributed import check_split
from jaxaccel.errors import UserError, option
from jaxaccel.models.adapter import Model, output_shape
from jaxaccel.tasks.task import check_metrics
from jaxaccel.training import run_plan, warm_start
from jaxaccel.training.bucket_plan import make_bucket_plan
from jaxaccel.training.build import build_trainer
from jaxaccel.training.problem import Problem
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.run_plan import Plan
from jaxaccel.training.state import TrainState
from jaxaccel.training.sweep import read_points
from jaxaccel.training.teacher import Teacher
from jaxaccel.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """A recipe made ready to train."""

    problem: Problem
    mesh: Mesh
    directory: Path
    """Of the run."""
    plan: Plan
    model: Model
    teacher: Teacher | None
    trainers: Mapping[int, Trainer]
    """By the size of images in pixels, 0 where they stay as they are."""

    @property
    def recipe(self) -> Recipe:
        """The experiment, as it was written."""
        return self.problem.recipe

    @property
    def trainer(self) -> Trainer:
        """What trains in the last phase, and evaluates in all."""
        return self.trainers[self.plan.forms[-1].image_size]

    @property
    def split(self) -> bool:
        """Whether batches are split over the devices. Replicas are spread over them whole instead."""
        return not read_points(self.recipe)

    @cached_property
    def state(self) -> TrainState:
        """Shapes of the state."""
        return jax.eval_shape(self.trainer.init)

    @cached_property
    def shardings(self) -> TrainState:
        """Where each array of the state lies."""
        return self.trainer.sharding(self.state, self.mesh)

    @cached_property
    def flops(self) -> dict[Form, float]:
        """Floating-point operations of one step on batches of each form."""
        with jax.set_mesh(self.mesh):  # a loop that the platform unrolls counts as often as it runs
            return {
                form: run_plan.count_step_flops(
                    self.trainers[form.image_size].step, self.state, self.batch_shape(form)
                )
                for form in self.plan.forms
            }

    @property
    def flops_per_step(self) -> float:
        """Floating-point operations of a step at the end of the run, the mean of an epoch where lengths vary."""
        if not self.problem.task.bounds:
            return self.flops[self.plan.forms[-1]]
        forms = [self.plan.form(step) for step in range(self.plan.ends()[0])]
        return sum(self.flops[form] for form in forms) / len(forms)

    @cached_property
    def unsplit(self) -> list[str]:
        """What to tell of parameters that the mesh would split and cannot."""
        return check_split(self.state.params, self.mesh) if self.split else []

    @property
    def parts(self) -> int:
        """Over how many devices a batch is split."""
        return count_parts(self.recipe, self.mesh)

    def batch_shape(self, form: Form) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of what one step takes."""
        trainer = self.trainers[form.image_size]
        return trainer.batch_shape(self.problem.batch_shape(form.batch_size, form.length))

    def init_state(self, weights: Mapping[str, np.ndarray]) -> TrainState:
        """Makes the state before the first step, with these weights by path; what is not among them is random."""
        inputs = self.problem.inputs(self.recipe.chosen_batch_size)
        given = self.trainer.copies({**weights, **warm_start.load_teacher_weights(self.teacher, inputs)})
        return jax.jit(self.trainer.init, out_shardings=self.shardings)(given)


def count_parts(recipe: Recipe, mesh: Mesh) -> int:
    """Over how many devices a batch is split: replicas are spread over them whole instead."""
    return 1 if read_points(recipe) else mesh.shape["data"] * mesh.shape["fsdp"]


def make_plan(problem: Problem, parts: int) -> Plan:
    """Makes the plan that suits the data: of phases, or of lengths where examples vary in theirs.

    Raises:
      UserError: the recipe asks for what does not go with the data.
    """
    recipe, bounds = problem.recipe, problem.task.bounds
    if bounds:
        return make_bucket_plan(recipe, problem.lengths[0], bounds, parts)
    if recipe.batch_tokens:
        raise UserError(
            f"{option('batch_tokens')} is for examples that vary in length: give {option('batch_size')} instead"
        )
    return run_plan.make_plan(recipe, len(problem.splits.train), parts)


def set_up_run(
    problem: Problem, mesh: Mesh, directory: Path, *, resume: bool = False, trust: bool = False
) -> RunSetup:
    """Makes a recipe ready to train, and checks that its parts fit each other and the data.

    Args:
      problem: that of the recipe.
      mesh: the devices.
      directory: of the run.
      resume: take the teacher's recipe from the run.
      trust: execute code that a teacher's run brings along, also where somebody else wrote it.

    Raises:
      UserError: the recipe asks for what cannot be.
    """
    recipe, task = problem.recipe, problem.task
    parts = count_parts(recipe, mesh)
    run_plan.check_batches(recipe, parts)
    facts = problem.facts.values
    plan = make_plan(problem, parts)
    inputs, model = problem.inputs(recipe.chosen_batch_size), problem.model()
    outputs = output_shape(model, inputs)
    task.check(outputs, facts)
    check_metrics(task, outputs, problem.batch_shape(recipe.chosen_batch_size))
    teacher = warm_start.load_teacher(recipe, facts, model, inputs, directory if resume else None, trust)
    trainers = {
        size: build_trainer(problem.fitted, model, plan.ends(), mesh, size, teacher)
        for size in {form.image_size: None for form in plan.forms}
    }
    setup = RunSetup(problem, mesh, directory, plan, model, teacher, trainers)
    _ = (
        setup.unsplit,
        setup.flops,
    )  # whatever is wrong with the mesh or the step is said before anything is written
    return setup
