"""The experiment as one frozen dataclass: all that decides what a run computes."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from jaxaccel.core.options import Count, CountOrZero, Options, Positive, ShareBelowOne
from jaxaccel.distributed import MeshShape
from jaxaccel.errors import UserError, option
from jaxaccel.optim import Optimizer, Schedule, Sparse
from jaxaccel.tasks import ImageClassification, Task
from jaxaccel.training.function_names import Call, Values
from jaxaccel.training.loss import Precision, Remat
from jaxaccel.training.teacher import Distill

MAY_DIFFER = "may differ when a run goes on"
"""Mark of a field that changes how a run is computed or where it stands, but not what: ``Annotated[T, MAY_DIFFER]``."""


@dataclasses.dataclass(frozen=True)
class Data(Options):
    """Which data set, from where, and how it reaches the device."""

    name: str = "digits"
    """Name of the data set in TFDS (mnist, cifar10, cmaterdb/bangla:1.0.0, ...), a folder with one subfolder
    a class, a file.npz of arrays, a file.csv, .tsv or .jsonl of texts or a folder of these, or what
    ja.data.from_arrays returned."""
    dir: Annotated[Path | None, MAY_DIFFER] = None
    """Directory where TFDS keeps its data sets [default: $TFDS_DATA_DIR or ~/tensorflow_datasets]."""
    downloads: Annotated[Path | None, MAY_DIFFER] = None
    """Directory with the original files, to prepare the data set without a network."""
    train_split: str = "train"
    """Train on this split, in TFDS's slicing syntax: train[:90%]."""
    eval_split: str = "test"
    """Evaluate on this split. Where there are validation examples, it is evaluated once, at the end."""
    validation: ShareBelowOne = 0.0
    """Set aside this share of the training split, in [0, 1), to choose the best checkpoint by. With 0 that is
    done by the data set's split validation, where it has one beside test, else by eval_split itself."""
    feed: Annotated[Literal["auto", "resident", "stream"], MAY_DIFFER] = "auto"
    """resident copies the split to the device; stream reads batches while training; auto chooses by size."""
    resident_share: Annotated[Positive, MAY_DIFFER] = 0.25
    """auto makes the data resident when it takes at most this share of a device's memory."""
    workers: Annotated[CountOrZero, MAY_DIFFER] = 0
    """Number of processes that read and decode for stream; 0 reads in threads of the trainer."""
    label: str = "label"
    """Column of a csv or jsonl file that holds the class."""
    eval_name: str = ""
    """Evaluate on this data set [default: the one trained on]: the original, where a teacher wrote what is trained
    on."""


@dataclasses.dataclass(frozen=True)
class Phases(Options):
    """Parts of a run with other images or batches, smaller ones at first: progressive resizing, batch-size warm-up."""

    at: tuple[float, ...] = ()
    """Begin a new part of the run after each of these shares of all examples that it sees: 0.4 0.7 makes
    three parts."""
    image_size: tuple[CountOrZero, ...] = ()
    """Height and width of the training images in each part, in pixels, resized on the device (Tan & Le 2021,
    arXiv:2104.00298)."""
    batch_size: tuple[Count, ...] = ()
    """Number of examples a step in each part (Smith et al. 2018, arXiv:1711.00489)."""


@dataclasses.dataclass(frozen=True)
class Recipe(Options):
    """One experiment. The same recipe gives the same run, bit for bit, on the same kind of device."""

    name: Annotated[str, MAY_DIFFER]
    """Name of the run, which writes to runs/NAME."""
    model: Call
    """Make the model with this: resnet20, vit_s16(patch_size=4), or my_package.models.MyNet(width=64)."""
    seed: CountOrZero = 0
    """Random seed of initialization, shuffling, augmentation and dropout."""
    epochs: Positive = 10.0
    """Train for this many passes over the training split."""
    batch_size: Count | Literal["auto"] = 128
    """Number of examples a step, over all devices. auto, which is for accelerators, takes the largest power of
    two whose step fits into their memory, and leaves the learning rate as it is."""
    batch_tokens: CountOrZero = 0
    """Where examples vary in length: number of tokens or frames a step, padding counted, so that short examples come
    in larger batches. 0 takes batch_size examples, whatever their length."""
    task: Task = ImageClassification()
    data: Data = Data()
    augment: tuple[Call, ...] = ()
    """Augment each training batch by these functions, in order, on the device: horizontal_flip
    'pad_and_crop(padding=4)'."""
    augment_features: tuple[Call, ...] = ()
    """Augment what the task computes of the augmented batch, such as spectrograms, by these functions, in order,
    on the device."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    sparse: Sparse = Sparse()
    distill: Distill = Distill()
    phases: Phases = Phases()
    mesh: Annotated[MeshShape, MAY_DIFFER] = MeshShape()
    precision: Precision = "float32"
    """Compute matrix products and convolutions in this precision; int8-qat trains float32 weights to be
    quantized."""
    lowering: Annotated[Literal["auto", "xla"], MAY_DIFFER] = "auto"
    """auto computes convolutions and poolings in the forms that a single CPU device is known to run faster
    than XLA's own; xla leaves them."""
    remat: Remat = "none"
    """Keep only this much of the forward pass for the backward one; less takes less memory and more
    computation."""
    non_finite: Annotated[Literal["stop", "skip"], MAY_DIFFER] = "stop"
    """Stop when the loss or the gradient is not finite, or skip that step."""
    steps_per_call: Annotated[CountOrZero, MAY_DIFFER] = 0
    """Number of steps fused into one call of the device; 0 chooses by how long a step takes."""
    eval_every: Positive = 1.0
    """Number of epochs between evaluations, each of which saves a checkpoint."""
    patience: Annotated[CountOrZero, MAY_DIFFER] = 0
    """Stop after this many evaluations in a row without a better metric; 0 trains to the end. Schedules are
    stretched over all `epochs`: stopping early cuts them off."""
    keep: Annotated[Count, MAY_DIFFER] = 2
    """Number of newest checkpoints to keep; the best one is kept besides."""
    replicas: Count = 1
    """Number of runs, with the seeds from `seed` on, that train at once, as one program, spread over the
    devices."""
    sweep: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    """Train at once runs that differ in these numbers of the recipe, in all combinations:
    optimizer.learning-rate 0.01,0.1 seed 0,1,2."""

    def __post_init__(self) -> None:
        """Takes single numbers of the sweep for sequences of one, and checks the fields."""
        if isinstance(self.sweep, Mapping):
            values = {path: tuple(x) if isinstance(x, Iterable) else (x,) for path, x in self.sweep.items()}
            object.__setattr__(self, "sweep", values)
        super().__post_init__()

    @property
    def chosen_batch_size(self) -> int:
        """The batch size as a number.

        Raises:
          UserError: it is still to be chosen.
        """
        if self.batch_size == "auto":
            raise UserError(f"{option('batch_size', 'auto')} is chosen when a run trains: give a number here")
        return self.batch_size

    def check_values(self) -> None:
        """Checks the name, which is that of a directory, and what excludes each other."""
        if not re.fullmatch(r"[^/\\\x00-\x1f]{1,200}", self.name) or self.name in (".", ".."):
            raise UserError(
                f"{option('name')} is that of a directory in runs/, without slashes, got {self.name!r:.80}: choose "
                f"another place with {option('run', 'DIR')}"
            )
        if self.batch_size == "auto" and self.batch_tokens:
            raise UserError(
                f"{option('batch_tokens')} says how large batches are: leave out {option('batch_size', 'auto')}"
            )
        if self.batch_size == "auto" and self.phases.batch_size:
            raise UserError(
                f"{option('phases.batch_size')} names the batches of all parts: leave out "
                f"{option('batch_size', 'auto')}"
            )
        averaged = any((self.optimizer.lookahead, self.optimizer.ema, self.optimizer.swa))
        if self.sparse.on and (averaged or self.optimizer.name.startswith("schedule_free")):
            names = ", ".join(option(f"optimizer.{name}") for name in ("lookahead", "ema", "swa"))
            raise UserError(
                f"pruning and averages of weights do not go together: leave out {names} or {option('sparse')}"
            )
        if self.patience and self.sparse.on and self.sparse.method != "fixed":
            raise UserError(
                f"{option('patience')} and pruning do not go together: masks follow a schedule over the whole run"
            )
        if not dataclasses.is_dataclass(self.task):
            kind = type(self.task).__name__
            raise UserError(
                f"{kind} must be a frozen dataclass: write @dataclasses.dataclass(frozen=True) above it"
            )
