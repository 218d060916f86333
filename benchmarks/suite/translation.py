"""Times a Transformer that translates: training steps and decoding beside PyTorch, by length and depth.

    python -m benchmarks translation
    python -m benchmarks translation --tables lengths --lengths 16 32
    python -m benchmarks translation --tables decoding --batches 1 --without torch

The model is `translator_tiny` over 5,000 tokens, as in the recipe multi30k_en_de: dropout of 0.3, labels smoothed by
0.1, AdamW, gradients clipped. A training step has 2,048 positions, as there, of which an eighth is padding. PyTorch's
is `torch.nn.Transformer` in eager float32, without the dropout that it has in attention and between dense layers,
which ours has not; both start from the same weights, and it ends where the loss or the norm of its gradient, without
dropout, differs by more than 1e-4. jaxaccel's step is the trainer's, which also guards against non-finite values;
neither averages weights. XLA's forms are the same step without `ja.retarget`. PyTorch's threads wait asleep
(`OMP_WAIT_POLICY=PASSIVE`): where another process has a core, spinning makes its steps many times as long.

Decoding writes as many tokens as the sources have places, whatever they are, greedily or with a beam of 5; a search
counts the tokens of its best hypothesis. `nn.Transformer` keeps nothing between tokens: it computes each with all
those before it. So PyTorch takes part twice: as it is, and with a decoder of the same layers that keeps keys and
values, which its users have to write. It ends where these three find other tokens. PyTorch's search knows no end of a
sentence, which ours looks for at each token: it does a little less. bfloat16 and int8 are the same loop behind
`ja.bfloat16`, and behind `ja.int8` with quantized weights.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from benchmarks.beside_torch import (
    choose_ways,
    make_turns,
    open_session,
    tabulate_times,
    time_ways,
)
from benchmarks.harness import Benchmark, set_up_trainer
from benchmarks.options import Option, Options, choose_names, read_count, time_by
from benchmarks.peers.process import Peer, Process, open_process
from benchmarks.records import Cell, summarize_times
from benchmarks.sentences import Sizes, draw_pairs
from benchmarks.tables import Table, compare_with, format_ratio, format_short
from benchmarks.translation_programs import PRECISIONS, Decoder, make_translation_model
from jaxaccel.core.timing import Turn, run_repeatedly, time_in_turns

QUICK = {"width": 16, "heads": 2, "hidden": 16}
"""Sizes under ``--quick``."""
WAITS_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}
"""PyTorch's threads do not spin while they wait, which makes steps ten times as long where a core is busy."""
DEPTH = 4
"""Blocks of the encoder and of the decoder, where lengths differ."""
LENGTH = 32
"""Tokens of a sentence, where depths differ."""
DECODINGS = {"greedy": "greedily", "beam": "with a beam"}
RIVALS = {"cached": "PyTorch with a cache", "whole": "PyTorch without"}
"""Ways of PyTorch to decode."""


def measure(options: Options) -> Iterator[Cell]:
    """Yields a cell for each length and each depth; of decoding, for each batch size as well."""
    small: dict[str, Any] = QUICK if options.quick else {}
    with open_process("torch_translation", "torch", options, WAITS_ASLEEP) as torch:
        for table in options.tables:
            for length, depth in list_sizes(table, options):
                sizes = Sizes(depth=depth, **small)
                if table != "decoding":
                    yield measure_training(table, sizes, length, torch, options)
                    jax.clear_caches()
                    continue
                for batch_size in options.batches:
                    yield measure_decoding(sizes, length, batch_size, torch, options)
                    jax.clear_caches()


def list_sizes(table: str, options: Options) -> list[tuple[int, int]]:
    """Lists (length, depth) of a table's cells."""
    by_length = [(length, 1 if options.quick else DEPTH) for length in options.lengths]
    by_depth = [(options.lengths[0] if options.quick else LENGTH, depth) for depth in options.depths]
    return {"lengths": by_length, "depths": by_depth}.get(table) or list(dict.fromkeys(by_length + by_depth))


def measure_training(table: str, sizes: Sizes, length: int, torch: Process | None, options: Options) -> Cell:
    """Measures training steps of one model at one length."""
    batch_size = max(options.positions // length, 1)
    ours = make_translation_model(sizes, draw_pairs(length, batch_size))
    turns = make_turns(ours, {"batch": [ours.batch]}, ("train",), choose_ways(options))
    theirs = open_session(ours, sizes, torch, options, length=length, batch_size=batch_size)
    return {
        "table": table, "model": sizes.model, "length": length, "depth": sizes.depth, "batch_size": batch_size,
        "programs": {"train": time_ways("train", "batch", turns, theirs, torch, options)},
        "versions": theirs.get("versions", {}),
    }  # fmt: skip


def measure_decoding(
    sizes: Sizes, length: int, batch_size: int, torch: Process | None, options: Options
) -> Cell:
    """Measures greedy decoding and a search of one model at one length."""
    ours = Decoder(sizes, draw_pairs(length, batch_size), options.beam)
    asked = {"length": length, "batch_size": batch_size, "beam": options.beam}
    theirs = open_session(ours, sizes, torch, options, **asked)
    programs = {}
    for what in DECODINGS:
        contenders: dict[str, Turn] = {
            precision: run_repeatedly(ours.make_decoding(what, precision)) for precision in options.precisions
        }
        if torch:
            contenders |= {way: torch.turn(f"eager, {what}_{way}, batch") for way in RIVALS}
        programs[what] = time_decoding(contenders, batch_size * length, options)
    return {
        "table": "decoding", "model": sizes.model, "length": length, "depth": sizes.depth, "batch_size": batch_size,
        "beam": options.beam, "programs": programs, "versions": theirs.get("versions", {}),
    }  # fmt: skip


def time_decoding(contenders: dict[str, Turn], tokens: int, options: Options) -> Cell:
    """Times all ways to decode so many tokens; ratios say how many times as fast the first one is."""
    times = time_in_turns(contenders, rounds=options.rounds, seconds=options.seconds, budget=options.budget)
    rows, (first, *others) = {}, contenders
    for way, found in times.rounds.items():
        row = summarize_times(found)
        rows[way] = row | {"tokens_per_second": 1e3 * tokens / row["median_ms"]}
    ratios = {way: times.gain(first, way).ratio for way in others}
    return {"times": rows, "times_as_fast_as": ratios, "rounds": len(times.rounds[first])}


def tabulate(cells: Sequence[Cell]) -> list[Table]:
    """Makes tables of training by length and by depth, and one of each way to decode, where there are such cells."""
    found = []
    for table, (column, title) in {
        "lengths": ("length", "by length"),
        "depths": ("depth", f"by depth, {LENGTH} tokens"),
    }.items():
        if some := [cell for cell in cells if cell["table"] == table]:
            found.append(tabulate_times(f"Milliseconds of a training step, {title}", column, "train", some))
    if some := [cell for cell in cells if cell["table"] == "decoding"]:
        found += [tabulate_decoding(what, some) for what in DECODINGS]
    return found


def tabulate_decoding(what: str, cells: Sequence[Cell]) -> Table:
    """Makes one line a cell."""
    named = [*PRECISIONS, *RIVALS]
    headings = ["length", "depth", "batch", *(RIVALS.get(way, way) for way in named),
                *(f"× {name}" for name in RIVALS.values())]  # fmt: skip
    rows, compared = [], {way: {} for way in RIVALS}
    for cell in cells:
        found, ratios = cell["programs"][what]["times"], cell["programs"][what]["times_as_fast_as"]
        speeds = [format_short(found[way]["tokens_per_second"]) if way in found else "" for way in named]
        sizes = [str(cell[name]) for name in ("length", "depth", "batch_size")]
        rows.append([*sizes, *speeds, *(format_ratio(ratios.get(way)) for way in RIVALS)])
        for way in RIVALS:
            if way in ratios:
                compared[way]["length {}, depth {}, batch {}".format(*sizes)] = ratios[way]
    notes = [compare_with(RIVALS[way], found) for way, found in compared.items() if found]
    how = f"{DECODINGS[what]} of {cells[0]['beam']}" if what == "beam" else DECODINGS[what]
    return Table(f"Tokens a second, decoded {how}; × is that of float32", headings, rows, notes=notes)


BENCHMARK = Benchmark(
    measure, tabulate, ("table", "length", "depth", "batch_size"), part="table", prepare=set_up_trainer,
    options=(
        choose_names("tables", ("lengths", "depths", "decoding"), "Tables."),
        choose_names("precisions", PRECISIONS, "Precisions of decoding; ratios are those of the first."),
        Option("lengths", "Lengths in tokens.", (16, 32, 64), (8,), read_count, several=True, metavar="N"),
        Option("depths", "Blocks of encoder and decoder.", (2, 4, 8), (1,), read_count, several=True, metavar="N"),
        Option("positions", "Positions of a training step.", 2048, 32, read_count, metavar="N"),
        Option("batches", "Sentences decoded at a time.", (1, 32), (2,), read_count, several=True, metavar="N"),
        Option("beam", "Hypotheses of a search.", 5, 2, read_count, metavar="N"),
        Option("compile", "Let torch.compile take part in training; it compiles for minutes.", False, flag=True),
        *time_by(7, 0.3, 12),
    ),
    peers=(Peer("torch", ["torch", "numpy"], "pip install torch", apart=True),),
)  # fmt: skip
