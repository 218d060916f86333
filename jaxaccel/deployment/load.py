"""What can be predicted with is opened by its path: a run, a compressed model, or a bundle. ``ja.load(place)``."""

from pathlib import Path
from typing import Any, Protocol, overload

from jaxaccel.core import runtime
from jaxaccel.core.options import checked
from jaxaccel.deployment.bundle import EngineName, is_bundle
from jaxaccel.deployment.deployed import Deployed, load_bundle
from jaxaccel.deployment.trained import Trained, Which, load_run
from jaxaccel.errors import UserError, option
from jaxaccel.tasks import Task
from jaxaccel.training.facts import Facts


class Predictor(Protocol):
    """What `Trained` and `Deployed` have in common."""

    @property
    def task(self) -> Task:
        """What the model does."""
        ...

    @property
    def facts(self) -> Facts:
        """What the run kept of its data."""
        ...

    def predict(self, given: Any, *, batch: int, **options: Any) -> Any:
        """The task's predictions of what a person has."""
        ...


@overload
def load(run: Path | str, *, which: Which = ..., trust: bool = ...) -> Trained: ...
@overload
def load(run: Path | str, *, engine: EngineName) -> Deployed: ...
@overload
def load(
    run: Path | str, *, which: Which = ..., trust: bool = ..., engine: EngineName | None
) -> Trained | Deployed: ...
@checked
def load(
    run: Path | str, *, which: Which = "best", trust: bool = False, engine: EngineName | None = None
) -> Trained | Deployed:
    """The model of a run or of a bundle, ready to predict; nothing in its directory is changed.

    Args:
      run: directory of a run, also of one that still trains; of a pipeline of `ja.compress`, or a packed file in it; or
        a bundle of `ja.export`, a directory or a zip.
      which: the checkpoint with the best metric, the last one, or that of a step; the name of a step of a pipeline.
      trust: execute code that the run brings along, also where somebody else wrote it.
      engine: what computes a bundle: ``auto``, ``xla``, ``onnxruntime`` or ``openvino``. A run is always computed by
        XLA.

    Returns:
      `Trained`; of a bundle `Deployed`, which predicts and classifies as well, but is not evaluated or transformed.

    Raises:
      UserError: there is no such run, checkpoint or bundle, it is damaged, or the engine cannot run here.
    """
    runtime.setup()
    place = Path(run)
    if is_bundle(place):
        if which != "best":
            raise UserError(f"{place} is a bundle, which holds one model: leave out {option('which')}")
        return load_bundle(place, engine or "auto")
    if engine not in (None, "auto", "xla"):
        raise UserError(
            f"{option('engine', engine)} computes bundles: python -m jaxaccel.export {place} writes one"
        )
    return load_run(place, which=which, trust=trust)
