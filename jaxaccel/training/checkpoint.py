"""Checkpoints by Orbax: written in the background with their digests, the newest and the best kept."""

import contextlib
import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as keeping

from jaxaccel.core.files import disk_error
from jaxaccel.core.paths import flatten_by_path, path_text
from jaxaccel.errors import UserError, option
from jaxaccel.training import digests
from jaxaccel.training.saved_checkpoints import list_steps, read_state

PyTree = Any
Say = Callable[[str], None]


class Checkpoints:
    """Saves the checkpoints of one run, a directory a step; no other code decides which are kept.

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
        sign = 1 if better == "higher" else -1

        def score(metrics: Mapping[str, float]) -> float:
            value = sign * metrics.get(metric, math.nan)  # a run that was stopped saves without evaluating
            return -math.inf if math.isnan(value) else value

        policies: list[Any] = [
            keeping.LatestN(keep),
            keeping.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            best_fn=score,  # without it Orbax does not write the metrics down
            preservation_policy=keeping.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,  # what a killed process left half-written
        )
        handlers = {"default": ocp.StandardCheckpointHandler(), digests.ITEM: digests.Handler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        # Held open, its number goes to no other directory.
        self._run = os.open(self.directory.parent, os.O_RDONLY) if os.name == "posix" else None

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Starts to save `state`; returns once it may be changed, before it is written.

        Raises:
          OSError: an earlier one could not be written.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        arrays, scores = flatten_by_path(state), dict(metrics or {})
        args = ocp.args.Composite(
            default=ocp.args.StandardSave(arrays), **{digests.ITEM: digests.Save(arrays, scores)}
        )
        with self._told():
            saved = self._manager.save(step, args=args, metrics=scores)
        if not saved:
            raise RuntimeError(f"Orbax did not save step {step} into {self.directory}")

    def wait(self) -> None:
        """Blocks until all is on the disk.

        Raises:
          OSError: it could not be written, since the disk is full, for instance.
          UserError: somebody has removed the directory.
        """
        with self._told():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tells why the disk does not do what Orbax asks of it, which it does in many ways."""
        try:
            yield
        except Exception as error:
            self._check_there()
            if said := disk_error(error, self.directory):
                raise said from error
            raise
        self._check_there()

    def _check_there(self) -> None:
        """Checks that the run's directory is the one that it was; Orbax would make another one, with little in it."""
        run = self.directory.parent
        with contextlib.suppress(FileNotFoundError):
            if self._run is None or os.path.samestat(run.stat(), os.fstat(self._run)):
                return
        if jax.process_index() == 0 and not (run / "recipe.json").exists():
            shutil.rmtree(self.directory, ignore_errors=True)
            with contextlib.suppress(OSError):
                run.rmdir()
        raise UserError(
            f"{run} has been removed or renamed while it was written to: start again, with another "
            f"{option('run', 'DIR')} if something cleans up there"
        )

    def close(self) -> None:
        """Waits for what is being written and lets go of the directory."""
        self.wait()
        self._manager.close()
        if self._run is not None:
            os.close(self._run)


def restore(
    directory: Path, shapes: PyTree, shardings: PyTree, say: Say = print
) -> tuple[int, PyTree] | None:
    """`saved_checkpoints.read_state`, for a run that goes on from there: damaged checkpoints behind it are moved away.

    They go to ``damaged/`` beside the checkpoints, so that the run can save those steps again.

    Raises:
      UserError: there are checkpoints and all are damaged.
    """
    found = read_state(directory, shapes, shardings, say)
    later = [step for step in list_steps(directory) if found and step > found[0]]
    if jax.process_index() == 0:
        for step in later:
            aside = directory.parent / "damaged" / str(step)
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            (directory / str(step)).rename(aside)
    if later:
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    return found


def digest_state(tree: PyTree) -> str:
    """SHA-256 over all arrays of `tree`, their paths, shapes and dtypes: equal if and only if bit for bit equal."""
    total = hashlib.sha256()
    for path, leaf in sorted(flatten_by_path(tree).items()):
        random = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if random else leaf)
        total.update(f"{path} {array.shape} {array.dtype}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def place_like(tree: PyTree, arrays: Mapping[str, np.ndarray], root: str) -> PyTree:
    """`tree` with the arrays of `read_weights` whose paths begin with `root`, on the devices where it is."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.device_put(arrays[f"{root}/{path_text(path)}"].astype(x.dtype), x.sharding), tree
    )
