"""Times training steps with and without augmentation: what share of a step a policy takes.

    python -m benchmarks augment_steps

ResNet-20 on 32x32 with the CIFAR policy, ResNet-50 on 224x224 with the Inception policy, and each policy alone.
Where the range of the share includes zero, the policy costs less than steps differ among themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import optax

from benchmarks.augmentations import POLICIES
from benchmarks.harness import Benchmark
from benchmarks.options import Options, choose_names, time_by
from benchmarks.records import Cell, summarize, summarize_times
from benchmarks.tables import Table, format_span
from benchmarks.trainer import draw_batch
from jaxaccel import augment, models
from jaxaccel.core.timing import run_repeatedly, time_in_turns
from jaxaccel.models.adapter import as_model
from jaxaccel.tasks import ImageClassification
from jaxaccel.training.step import Training

NETWORKS = {"resnet20": (32, 128, 10, "CIFAR"), "resnet50": (224, 16, 1000, "Inception")}
"""Height and width, batch size, classes and policy."""


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each network."""
    for network in options.networks:
        yield measure_cell(network, options)
        jax.clear_caches()


def measure_cell(network: str, options: Options) -> Cell:
    """Measures a step without the policy, with it, and the policy alone."""
    size, batch, classes, policy = NETWORKS[network]
    data, key = draw_batch(size, batch, classes), jax.random.key(0)
    alone = jax.jit(POLICIES[policy])
    turns = {
        "none": run_repeatedly(make_step(network, data, classes, augment.chain())),
        policy: run_repeatedly(make_step(network, data, classes, POLICIES[policy])),
        "alone": run_repeatedly(lambda: alone(key, data)),
    }
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget).rounds
    share = [1 - none / some for none, some in zip(times["none"], times[policy], strict=True)]
    of_alone = [alone / some for alone, some in zip(times["alone"], times[policy], strict=True)]
    return {
        "network": network, "size": size, "batch_size": batch, "policy": policy, "rounds": len(share),
        "steps": {name: summarize_times(found) for name, found in times.items()},
        "share": summarize(share), "alone_share": summarize(of_alone),
    }  # fmt: skip


def make_step(
    network: str, data: dict[str, jax.Array], classes: int, augmentation: augment.Augmentation
) -> Callable[[], Any]:
    """Makes what takes a training step."""
    task, schedule = ImageClassification(), optax.constant_schedule(1e-3)
    factory = partial(getattr(models, network), classes=classes)
    facts = {"classes": classes, "channels": 3, "image_size": data["image"].shape[1]}
    model = as_model(factory, facts, jax.eval_shape(task.inputs, data))
    training = Training(model, task, optax.sgd(schedule), schedule, augmentation)
    state = [jax.jit(training.init)()]
    advance = jax.jit(training.lowered(training.step), donate_argnums=0)

    def take_step() -> Any:
        state[0], metrics = advance(state[0], data)
        return metrics

    return take_step


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes one line a network."""
    rows = []
    for cell in cells:
        steps, share = cell["steps"], cell["share"]
        spans = [format_span(steps[name]) for name in ("none", cell["policy"], "alone")]
        of_step = f"{share['median']:.1%} ({share['min']:.1%} to {share['max']:.1%})"
        where = f"{cell['network']}, {cell['size']}x{cell['size']}"
        rows.append(
            [
                where,
                cell["policy"],
                str(cell["batch_size"]),
                *spans,
                of_step,
                f"{cell['alone_share']['median']:.1%}",
            ]
        )
    headings = ["network", "policy", "batch", "step without, ms", "step with, ms", "policy alone, ms",
                "share of the step", "alone, of the step"]  # fmt: skip
    return [Table("Augmentation in a training step", headings, rows, words=2)]


BENCHMARK = Benchmark(
    measure, tabulate, ("network",),
    options=(choose_names("networks", NETWORKS, "Networks."), *time_by(9, 0.5, 45)),
)  # fmt: skip
