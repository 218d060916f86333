"""Time from typing `python -m jaxaccel.train digits` to its first trained steps, with and without compiling.

    python benchmarks/startup.py [--rounds 3] [--recipe digits]

cold: the compile cache is empty. warm: the same command once more. All are fresh processes; the data set is
prepared beforehand. The clock stops when the first row of training metrics stands in metrics.jsonl, as
somebody who looks on would see it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record
from rich.console import Console
from rich.table import Table


def start(recipe: str, place: Path, cache: Path, flags: Sequence[str] = ()) -> dict[str, float]:
    """One run of a single epoch in a fresh process.

    Args:
      recipe: its name.
      place: holds the prepared data; the run is written there, too.
      cache: directory of the compile cache.
      flags: further ones of the command.

    Returns:
      Seconds: ``first_steps`` and ``total`` on the clock, ``compile`` as result.json has it.

    Raises:
      RuntimeError: the run failed; the message is the end of what it printed.
    """
    run = place / "run"
    command = [
        sys.executable,
        "-m",
        "jaxaccel.train",
        recipe,
        "--epochs",
        "1",
        "--run",
        str(run),
        "--overwrite",
    ]
    environment = os.environ | {"JAXACCEL_CACHE": str(cache), "TFDS_DATA_DIR": str(place / "data")}
    (run / "metrics.jsonl").unlink(missing_ok=True)
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*command, *flags], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        first = None
        while process.poll() is None:
            if first is None and _has_rows(run / "metrics.jsonl"):
                first = time.perf_counter() - begin
            time.sleep(0.005)
        total = time.perf_counter() - begin
        if process.returncode or first is None:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed: {output.read()[-2000:]}")
    compiling = json.loads((run / "result.json").read_text())["compile_seconds"]
    return {"first_steps": first, "compile": compiling, "total": total}


def _has_rows(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--rounds", type=int, default=3, help="cold and warm starts (default: 3)")
    parser.add_argument("--out", type=Path, help="directory of the JSON (default: benchmarks/results)")
    options, flags = parser.parse_known_args(argv)  # what is not known here is for the recipe

    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        # Prepares the data, and brings the packages' files into the page cache, for all alike.
        start(options.recipe, place, place / "discarded", flags)
        for turn in range(options.rounds):
            for side, rows in found.items():
                rows.append(start(options.recipe, place, place / f"cache-{turn}", flags))
                print(side, {name: round(seconds, 2) for name, seconds in rows[-1].items()}, flush=True)

    where: dict[str, Any] = record.machine()
    medians = {
        side: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for side, rows in found.items()
    }
    table = Table("start", "first steps s", "min–max", "of it compiling s", "one epoch, all s")
    for side, median in medians.items():
        span = [row["first_steps"] for row in found[side]]
        table.add_row(
            side, f"{median['first_steps']:.1f}", f"{min(span):.1f}–{max(span):.1f}",
            f"{median['compile']:.1f}", f"{median['total']:.1f}",
        )  # fmt: skip
    Console(highlight=False).print(table)
    file = record.path(f"startup-{options.recipe}", where)
    record.write(
        (options.out or file.parent) / file.name,
        {"machine": where, "recipe": options.recipe, "flags": flags, "medians": medians, "all": found},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
