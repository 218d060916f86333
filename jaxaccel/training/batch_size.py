"""The largest batch whose training step fits into the memory of the devices, found by compiling it on shapes alone."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxaccel.core import runtime
from jaxaccel.distributed.agreement import check_same_everywhere, gather_number
from jaxaccel.errors import UserError, option
from jaxaccel.training import run_directory, stream
from jaxaccel.training.feed import describe_feeds
from jaxaccel.training.programs import Programs
from jaxaccel.training.recipe import Recipe
from jaxaccel.training.run_log import max_calls_ahead
from jaxaccel.training.run_setup import RunSetup, count_parts, set_up_run

PyTree = Any
MAX_AUTO = 2**15
"""Examples: no larger batch is chosen, whatever fits."""
RESERVE = 0.1
"""Share of the free memory that is left alone, for what XLA allocates beside a program, and for fragments."""
FIRST = 4
"""Which size is compiled first, counted from the smallest: small programs say little of how memory grows."""
MARGIN = 1.1
"""A size that is estimated to need up to so much of the memory is compiled, to see whether it fits after all."""


def begin_batch_size(recipe: Recipe, mesh: Mesh, directory: Path, *, resume: bool) -> Recipe:
    """Gives `recipe` a number to begin with where its batch size is to be chosen.

    A run that goes on keeps the number that was chosen for it. A new one begins with the smallest that divides over the
    mesh and the parts to accumulate, by which all else is checked before anything is compiled.

    Args:
      recipe: the experiment.
      mesh: the devices.
      directory: of the run.
      resume: whether the run there goes on.

    Raises:
      UserError: there is no run to go on.
    """
    if recipe.batch_size != "auto":
        return recipe
    size = count_parts(recipe, mesh) * recipe.optimizer.accumulate
    if resume:
        size = run_directory.read_record(directory)["recipe"].get("batch_size", Recipe.batch_size)
    check_same_everywhere({"batch_size": size})
    return dataclasses.replace(recipe, batch_size=size)


def choose_batch_size(
    setup: RunSetup, *, trust: bool = False, limit: float | None = None
) -> tuple[RunSetup, str]:
    """Chooses the largest batch whose step fits: a power of two times that of `setup`.

    How the data is fed is decided before, by its size alone; data that is to live on the devices counts.

    Args:
      setup: the run with the smallest batch.
      trust: execute code that a teacher's run brings along, also where somebody else wrote it.
      limit: bytes that the run may take of each device; by default what is free there, less `RESERVE`. The smallest
        limit of all processes counts.

    Returns:
      The run with the chosen batch, and one line that says why.

    Raises:
      UserError: not even the smallest batch fits, or a device does not say how much memory it has.
    """
    if setup.problem.task.bounds:
        raise UserError(
            f"{option('batch_size', 'auto')} is for examples of one shape: give a number, or {option('batch_tokens')}"
        )
    smallest, examples = setup.recipe.chosen_batch_size, len(setup.problem.splits.train)
    room = float(gather_number(find_room(setup.mesh) if limit is None else limit).min())
    if jax.process_index() == 0:
        print("choosing the batch size: compiling steps to see what they need", flush=True)
    sizes, setups = list_sizes(smallest, examples), {smallest: setup}

    def measure(size: int) -> float:
        if size not in setups:
            problem = setup.problem.with_batch_size(size)
            setups[size] = set_up_run(problem, setup.mesh, setup.directory, trust=trust)
        return float(gather_number(count_bytes(setups[size])).max())

    known = find_largest(sizes, measure, room)
    chosen = max((size for size, need in known.items() if need <= room), default=0)
    if not chosen:
        raise UserError(refuse(smallest, known[smallest], room, setup.mesh))
    return setups[chosen], explain(chosen, sizes, known, room, examples)


# ---- which size ---------------------------------------------------------------------------------------------


def list_sizes(smallest: int, examples: int) -> list[int]:
    """The batch sizes to choose from: doubled from the smallest on, up to the training split and to `MAX_AUTO`."""
    doublings = int(math.log2(max(1, min(examples, MAX_AUTO) // smallest)))
    return [smallest * 2**i for i in range(doublings + 1)]


def find_largest(sizes: Sequence[int], measure: Callable[[int], float], room: float) -> dict[int, float]:
    """Measures as few of `sizes` as are needed to know the largest that needs no more than `room`.

    What is needed grows nearly linearly, so a few measurements tell where to look; only what was measured counts as
    fitting. A size that is estimated to need far more than `room` is not measured.

    Args:
      sizes: in increasing order.
      measure: gives the bytes that a size needs, infinity where that cannot be known because it is too much.
      room: bytes.

    Returns:
      The measured sizes and the bytes of each. None of them fits if the smallest does not.
    """
    known: dict[int, float] = {}
    low, high = -1, len(sizes)  # the largest that fits, and the smallest that does not
    guess = min(FIRST, high - 1)
    while low < guess < high:
        known[sizes[guess]] = measure(sizes[guess])
        low, high = (guess, high) if known[sizes[guess]] <= room else (low, guess)
        guess = min(max(count_likely(sizes, known, room) - 1, low), high - 1)
        if guess == low and high - low > 1 and (low < 0 or may_fit(sizes[low + 1], known, room)):
            guess = low + 1
    return known


def count_likely(sizes: Sequence[int], known: Mapping[int, float], room: float) -> int:
    """How many of `sizes` fit by what is known of some; half of those below them where none could be measured."""
    if any(map(math.isfinite, known.values())):
        return sum(estimate(known, size) <= room for size in sizes)
    return 1 + sum(size < min(known) for size in sizes) // 2


def may_fit(size: int, known: Mapping[int, float], room: float) -> bool:
    """Whether `size` could fit after all. What is estimated from one size alone excludes no larger one."""
    return sum(map(math.isfinite, known.values())) < 2 or estimate(known, size) <= MARGIN * room


def estimate(known: Mapping[int, float], size: int) -> float:
    """What `size` needs: on the line through the two largest sizes known, of a single one through 0.

    The latter is too much for larger sizes, since parameters do not grow with the batch.
    """
    if size in known:
        return known[size]
    finite = sorted(x for x in known if math.isfinite(known[x]))
    if len(finite) == 1:
        return known[finite[0]] * size / finite[0]
    a, b = finite[-2:]
    slope = max(0.0, (known[b] - known[a]) / (b - a))
    return known[b] + slope * (size - b)


# ---- what a size needs --------------------------------------------------------------------------------------


def find_room(mesh: Mesh) -> float:
    """Bytes that a run may take of each device of this process.

    Raises:
      UserError: a device does not say how much memory it has.
    """
    found = {device: runtime.free_memory(device) for device in mesh.local_devices}
    silent = [device.device_kind for device, free in found.items() if free is None]
    if silent:
        raise UserError(
            f"{silent[0]} does not say how much memory it has: give {option('batch_size')} a number"
        )
    return (1 - RESERVE) * min((free for free in found.values() if free is not None), default=math.inf)


def count_bytes(setup: RunSetup) -> float:
    """Bytes of one device's memory while a run trains, infinity where the compiler finds that they are too many.

    That is what the compiler counts for the call that takes most, the splits that are held out, and the batches that
    wait on the device for their turn.

    Raises:
      UserError: the compiler does not count.
    """
    feeds = describe_feeds(setup)
    programs = Programs(setup, feeds)
    call = find_heaviest_call(setup, programs)
    try:
        step = programs.compile_call(call)
        peak = need_of(step)
        # A batch that is accumulated in parts is evaluated whole.
        if setup.recipe.optimizer.accumulate > 1:
            evaluation = programs.compile_evaluation()
            peak = max(peak, need_of(evaluation) - argument_bytes(evaluation) + argument_bytes(step))
    except jax.errors.JaxRuntimeError as error:  # TPUs, whose compiler places each array
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf
    item = feeds.train.item_shape(setup.batch_shape(setup.plan.form(call.start)), len(call))
    waiting = stream.AHEAD + max_calls_ahead(setup.mesh)
    return peak + sum(local_bytes(feed.arrays) for feed in feeds.held_out) + waiting * local_bytes(item)


def find_heaviest_call(setup: RunSetup, programs: Programs) -> range:
    """The longest call of the phase whose steps compute most: that with the largest images."""
    plan = setup.plan
    timetable = plan.timetable(setup.recipe.eval_every, programs.steps_per_call, 0)
    heaviest = max(plan.forms, key=lambda form: (setup.flops[form], form.image_size))
    return max((call for call in timetable.calls if plan.form(call.start) == heaviest), key=len)


def need_of(program: jax.stages.Compiled) -> int:
    """Bytes of one device that an execution takes.

    Raises:
      UserError: the compiler does not count them.
    """
    need = runtime.peak_bytes(program)
    if need is None:
        raise UserError(
            f"the compiler for these devices does not count memory: give {option('batch_size')} a number"
        )
    return need


def argument_bytes(program: jax.stages.Compiled) -> int:
    """Bytes of one device that the arguments of an execution take."""
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes if memory else 0


def local_bytes(shapes: PyTree) -> int:
    """Bytes of one device that arrays of these shapes and shardings take."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(shapes))


# ---- what is told -------------------------------------------------------------------------------------------


def explain(chosen: int, sizes: Sequence[int], known: Mapping[int, float], room: float, examples: int) -> str:
    """Says what was chosen and why."""
    figures = amounts_text(known[chosen], room)
    if chosen == sizes[-1]:
        most = f"within the {examples:,} training examples" if examples < 2 * chosen else "that is chosen"
        return f"batch size {chosen}: the largest {kind_of(sizes)} {most} (its step takes {figures})"
    larger = sizes[sizes.index(chosen) + 1]
    need, about = estimate(known, larger), "" if larger in known else "about "
    more = f"would need {about}{amounts_text(need)}" if math.isfinite(need) else "does not compile for it"
    return f"batch size {chosen}: the largest {kind_of(sizes)} whose step fits ({figures}; {larger} {more})"


def refuse(smallest: int, need: float, room: float, mesh: Mesh) -> str:
    """Says that not even the smallest batch fits, and what to do."""
    takes = f"takes {amounts_text(need)}" if math.isfinite(need) else "takes more than there is"
    kind = mesh.devices.flat[0].device_kind
    return (
        f"a batch of {smallest}, the smallest, does not fit: its step {takes} of each {kind}, which has room for "
        f"{amounts_text(room)}: take a smaller model, {option('remat', 'nothing_saveable')}, "
        f"{option('precision', 'bfloat16')}, or split parameters with {option('mesh.fsdp')}"
    )


def kind_of(sizes: Sequence[int]) -> str:
    """What all `sizes` are."""
    odd = sizes[0] // (sizes[0] & -sizes[0])
    return "power of two" if odd == 1 else f"power of two times {odd}"


def amounts_text(*amounts: float) -> str:
    """``61.2 of 79.1 GB``, in the unit that fits the last."""
    unit, scale = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if amounts[-1] >= pair[1]), ("kB", 1e3))
    numbers = [f"{x / scale:,.0f}" if x >= 99.95 * scale else f"{x / scale:.3g}" for x in amounts]
    return f"{' of '.join(numbers)} {unit}"
