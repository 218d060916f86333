"""Times classifiers of texts: training steps and inference beside PyTorch, by length and depth, and in buckets.

    python -m benchmarks text
    python -m benchmarks text --tables lengths --models text_cnn bilstm --lengths 16 64 --compile
    python -m benchmarks text --tables depths epochs --without torch

The models are `text_cnn`, `text_encoder_ti` (rotary positions) and `bilstm` over 8,000 token ids, with dropout and
AdamW. PyTorch's are written as its users do: `scaled_dot_product_attention` under a padding mask, `nn.LSTM` of packed
sequences. Both start from the same weights, and it ends where the loss or the norm of its gradient, without dropout,
differs by more than 1e-4. jaxaccel's step is the trainer's, which also computes the norm of the gradient; XLA's forms
are the same step without `ja.retarget`. A batch of one length holds texts of more than half of it. An epoch has texts
as long as the questions of TREC, all filled up to the longest one or put into the buckets that the trainer chooses;
what it counts are texts, not padding.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from benchmarks.beside_torch import (
    RIVALS,
    WHAT,
    choose_ways,
    make_turns,
    open_session,
    tabulate_steps,
    time_ways,
)
from benchmarks.harness import Benchmark, set_up_trainer
from benchmarks.options import Option, Options, choose_names, read_count, time_by
from benchmarks.peers.process import Peer, Process, open_process
from benchmarks.records import Cell, summarize_times
from benchmarks.tables import Table, format_ratio, format_short
from benchmarks.text_programs import as_batch, make_text_model
from benchmarks.texts import Sizes, draw_batch, draw_epoch, draw_lengths
from jaxaccel.core.timing import Turn, time_in_turns
from jaxaccel.data.buckets import MAX_BUCKETS, choose_bounds

MODELS = {"text_cnn": "text_cnn", "text_encoder_ti": "text_encoder", "bilstm": "bilstm"}
QUICK = {"width": 16, "heads": 2, "features": 8, "filters": 4}
"""Sizes under ``--quick``."""
DEPTHS_AT = 32
"""Tokens of the texts that encoders of several depths read."""


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each model and length, each depth, and each model's epoch."""
    small: dict[str, Any] = QUICK if options.quick else {}
    with open_process("torch_texts", "torch", options) as torch:
        for table in options.tables:
            if table == "depths":
                for depth in options.depths:
                    sizes = Sizes("text_encoder", depth=depth, **small)
                    yield measure_length("depths", "encoder", sizes, DEPTHS_AT, torch, options)
                continue
            for model in options.models:
                sizes = Sizes(MODELS[model], **small)  # pyright: ignore[reportArgumentType]
                if table == "epochs":
                    yield measure_epoch(model, sizes, torch, options)
                    continue
                for length in options.lengths:
                    yield measure_length("lengths", model, sizes, length, torch, options)
                    jax.clear_caches()


def measure_length(
    table: str, model: str, sizes: Sizes, length: int, torch: Process | None, options: Options
) -> Cell:
    """Measures training steps and inference of one model at one length."""
    batch = draw_batch(length, options.batch)
    ours = make_text_model(sizes, batch)
    turns = make_turns(ours, {"batch": [ours.batch]}, WHAT, choose_ways(options))
    theirs = open_session(ours, sizes, torch, options, length=length, batch_size=options.batch)
    cell = {
        "table": table,
        "model": model,
        "length": length,
        "depth": sizes.depth,
        "batch_size": options.batch,
    }
    programs = {what: time_ways(what, "batch", turns, theirs, torch, options) for what in WHAT}
    return cell | {"programs": programs, "versions": theirs.get("versions", {})}


def measure_epoch(model: str, sizes: Sizes, torch: Process | None, options: Options) -> Cell:
    """Measures an epoch of training, in buckets and filled up to the longest text."""
    lengths = draw_lengths(options.examples)
    buckets = [int(bound) for bound in choose_bounds(lengths, 2 if options.quick else MAX_BUCKETS)]
    bounds = {"buckets": buckets, "longest": buckets[-1:]}
    epochs = {name: draw_epoch(options.examples, options.batch, some) for name, some in bounds.items()}
    ours = make_text_model(sizes, next(iter(epochs.values()))[0])
    drawn = {"bounds": bounds, "examples": options.examples, "batch_size": options.batch}
    theirs = open_session(ours, sizes, torch, options, **drawn)
    batches = {name: [as_batch(texts) for texts in epoch] for name, epoch in epochs.items()}
    turns = make_turns(ours, batches, ("train",), ("jaxaccel",))
    contenders: dict[str, Turn] = {f"jaxaccel, {name}": turns["jaxaccel", "train", name] for name in epochs}
    for way in theirs.get("ways", ()):
        assert torch
        contenders |= {f"{way}, {name}": torch.turn(f"{way}, train, {name}") for name in epochs}
    times = time_in_turns(contenders, rounds=options.rounds, budget=options.budget)
    rows = {}
    for name, found in times.rounds.items():
        epoch = epochs[name.split(", ")[1]]
        texts, places = len(epoch) * options.batch, sum(batch.token.size for batch in epoch)
        row = summarize_times(found)
        rows[name] = row | {
            "texts_per_second": 1e3 * texts / row["median_ms"], "batches": len(epoch),
            "padding": 1 - sum(int(batch.length.sum()) for batch in epoch) / places,
        }  # fmt: skip
    return {
        "table": "epochs", "model": model, "length": bounds["longest"][0], "depth": sizes.depth,
        "batch_size": options.batch, "bounds": buckets, "contenders": rows, "versions": theirs.get("versions", {}),
    }  # fmt: skip


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes a table of lengths, one of depths and one of epochs, where there are such cells."""
    titles = {"lengths": ("length", "by length"), "depths": ("depth", f"by depth, {DEPTHS_AT} tokens")}
    tables = tabulate_steps(cells, titles)
    epochs = [cell for cell in cells if cell["table"] == "epochs"]
    return [*tables, tabulate_epochs(epochs)] if epochs else tables


def tabulate_epochs(cells: Sequence[Cell]) -> Table:
    """Makes one line a contender."""
    headings = ["model", "contender", "filled up to", "batches", "padding", "texts/s", "seconds", "× longest"]
    rows = []
    for cell in cells:
        for name, row in cell["contenders"].items():
            way, epoch = name.split(", ")
            speed = {e: cell["contenders"][f"{way}, {e}"]["texts_per_second"] for e in ("buckets", "longest")}
            filled = cell["bounds"] if epoch == "buckets" else cell["bounds"][-1:]
            rows.append(
                [cell["model"], RIVALS.get(way, way), " ".join(map(str, filled)), str(row["batches"]),
                 f"{row['padding']:.0%}", format_short(row["texts_per_second"]), format_short(row["median_ms"] / 1e3),
                 format_ratio(speed["buckets"] / speed["longest"] if epoch == "buckets" else None)]
            )  # fmt: skip
    return Table("An epoch of training over texts as long as TREC's", headings, rows, words=3)


BENCHMARK = Benchmark(
    measure, tabulate, ("table", "model", "length", "depth"), part="table", prepare=set_up_trainer,
    options=(
        choose_names("tables", ("lengths", "depths", "epochs"), "Tables."),
        choose_names("models", MODELS, "Models, by length and over an epoch."),
        Option("lengths", "Lengths in tokens.", (16, 32, 64, 128, 256), (8,), read_count, several=True, metavar="N"),
        Option("depths", "Blocks of the encoder.", (1, 2, 4, 8), (1,), read_count, several=True, metavar="N"),
        Option("batch", "Texts in a batch.", 64, 4, read_count, metavar="N"),
        Option("examples", "Texts of an epoch.", 2048, 16, read_count, metavar="N"),
        Option("compile", "Let torch.compile take part, which compiles for a minute a cell.", False, flag=True),
        *time_by(7, 0.3, 20),
    ),
    peers=(Peer("torch", ["torch", "numpy"], "pip install torch", apart=True),),
)  # fmt: skip
