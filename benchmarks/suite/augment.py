"""Times augmentations and three usual policies against dm_pix, augmax, torchvision and Pillow, in images a second.

    python -m benchmarks augment                                        # ten minutes
    python -m benchmarks augment --only rotate equalize --size 32 --batch 32
    python -m benchmarks augment --peers-python PATH                    # torchvision may live in another environment

Large images are measured in large batches for a few operations only. torchvision and Pillow take images one by one:
they do 32 whatever the batch, and their times are those of as many as it has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import plots
from benchmarks.augmentations import OURS, POLICIES
from benchmarks.harness import Benchmark
from benchmarks.options import Option, Options, choose_batches, choose_names, read_count, time_by
from benchmarks.peers import jax_augment, pillow_augment
from benchmarks.peers.process import Peer, Process, open_process
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, compare_with, format_ratio
from jaxaccel.core.timing import Times, Turn, compute_gain, run_repeatedly, time_in_turns

FLOAT, EIGHT = "jaxaccel", "jaxaccel, uint8"
RIVALS = {
    "dm_pix": FLOAT, "augmax": FLOAT, "torchvision": EIGHT, "torchvision, 1 thread": EIGHT, "Pillow": EIGHT
}  # fmt: skip
"""With which of ours each is compared: on the same dtype."""
ONE_BY_ONE = 32
"""Images that Pillow and torchvision do: more would only take longer."""
LARGE = ("horizontal_flip", "rotate", "color_jitter", *POLICIES)
"""Measured in large batches of large images too; of the others 32 say enough."""
Call = Callable[[], Any]


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each augmentation and shape."""
    with open_process("torch_augment", "torchvision", options) as torch:
        for size in options.size:
            for batch in options.batch:
                for name in options.only:
                    if size * batch < 224 * 256 or name in LARGE:
                        yield measure_cell(name, size, batch, torch, options)
                        jax.clear_caches()


def measure_cell(name: str, size: int, batch: int, torch: Process | None, options: Options) -> Cell:
    """Measures all contenders of one augmentation at one shape."""
    turns: dict[str, Turn] = {
        who: run_repeatedly(call) for who, call in make_contenders(name, size, batch, options.peers)
    }
    fewer, versions = min(batch, ONE_BY_ONE), {}
    if torch and name in POLICIES:
        made = torch.ask(policy=name, size=size, batch_size=fewer)
        turns |= {who: torch.turn(who) for who in made["names"]}
        versions = made["versions"]
    times = time_in_turns(turns, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    cell = {"augmentation": name, "size": size, "batch_size": batch}
    return cell | describe_times(times, batch, fewer) | {"versions": versions}


def describe_times(times: Times, batch: int, fewer: int) -> Cell:
    """Describes times as images a second and as ratios; those of `fewer` images are scaled to the batch."""
    one_by_one = {who for who in times.rounds if RIVALS.get(who) == EIGHT}
    rounds = {
        who: [s * batch / fewer for s in found] if who in one_by_one else found
        for who, found in times.rounds.items()
    }
    rows: dict[str, Any] = {who: summarize_times(found) for who, found in rounds.items()}
    for row in rows.values():
        row["images_per_second"] = 1e3 * batch / row["median_ms"]
    ratios = {
        rival: compute_gain(rounds[ours], rounds[rival]).ratio
        for rival, ours in RIVALS.items()
        if rival in rounds
    }
    return {"rounds": len(rounds[FLOAT]), "contenders": rows, "times_as_fast_as": ratios}


def make_contenders(name: str, size: int, batch: int, peers: set[str]) -> Iterator[tuple[str, Call]]:
    """Yields (name, what augments a batch) for those that run in this process."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (batch, size, size, 3)).astype(np.uint8)
    key = jax.random.key(0)
    label, index = jnp.zeros(batch, jnp.int32), jnp.arange(batch)
    ours = jax.jit(
        lambda key, image: OURS[name](key, {"image": image, "label": label, "index": index})["image"]
    )
    floats, eight = jnp.asarray(levels / np.float32(255), jnp.float32), jnp.asarray(levels)
    yield FLOAT, lambda: ours(key, floats)
    yield EIGHT, lambda: ours(key, eight)
    for rival, list_calls in (("dm_pix", jax_augment.list_dm_pix), ("augmax", jax_augment.list_augmax)):
        if rival in peers and name in (calls := list_calls(size)):
            compiled = jax.jit(jax_augment.map_images(calls[name]))
            yield rival, lambda compiled=compiled: compiled(key, floats)
    if name in POLICIES:
        one = pillow_augment.list_policies(size)[name]
        yield "Pillow", lambda: np.stack([one(rng, image) for image in levels[:ONE_BY_ONE]])


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes a table a shape: images a second, and how many times as fast as each rival."""
    shapes = dict.fromkeys((cell["size"], cell["batch_size"]) for cell in cells)
    return [
        tabulate_shape([c for c in cells if (c["size"], c["batch_size"]) == shape], *shape)
        for shape in shapes
    ]


def tabulate_shape(cells: Sequence[Cell], size: int, batch: int) -> Table:
    """Makes the table of one shape."""
    names = [name for name in (FLOAT, EIGHT, *RIVALS) if any(name in cell["contenders"] for cell in cells)]
    rivals = [name for name in names if name in RIVALS]
    rows = []
    for cell in cells:
        found, ratios = cell["contenders"], cell["times_as_fast_as"]
        speeds = [f"{found[name]['images_per_second']:,.0f}" if name in found else "" for name in names]
        rows.append([cell["augmentation"], *speeds, *(format_ratio(ratios.get(rival)) for rival in rivals)])
    compared = {
        rival: {
            c["augmentation"]: c["times_as_fast_as"][rival] for c in cells if rival in c["times_as_fast_as"]
        }
        for rival in rivals
    }
    return Table(
        f"Images a second, {size}x{size}, batch {batch}",
        ["augmentation", *names, *(f"× {rival}" for rival in rivals)], rows,
        notes=[compare_with(rival, ratios) for rival, ratios in compared.items()],
    )  # fmt: skip


def plot(cells: Sequence[Cell], machine: Mapping[str, Any], file: Path) -> None:
    """Draws how many times as fast as the fastest rival each augmentation is."""
    compared = [cell for cell in cells if cell["times_as_fast_as"]]
    names = list(dict.fromkeys(cell["augmentation"] for cell in compared))
    points: dict[str, list[tuple[float, float]]] = {}
    shapes = list(dict.fromkeys((cell["size"], cell["batch_size"]) for cell in compared))
    for cell in compared:
        size, batch = shape = cell["size"], cell["batch_size"]
        place = names.index(cell["augmentation"]) + 0.15 * (shapes.index(shape) - (len(shapes) - 1) / 2)
        point = min(cell["times_as_fast_as"].values()), place
        points.setdefault(f"{size}x{size}, batch {batch}", []).append(point)
    plots.scatter_speed_ups(file, names, points, "times as fast as the fastest rival", width=8, height=0.3)


BENCHMARK = Benchmark(
    measure, tabulate, ("augmentation", "size", "batch_size"),
    options=(
        choose_names("only", OURS, "Augmentations."),
        Option("size", "Height and width.", (32, 224), (32,), read_count, several=True, metavar="N"),
        choose_batches(32, 256, quick=(32,)),
        *time_by(9, 0.02, 0.5),
    ),
    peers=(
        Peer("dm_pix", ["dm_pix"], "pip install dm-pix"),
        Peer("augmax", ["augmax"], "pip install augmax"),
        Peer("torchvision", ["torch", "torchvision"], "pip install torch torchvision", apart=True),
    ),
    plot=plot,
)  # fmt: skip
