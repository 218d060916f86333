"""Times recognizers of speech: training steps, inference and streams beside PyTorch, by length and depth.

    python -m benchmarks speech
    python -m benchmarks speech --tables lengths --models conformer_ctc --lengths 1 4 --compile
    python -m benchmarks speech --tables depths streams --without torch

The models are `lstm_ctc` (two layers of 128 in each direction, as in the recipe spoken_sequences) and `conformer_ctc`
(four blocks of width 144), which spell in 28 symbols, with dropout and AdamW whose gradients are clipped. Both sides
start from the same weights and from the same log-mel features of 40 bands, which are computed before. PyTorch's models
are written as its users do: `nn.LSTM` of packed sequences, `scaled_dot_product_attention` under a padding mask,
`F.ctc_loss`. It ends where the loss or the norm of its gradient, without dropout, differs by more than 1e-4; of
more than 100 outputs the norm may differ by 1e-3, because both sides' sums over alignments are rounded to float32.
jaxaccel's step is the trainer's, which also guards against non-finite values; XLA's forms are the same step without
`ja.retarget`. A batch of one length holds sounds of more than half of it, with 12 symbols a second. A stream is one
sound that an `lstm_ctc` of one direction hears chunk by chunk; the state is kept between chunks, and each chunk's
logits are waited for. It ends where the logits behind eight chunks differ by more than 1e-4 of the largest. The
real-time factor is the time of a chunk by its length, without its features, and below 1 where a stream can be followed.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from benchmarks.beside_torch import (
    WHAT,
    choose_ways,
    make_turns,
    open_session,
    tabulate_steps,
    tabulate_times,
    time_ways,
)
from benchmarks.harness import Benchmark, set_up_trainer
from benchmarks.options import Option, Options, choose_names, read_count, time_by
from benchmarks.peers.process import Peer, Process, open_process
from benchmarks.records import Cell
from benchmarks.sounds import DEPTH, HOP_MS, SUBSAMPLING, ModelName, Sizes, draw_sounds
from benchmarks.speech_programs import Stream, make_speech_model
from benchmarks.tables import Table, format_short
from jaxaccel.core.timing import run_repeatedly

WIDTH: dict[ModelName, int] = {"lstm_ctc": 128, "conformer_ctc": 144}
QUICK = {"width": 16, "features": 8, "heads": 2, "window": 3, "filters": 4}
"""Sizes under ``--quick``."""
DEPTHS_AT = 4
"""Seconds of the sounds that models of several depths hear."""
CLOSE_UP_TO = 100
"""Outputs up to which norms of gradients agree as closely as losses."""
LONG_AGREES = {"gradient": 1e-3}
"""Largest difference where there are more. CTC adds logarithms of hundreds, which float32 rounds: of 200 and of 800
outputs, either side's norm is 1e-4 to 3e-4 from that of CTC in float64."""
OUTPUT_MS = SUBSAMPLING["lstm_ctc"] * HOP_MS
"""Milliseconds of an output of a stream."""


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each model and length, each model and depth, and each length of a chunk."""
    with open_process("torch_speech", "torch", options) as torch:
        for table in options.tables:
            if table == "streams":
                for chunk_ms in options.chunks:
                    yield measure_stream(chunk_ms, torch, options)
                continue
            for model in options.models:
                for seconds, depth in list_sizes(table, model, options):
                    yield measure_length(table, make_sizes(model, depth, options), seconds, torch, options)
                    jax.clear_caches()


def list_sizes(table: str, model: ModelName, options: Options) -> list[tuple[int, int]]:
    """Lists (seconds, depth) of a table's cells."""
    if table == "lengths":
        return [(seconds, 1 if options.quick else DEPTH[model]) for seconds in options.lengths]
    return [(1 if options.quick else DEPTHS_AT, depth) for depth in options.depths]


def make_sizes(model: ModelName, depth: int, options: Options, **more: Any) -> Sizes:
    """Makes the sizes of a model: small ones where that is to be quick."""
    return Sizes(model, depth, **{"width": WIDTH[model], **(QUICK if options.quick else {}), **more})


def measure_length(table: str, sizes: Sizes, seconds: int, torch: Process | None, options: Options) -> Cell:
    """Measures training steps and inference of one model at one length."""
    ours = make_speech_model(sizes, draw_sounds(seconds, options.batch))
    turns = make_turns(ours, {"batch": [ours.batch]}, WHAT, choose_ways(options))
    outputs = seconds * 1000 / HOP_MS / SUBSAMPLING[sizes.model]
    theirs = open_session(ours, sizes, torch, options, LONG_AGREES if outputs > CLOSE_UP_TO else None)
    return {
        "table": table, "model": sizes.model, "seconds": seconds, "depth": sizes.depth, "batch_size": options.batch,
        "programs": {what: time_ways(what, "batch", turns, theirs, torch, options) for what in WHAT},
        "versions": theirs.get("versions", {}),
    }  # fmt: skip


def measure_stream(chunk_ms: int, torch: Process | None, options: Options) -> Cell:
    """Measures what a chunk of a stream takes."""
    sizes = make_sizes("lstm_ctc", DEPTH["lstm_ctc"], options, both=False)
    ours = Stream(sizes, chunk_ms)
    turns = {
        (way, "stream", "batch"): run_repeatedly(ours.make_listening(way == "jaxaccel"))
        for way in choose_ways(options)
    }
    theirs = open_session(ours, sizes, torch, options)
    found = time_ways("stream", "batch", turns, theirs, torch, options)
    factors = {way: row["median_ms"] / chunk_ms for way, row in found["times"].items()}
    return {
        "table": "streams", "model": sizes.model, "seconds": chunk_ms / 1000, "depth": sizes.depth, "batch_size": 1,
        "programs": {"stream": found | {"real_time_factors": factors}}, "versions": theirs.get("versions", {}),
    }  # fmt: skip


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes tables of lengths and of depths, and one of streams, where there are such cells."""
    at = next((cell["seconds"] for cell in cells if cell["table"] == "depths"), DEPTHS_AT)
    titles = {"lengths": ("seconds", "by length"), "depths": ("depth", f"by depth, {at} s")}
    tables = tabulate_steps(cells, titles)
    streams = [cell for cell in cells if cell["table"] == "streams"]
    return [*tables, tabulate_streams(streams)] if streams else tables


def tabulate_streams(cells: Sequence[Cell]) -> Table:
    """Makes one line a length of a chunk."""
    table = tabulate_times("Milliseconds of a chunk of a stream", "seconds", "stream", cells)
    ways = {"jaxaccel": "jaxaccel", "eager": "PyTorch"}
    rows = []
    for row, cell in zip(table.rows, cells, strict=True):
        factors = cell["programs"]["stream"]["real_time_factors"]
        rows.append([*row, *(format_short(factors.get(way)) for way in ways)])
    headings = [*table.headings, *(f"{name} real-time factor" for name in ways.values())]
    return Table(table.title, headings, rows, notes=table.notes)


def read_chunk(text: str) -> int:
    """Reads the milliseconds of a chunk, which are whole outputs."""
    chunk_ms = read_count(text)
    if chunk_ms % OUTPUT_MS:
        raise argparse.ArgumentTypeError(f"{text!r} is no multiple of the {OUTPUT_MS} ms of an output")
    return chunk_ms


BENCHMARK = Benchmark(
    measure, tabulate, ("table", "model", "seconds", "depth"), part="table", prepare=set_up_trainer,
    options=(
        choose_names("tables", ("lengths", "depths", "streams"), "Tables."),
        choose_names("models", DEPTH, "Models, by length and by depth."),
        Option("lengths", "Seconds of sound.", (1, 4, 8, 16), (1,), read_count, several=True, metavar="S"),
        Option("depths", "Layers or blocks.", (1, 2, 4, 8), (1,), read_count, several=True, metavar="N"),
        Option("chunks", "Milliseconds of a chunk.", (160, 320), (160,), read_chunk, several=True, metavar="MS"),
        Option("batch", "Sounds in a batch.", 16, 2, read_count, metavar="N"),
        Option("compile", "Let torch.compile take part, which compiles for a minute a cell.", False, flag=True),
        *time_by(7, 0.3, 20),
    ),
    peers=(Peer("torch", ["torch", "numpy"], "pip install torch", apart=True),),
)  # fmt: skip
