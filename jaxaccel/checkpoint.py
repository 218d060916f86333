"""Checkpoints by Orbax: written in the background, the newest and the best kept, damaged ones passed over."""

import errno
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as keeping

from jaxaccel.errors import UserError
from jaxaccel.files import write_text
from jaxaccel.metrics import Headline
from jaxaccel.parallel import placed
from jaxaccel.trees import path_text

PyTree = Any
Say = Callable[[str], None]
WEIGHTS = ("params/", "model_state/")
SEAL = "sha256.json"
"""File in each checkpoint that holds the digests of the others."""


class Checkpoints:
    """The checkpoints of one run, a directory a step.

    A state is saved as a flat dictionary from path to array, so that a checkpoint can be read without the
    code that wrote it, onto any number of devices.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        metric: str = "accuracy",
        better: Literal["higher", "lower"] = "higher",
    ) -> None:
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells of each file and each retry
        self.directory = Path(directory).absolute()
        self.headline = Headline(metric, better)
        score = self.headline.rank  # a run that was stopped saves without evaluating: that ranks last
        policies: list[Any] = [
            keeping.LatestN(keep),
            keeping.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=score,  # without it Orbax does not write the metrics down
            preservation_policy=keeping.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,  # what a killed process left half-written
        )
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    @classmethod
    def weights_of(
        cls, run: Path, metric: str, better: Literal["higher", "lower"] = "higher"
    ) -> dict[str, np.ndarray]:
        """`weights` of the run in that directory."""
        if not (run / "checkpoints").is_dir():
            raise UserError(f"{run} is no directory of a run with checkpoints")
        checkpoints = cls(run / "checkpoints", metric=metric, better=better)
        try:
            return checkpoints.weights()
        finally:
            checkpoints.close()

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Starts to save `state`; returns once it may be changed, before it is written."""
        self.wait()
        if step in self._manager.all_steps():
            return
        if not self._manager.save(step, args=ocp.args.StandardSave(flat(state)), metrics=dict(metrics or {})):
            raise RuntimeError(f"Orbax did not save step {step} into {self.directory}")

    def wait(self) -> None:
        """Blocks until all is on the disk.

        Raises:
          OSError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            # TensorStore reports a full disk as a plain ValueError.
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, "No space left on device", str(self.directory)) from error
            raise
        self._seal()

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the best metric, of those that are kept; of equal ones the latest, which is always kept."""
        ranks = {step: self.headline.rank(self._manager.metrics(step)) for step in self.steps()}
        known = {step: rank for step, rank in ranks.items() if rank > -math.inf}
        return max(known, key=lambda step: (known[step], step), default=None)

    def restore(self, shapes: PyTree, shardings: PyTree, say: Say = print) -> tuple[int, PyTree] | None:
        """The newest checkpoint that is whole, placed by `shardings`; None where there is none.

        Damaged ones behind it are moved to ``damaged/`` beside the checkpoints, so that the run can save those
        steps again.

        Args:
          shapes: a state of `jax.ShapeDtypeStruct`s, the structure that is expected.
          shardings: the same structure of shardings; the number of devices may differ from the run that saved.
          say: told of each damaged checkpoint that is passed over.

        Raises:
          UserError: there are checkpoints and all are damaged.
        """
        target = placed(shapes, shardings)
        steps = self.steps()
        for step in reversed(steps):
            try:
                _verify(self.directory / str(step))
                arrays = self._manager.restore(step, args=ocp.args.StandardRestore(flat(target)))
            except Exception as error:  # Orbax and TensorStore raise all sorts for a damaged file
                say(f"checkpoint {self.directory / str(step)} is damaged and passed over: {_reason(error)}")
            else:
                self._set_aside([later for later in steps if later > step])
                return step, _unflat(arrays, shapes)
        if steps:
            raise UserError(f"all checkpoints in {self.directory} are damaged: start again with --overwrite")
        return None

    def weights(self, say: Say = print) -> dict[str, np.ndarray]:
        """Parameters and model state of the best checkpoint, {path: array} on the host.

        The moving average of the parameters takes their place where there is one.

        Raises:
          UserError: there is no checkpoint, or none that is whole.
        """
        best = self.best()
        for step in [s for s in [best, *reversed(self.steps())] if s is not None]:
            try:
                _verify(self.directory / str(step))
                arrays = self._manager.restore(step, args=ocp.args.StandardRestore(self._on_host(step)))
                weights = {path: np.asarray(a) for path, a in arrays.items() if path.startswith(WEIGHTS)}
                averages = {p: np.asarray(a) for p, a in arrays.items() if p.startswith("average/")}
                return weights | {p.replace("average/", "params/", 1): a for p, a in averages.items()}
            except Exception as error:  # see restore
                say(f"checkpoint {self.directory / str(step)} is damaged and passed over: {_reason(error)}")
        raise UserError(f"no whole checkpoint in {self.directory}: name the directory of a finished run")

    def _on_host(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = self._manager.item_metadata(step)
        return {
            path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            for path, x in dict(shapes).items()
        }

    def close(self) -> None:
        """Waits for what is being written and lets go of the directory."""
        self.wait()
        self._manager.close()

    def _set_aside(self, steps: Sequence[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                aside = self.directory.parent / "damaged" / str(step)
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                (self.directory / str(step)).rename(aside)
        if steps:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
            self._manager.reload()

    def _seal(self) -> None:
        """Writes down the digest of each file of the checkpoints that are complete.

        TensorStore's OCDBT format notices damage to its own structure, but not to the array data in it.
        """
        if jax.process_index():
            return
        for step in self.steps():
            directory = self.directory / str(step)
            if not (directory / SEAL).exists():
                write_text(directory / SEAL, json.dumps(_digests(directory), indent=1))


def digest(tree: PyTree) -> str:
    """SHA-256 over all arrays of `tree`, their paths, shapes and dtypes: equal if and only if bit for bit equal."""
    total = hashlib.sha256()
    for path, leaf in sorted(flat(tree).items()):
        random = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if random else leaf)
        total.update(f"{path} {array.shape} {array.dtype}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def flat(tree: PyTree) -> dict[str, Any]:
    """{path: leaf}."""
    return {path_text(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]


def _digests(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != SEAL:
            with path.open("rb") as file:
                found[str(path.relative_to(directory))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _verify(directory: Path) -> None:
    if not (directory / SEAL).exists():  # the process was killed between Orbax's commit and the seal
        return
    for name, digest in json.loads((directory / SEAL).read_text()).items():
        with (directory / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{name} is not what was written")


def _unflat(leaves: Mapping[str, Any], like: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_text(path)], like)
