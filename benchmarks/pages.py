"""The pages of docs/benchmarks, which are made from the records alone: ``python -m benchmarks tables``."""

import dataclasses
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark
from benchmarks.options import RESULTS, Option, read_options
from benchmarks.records import name_file, read_record
from benchmarks.tables import Table, write_markdown

PAGES = Path(__file__).parents[1] / "docs" / "benchmarks"
LINKS = "../../benchmarks/results"
WRITTEN = (
    "<!-- Written by `python -m benchmarks tables` from the records in benchmarks/results: do not edit. -->"
)
TEACHES = "Writes docs/benchmarks/*.md from the records in benchmarks/results. It measures nothing."
CHECK = "Write nothing, and end with code 1 where a page is not what the records say."


@dataclasses.dataclass(frozen=True)
class Topic:
    """A page."""

    file: str
    title: str
    benchmarks: Sequence[str]


TOPICS = (
    Topic(
        "training-step", "A training step beside its peers", ("train_step", "rolled", "allocator", "startup")
    ),
    Topic("precision", "Inference in narrower types", ("precision", "precision_layers")),
    Topic("lowerings", "Other forms of operations", ("retargeted", "recurrent", "lowerings", "kernels")),
    Topic("gpu", "Compiled for GPUs", ("compiled",)),
    Topic("models", "Models", ("models", "models_scan")),
    Topic("replicas", "Several runs at once", ("replicas",)),
    Topic("augmentation", "Augmentation", ("augment", "augment_steps")),
    Topic("compression", "Smaller networks", ("channels", "sparse_step")),
    Topic("freezing", "Frozen parameters", ("freezing",)),
    Topic("text", "Classifiers of texts", ("text",)),
    Topic("speech", "Recognizers of speech", ("speech",)),
    Topic("engines", "Engines of a bundle", ("engines",)),
    Topic("serving", "A server under load", ("serving",)),
    Topic("translation", "Translation", ("translation",)),
)
Kept = tuple[Path, dict[str, Any]]
"""A file and the record that it holds."""


def write_pages(words: Sequence[str]) -> int:
    """Writes the pages, or with ``--check`` names those that are stale; returns the exit code."""
    options = read_options("tables", TEACHES, [Option("check", CHECK, False, flag=True)], words, quick=False)
    pages = render_pages()
    stale = find_stale(pages)
    if options.check:
        print(
            "\n".join(f"{file} is not what the records say" for file in stale) or "all pages are up to date"
        )
        return int(bool(stale))
    PAGES.mkdir(parents=True, exist_ok=True)
    for file in stale:
        file.write_text(pages[file], encoding="utf-8")
    print("\n".join(f"written to {file}" for file in stale) or "all pages were up to date")
    return 0


def find_stale(pages: Mapping[Path, str]) -> list[Path]:
    """Finds the pages that are not written, or written otherwise."""
    return [
        file for file, text in pages.items() if not file.exists() or file.read_text(encoding="utf-8") != text
    ]


def render_pages() -> dict[Path, str]:
    """Renders all pages from the records, by file."""
    kept = find_records()
    pages = {PAGES / f"{topic.file}.md": render_topic(topic, kept) for topic in TOPICS}
    return pages | {PAGES / "index.md": render_index()}


def find_records() -> dict[str, list[Kept]]:
    """Finds the records by benchmark. A file of another name than its benchmark gives it is a copy, and left out."""
    found: dict[str, list[Kept]] = {}
    for file in sorted(RESULTS.glob("*.json")):
        record = read_record(file)
        part = load_benchmark(record["benchmark"])[1].part
        value = str(record["cells"][0][part]) if part else ""
        if file.name == name_file(record["benchmark"], value, record["machine"]):
            found.setdefault(record["benchmark"], []).append((file, record))
    return found


def load_benchmark(name: str) -> tuple[str, Benchmark]:
    """Loads a benchmark, and what its module teaches."""
    module = importlib.import_module(f"benchmarks.suite.{name}")
    return inspect.getdoc(module) or "", module.BENCHMARK


def render_index() -> str:
    """Renders the list of the pages."""
    lines = [f"- [{topic.title}]({topic.file}.md): {', '.join(topic.benchmarks)}" for topic in TOPICS]
    about = (
        "Figures of all benchmarks, with the device, versions, date and command of each. Ratios above 1 say that "
        "jaxaccel is that many times as fast. "
        "[benchmarks/README.md](../../benchmarks/README.md) says how they are measured."
    )
    return "\n".join([WRITTEN, "# Benchmarks", "", about, "", *lines, ""])


def render_topic(topic: Topic, kept: Mapping[str, Sequence[Kept]]) -> str:
    """Renders one page: a section for each benchmark."""
    sections = [render_section(name, kept.get(name, ())) for name in topic.benchmarks]
    return "\n\n".join([f"{WRITTEN}\n# {topic.title}", *sections]) + "\n"


def render_section(name: str, kept: Sequence[Kept]) -> str:
    """Renders one benchmark: what it measures, then its tables for each device, or that it has no record."""
    taught, benchmark = load_benchmark(name)
    sentence, *rest = taught.split("\n\n")
    prose = [" ".join(paragraph.split()) for paragraph in rest if not paragraph.startswith("    ")]
    devices: dict[str, list[Kept]] = {}
    for entry in sort_parts(benchmark, kept):
        devices.setdefault(describe_device(entry[1]["machine"]), []).append(entry)
    lines = [f"## {name}", sentence, *prose]
    if not kept:
        lines.append(f"No record yet: `python -m benchmarks {name}` makes one.")
    for device, entries in devices.items():
        cells = [cell for _, record in entries for cell in record["cells"]]
        lines += [f"### {name} on {device}", *map(render_table, benchmark.tabulate(cells))]
        lines += [
            f"![{name}]({LINKS}/{file.stem}.png)" for file, _ in entries if file.with_suffix(".png").exists()
        ]
        lines.append(render_origins(entries))
    return "\n\n".join(lines)


def sort_parts(benchmark: Benchmark, kept: Sequence[Kept]) -> list[Kept]:
    """Sorts records as the benchmark lists what they are of."""
    order = [choice for option in benchmark.options for choice in option.choices]

    def place(entry: Kept) -> int:
        value = entry[1]["cells"][0][benchmark.part] if benchmark.part else ""
        return order.index(value) if value in order else len(order)

    return sorted(kept, key=place)


def describe_device(machine: Mapping[str, Any]) -> str:
    """Describes where figures were taken."""
    return f"{machine['device_kind']} ({machine['cpu']}, {machine['cores']} cores)"


def render_table(table: Table) -> str:
    """Renders a table under its title."""
    return f"**{table.title}**\n\n{write_markdown(table)}"


def render_origins(kept: Sequence[Kept]) -> str:
    """Renders a table of where figures come from: record, date, versions, load and command."""
    rows = []
    for file, record in kept:
        machine = record["machine"]
        versions = machine["versions"] | record["cells"][-1].get("peers", {})
        shown = ("python", "jax", "flax", "torch", "onnxruntime", "qwix", "torchvision", "torch-pruning")
        stack = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
        rows.append(
            [f"[{file.stem}]({LINKS}/{file.name})", machine["date"][:10], stack, str(machine["load_average"]),
             record["ratios"], f"`{record['command']}`"]
        )  # fmt: skip
    headings = ["record", "date", "versions", "load before", "ratios", "command"]
    return write_markdown(Table("", headings, rows, words=len(headings)))
