"""Writes a trained model as a bundle, which runs without its source and without training code.

RUN is the directory of a run, of its best replica (runs/NAME/best), or of a compressed model (runs/NAME-compressed). A
bundle is a directory, or one zip where --output ends with .zip. It holds the weights as they are (int8 stays int8), a
program for each platform and batch size, and manifest.json, which says what the model takes and gives, what was
measured, and the digest of every file. Each program is compared with the model before it is written. For instance:

  python -m jaxaccel.export runs/digits
  python -m jaxaccel.predict bundles/digits four.png
  python -m jaxaccel.export runs/digits-compressed --batch 1,8,64 --backend cpu,cuda --output digits.zip
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from jaxaccel import cli
from jaxaccel.deployment.bundle import Bundle
from jaxaccel.deployment.exporting import ExportSettings, export
from jaxaccel.deployment.fastest_engine import XLA, EngineTime, choose_engines
from jaxaccel.deployment.signing import sign_bundle
from jaxaccel.errors import UserError, option

LISTS = ("--to", "--batch", "--backend")
"""Flags whose values may be joined by commas."""


@dataclasses.dataclass(frozen=True)
class ExportOptions(ExportSettings):
    """What to export, and where to."""

    output: Path | None = None
    """Write to this directory, or to this file where it ends with .zip [default: bundles/NAME]."""
    name: str = ""
    """Call the model this [default: as its directory is called]."""
    sign: Path | None = None
    """Sign it with this private key, in PEM; JAXACCEL_KEY_PASSWORD has its password, where it is encrypted."""
    certificate: Path | None = None
    """Sign it with this certificate of the key, in PEM, so that whoever trusts its issuer can verify it."""
    chain: tuple[Path, ...] = ()
    """Certificates, in PEM, that lead from that one to a root."""
    overwrite: bool = False
    """Replace a bundle that is there."""
    untimed: bool = False
    """Leave out timing the engines; then XLA computes it."""
    which: str = "best"
    """Take this checkpoint: best, last or the number of a step; of a compressed model the name of a step,
    by default the last."""
    trust: bool = False
    """Execute code that the run brings along, also where somebody else wrote it."""
    traceback: bool = False
    """Show Python's traceback when something goes wrong."""

    def check_values(self) -> None:
        """Checks that certificates come with a key."""
        super().check_values()
        if self.sign is None and (self.certificate or self.chain):
            raise UserError(f"{option('certificate')} signs together with its key: {option('sign', 'KEY')}")


def write_bundle(run: Path, options: ExportOptions) -> Bundle:
    """Exports a run as the command does, and says what came of it.

    Raises:
      UserError: as of `ja.export`.
    """
    place = run.resolve()
    name = options.name or (place.parent if place.name == "best" else place).stem
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("exporting", total=None)
        return export(
            run, options.output or Path("bundles") / name, to=options.to, batch=options.batch,
            backend=options.backend, name=name, overwrite=options.overwrite,
            which=int(options.which) if options.which.isdecimal() else options.which, trust=options.trust,
            timed=not options.untimed, advance=lambda number, of: progress.update(bar, completed=number, total=of),
        )  # fmt: skip


def tabulate_programs(bundle: Bundle) -> Table:
    """The programs of a bundle, for a terminal."""
    table = Table("platform", "examples", "length", "bytes", "difference from the model")
    for column in table.columns[1:]:
        column.justify = "right"
    for entry in bundle.manifest.programs:
        examples = str(entry.batch) if entry.batch else f"{entry.least} or more"
        difference = "not run here" if entry.difference is None else f"{entry.difference:.1e}"
        table.add_row(
            entry.backend, examples, str(entry.length or "-"),
            f"{bundle.manifest.files[entry.file]['bytes']:,}", "none" if entry.difference == 0 else difference,
        )  # fmt: skip
    return table


def tabulate_engines(bundle: Bundle) -> Table:
    """What each engine takes, for a terminal; the fastest of each case is marked."""
    rows = [EngineTime.from_json(values) for values in bundle.manifest.receipts.get("engines", ())]
    cases = list(dict.fromkeys((row.cores, row.length, row.batch) for row in rows))
    names = list(dict.fromkeys(row.engine for row in rows))
    table = Table("cores", "examples", "length", *names)
    for column in table.columns:
        column.justify = "right"
    for cores, length, batch in cases:
        own = {
            row.engine: row for row in rows if (row.cores, row.length, row.batch) == (cores, length, batch)
        }
        chosen = choose_engines(list(own.values()), [batch], cores)[batch]
        cells = [_write_time(own[name], name == chosen) if name in own else "-" for name in names]
        table.add_row(str(cores), str(batch), str(length or "-"), *cells)
    return table


def _write_time(row: EngineTime, chosen: bool) -> str:
    gain = "" if row.engine == XLA else f", {row.gain:.2f}x"
    text = f"{row.milliseconds:.3g} ms{gain}"
    return f"[bold]{text}[/]" if chosen else text


def split_commas(words: Sequence[str]) -> list[str]:
    """Splits the values of `LISTS` at their commas: ``--batch 1,16`` is ``--batch 1 16``."""
    found: list[str] = []
    inside = False
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            inside = flag in LISTS
            found += [flag, *filter(None, value.split(","))] if inside and equals else [word]
        else:
            found += filter(None, word.split(",")) if inside else [word]
    return found


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code.

    Raises:
      UserError: something is wrong with the words, the run or the place to write to.
    """
    words = list(argv)
    run = words.pop(0) if words and not words[0].startswith("-") else None
    if run is None and not {"-h", "--help"} & set(words):
        raise UserError("name a run: python -m jaxaccel.export runs/digits (--help shows all)")
    options = cli.parse_options(
        "python -m jaxaccel.export RUN", __doc__ or "", ExportOptions(), split_commas(words)
    )
    assert run is not None
    bundle = write_bundle(Path(run), options)
    if options.sign is not None:
        sign_bundle(bundle.place, options.sign, certificate=options.certificate, chain=options.chain)
    console = Console(highlight=False, soft_wrap=True)
    console.print(tabulate_programs(bundle))
    if reason := bundle.manifest.receipts.get("without_onnx"):
        console.print(escape(f"no ONNX model: {reason}"))
    for engine, reason in bundle.manifest.receipts.get("onnx", {}).get("refused", {}).items():
        console.print(escape(f"{engine} is not used: {reason}"))
    if "engines" in bundle.manifest.receipts:
        console.print(tabulate_engines(bundle))
    size = sum(int(fact["bytes"]) for fact in bundle.manifest.files.values())
    signed = f", signed with {options.sign}" if options.sign else ""
    console.print(escape(f"{bundle.place}: {len(bundle.manifest.files)} files, {size:,} bytes{signed}"))
    return 0


cli.make_callable(__name__, "jaxaccel.deployment.exporting", "export")

if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
