"""The command line: ``python -m benchmarks [NAME [options] | tables [--check] | gpu [options]]``."""

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.options import Mistake

SUITE = Path(__file__).parent / "suite"
PAGES = "tables"
SESSION = "gpu"
USAGE = """\
python -m benchmarks                    lists the benchmarks
python -m benchmarks NAME [options]     runs one, shows its table and writes its record; --help teaches
python -m benchmarks NAME --quick       shows within a minute or so that all works, and writes nothing
python -m benchmarks tables [--check]   writes docs/benchmarks/*.md from the records, or says which are stale
python -m benchmarks gpu [options]      runs all that needs a GPU, within 9.5 minutes of one; --plan shows it
"""


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code, which is 2 for what the user can mend."""
    try:
        return run_command(words)
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2


def run_command(words: Sequence[str]) -> int:
    """Lists the benchmarks where none is named, else runs the one that is."""
    if not words or words[0] in ("-h", "--help"):
        print(list_benchmarks())
        return 0
    name, *options = words
    if name == PAGES:
        from benchmarks.pages import write_pages

        return write_pages(options)
    if name == SESSION:
        from benchmarks.gpu_session import run_session

        return run_session(options)
    check_name(name)
    from benchmarks.harness import run_benchmark

    return run_benchmark(name, importlib.import_module(f"benchmarks.suite.{name}"), options)


def find_benchmarks() -> dict[str, str]:
    """Finds the benchmarks by name, each with the first line of its docstring; imports none of them."""
    found = {}
    for file in sorted(SUITE.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[file.stem] = text.partition("\n")[0]
    return found


def list_benchmarks() -> str:
    """Lists the usage and the benchmarks as text."""
    found = find_benchmarks()
    width = max(map(len, found))
    return "\n".join([USAGE, *(f"  {name:{width}}  {sentence}" for name, sentence in found.items())])


def check_name(name: str) -> None:
    """Raises where no benchmark has that name; the message names the nearest one."""
    known = [*find_benchmarks(), PAGES, SESSION]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "python -m benchmarks lists them"
        raise Mistake(f"there is no benchmark {name}: {hint}")
