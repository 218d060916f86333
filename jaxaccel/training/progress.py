"""How far a run is: its state, what it has been evaluated to, and the calls that are left."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jaxaccel.tasks.metrics import Scores
from jaxaccel.training import run_log, run_plan, warm_start
from jaxaccel.training.checkpoint import restore
from jaxaccel.training.run_setup import RunSetup
from jaxaccel.training.saved_checkpoints import CHECKPOINTS
from jaxaccel.training.state import TrainState
from jaxaccel.training.warm_start import Start


@dataclasses.dataclass
class Progress:
    """What changes while a run trains."""

    state: TrainState
    begun: int
    """Steps that were done when this process began."""
    evaluations: list[Sequence[Scores]]
    """What each evaluation found, a row a model."""
    early: bool = False
    """Whether the run ends before its last step, because its metric gets no better."""
    rows: Sequence[Scores] = ({},)
    """What the last evaluation of this process found."""
    scored: int = 0
    """Steps that were done then."""

    @property
    def done(self) -> int:
        """Steps that are done."""
        return int(self.state.step.max())


def find_start(setup: RunSetup, init_from: Path | str | None) -> Start:
    """Reads the weights that a new run starts from, where it does not start from random ones.

    Raises:
      UserError: there is no such run or file, or it is of another model.
    """
    if not init_from:
        return Start()
    recipe = setup.recipe
    inputs = setup.problem.inputs(recipe.chosen_batch_size)
    return warm_start.load_start(Path(init_from), setup.model, inputs, recipe.task.headline)


def open_progress(setup: RunSetup, start: Start, *, resume: bool) -> Progress:
    """Restores the newest whole checkpoint where a run is resumed and has one, else starts anew.

    Raises:
      UserError: all checkpoints are damaged, or a teacher has no weights that fit.
    """
    restored = restore(setup.directory / CHECKPOINTS, setup.state, setup.shardings) if resume else None
    if restored is None:
        return Progress(setup.init_state(start.weights), 0, [])
    done, state = restored
    evaluations = run_log.read_evaluations(setup.directory, done, setup.trainer.count)
    early = run_plan.should_stop_early(setup.recipe, setup.plan, done, evaluations)
    return Progress(state, done, evaluations, early, scored=done)


def is_over(setup: RunSetup, done: int) -> bool:
    """Whether a run that has done so many steps has come to its end."""
    evaluations = run_log.read_evaluations(setup.directory, done, setup.trainer.count)
    return done >= setup.plan.steps or run_plan.should_stop_early(setup.recipe, setup.plan, done, evaluations)
