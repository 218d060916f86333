"""Runs everything that has to be seen on a GPU, within 9.5 minutes; it may be cut off at any moment.

    benchmarks/gpu.sh --plan           # the parts, their limits and their commands
    benchmarks/gpu.sh --quick          # all of it as small as can be, on a CPU too
    benchmarks/gpu.sh [DIRECTORY]      # on an attached GPU; $OUT names the directory where no word does

The directory gets two files that are written anew as the session goes on: summary.txt says of each part whether it was
ok, failed, cut off or skipped; results.tar.gz has logs and records, and is unpacked at the root of the repository.
"""

import contextlib
import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu_parts import SECONDS, WORK, Part, list_parts
from benchmarks.options import Mistake, Option, Options, read_options
from benchmarks.peers.process import ROOT

PACK_EVERY = 10.0
"""Seconds between two versions of results.tar.gz while a part runs."""
GRACE = 3
"""Seconds that a part has to end after its limit, before it is killed."""
LEAST = 5.0
"""Seconds below which a part does not begin."""
TOLD_TO_STOP = 143
GPU = "cuda"
"""JAX_PLATFORMS of a session: alone, since beside another name JAX passes over a GPU that it cannot use."""
RECORDS = ("benchmarks/results", "experiments/results")
OPTIONS = (
    Option("plan", "Only print the parts, their limits and commands.", flag=True),
    Option("only", "Only run these parts.", (), several=True, metavar="PART"),
    Option("data", "Directory with the original files of CIFAR-10 (default: $JAXACCEL_DATA_DIR, shared/data or "
           "../shared/data).", type=Path, metavar="DIR"),
    Option("to", "Directory of summary.txt and results.tar.gz (default: $OUT or build/gpu-session).",
           type=Path, metavar="DIR"),
)  # fmt: skip


TIMED_OUT = 124
"""The exit code of `timeout` where a command took too long."""


class Stopped(BaseException):
    """The session was told to stop."""


@dataclasses.dataclass
class Outcome:
    """What came of a part."""

    state: str = "waiting"
    seconds: float = 0.0
    says: str = ""


class Session:
    """Parts one after another, each within its limit, and the files that say how far they are."""

    def __init__(self, parts: Sequence[Part], to: Path, work: Path, environment: dict[str, str]) -> None:
        self.parts, self.to, self._work, self._environment = parts, to, work, environment
        self.outcomes = {part.name: Outcome() for part in parts}
        self._start, self._began = time.monotonic(), time.time()
        for directory in (to, work / "logs"):
            directory.mkdir(parents=True, exist_ok=True)

    def run(self) -> int:
        """Runs the parts; gives 0 where none failed or was cut off, else 1, or 143 where it was told to stop."""
        due, code = 0.0, 0
        try:
            for part in self.parts:
                due += part.limit
                self._run_part(part, due)
        except Stopped:
            code = TOLD_TO_STOP
            for outcome in self.outcomes.values():
                if outcome.state == "running":
                    outcome.state, outcome.says = "cut off", "the session was told to stop"
        finally:
            self.write()
        bad = any(outcome.state in ("failed", "cut off") for outcome in self.outcomes.values())
        return code or int(bad)

    def _run_part(self, part: Part, due: float) -> None:
        """Runs one part until `due` at the latest, in seconds from the start of the session."""
        outcome, left = self.outcomes[part.name], due - (time.monotonic() - self._start)
        needed = self.outcomes.get(part.needs)
        if needed and needed.state != "ok":
            outcome.state, outcome.says = "skipped", f"needs {part.needs}"
        elif part.without or left < LEAST:
            outcome.state, outcome.says = "skipped", part.without or "no time is left"
        else:
            outcome.state = "running"
            self.write()
            print(f"{part.name}: at most {left:.0f} s: {part.format_command()}", flush=True)
            start = time.monotonic()
            try:
                outcome.state, outcome.says = self._wait_for(part, left)
            except OSError as error:  # no process, or no place for its log
                outcome.state, outcome.says = "failed", str(error)
            finally:
                outcome.seconds = time.monotonic() - start
        self.write()
        print(f"{part.name}: {outcome.state} {outcome.says}", flush=True)

    def _wait_for(self, part: Part, seconds: float) -> tuple[str, str]:
        """Waits for the command of a part; gives its state and what is to be said of it."""
        code, file = None, self._work / "logs" / f"{part.name}.txt"
        end = time.monotonic() + seconds
        with (
            file.open("w", encoding="utf-8") as log,
            start_command(part, seconds, log, self._environment) as process,
        ):
            while code is None:
                try:
                    code = process.wait(PACK_EVERY)
                except subprocess.TimeoutExpired:
                    self.write()
        # `timeout` told it to end, whatever it said then.
        if code == TIMED_OUT or (code and time.monotonic() >= end):
            return "cut off", f"after its {seconds:.0f} s"
        return ("failed", f"with exit code {code}") if code else ("ok", "")

    def write(self) -> None:
        """Writes the summary and packs the results, each in place of the last version at once."""
        try:
            replace(self.to / "summary.txt", self.summarize().encode())
            replace(self.to / "results.tar.gz", pack_files(self.list_results(), self._work))
        except OSError as error:  # what runs is worth more than what is said of it
            print(f"warning: {error}", file=sys.stderr)

    def summarize(self) -> str:
        """Makes the text of summary.txt: a line a part."""
        width = max(map(len, self.outcomes))
        rows = [f"{n:{width}}  {o.state:8} {o.seconds:6.1f} s  {o.says}" for n, o in self.outcomes.items()]
        return "\n".join(row.rstrip() for row in rows) + "\n"

    def list_records(self) -> list[Path]:
        """Lists the records that were written since the session began."""
        found = [file for place in RECORDS for file in sorted((ROOT / place).glob("*"))]
        return [file for file in found if file.stat().st_mtime >= self._began]

    def list_results(self) -> list[Path]:
        """Lists what is worth keeping: records, logs, notes, and the small files of runs."""
        patterns = ("logs/*", "notes.jsonl", "records/*", "runs/*/*.json*")
        return self.list_records() + [f for pattern in patterns for f in sorted(self._work.glob(pattern))]


@contextlib.contextmanager
def start_command(
    part: Part, seconds: float, log: IO[str], environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a part under `timeout`, and leaves none of its processes behind."""
    limit = ["timeout", "-k", str(GRACE), f"{seconds:.1f}"]
    process = subprocess.Popen(
        [*limit, sys.executable, *part.words], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        cwd=ROOT, env=environment | dict(part.environment), process_group=0,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def pack_files(files: Sequence[Path], work: Path) -> bytes:
    """Packs files by their path from the root of the repository, or from `work` where that lies elsewhere."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for file in filter(Path.is_file, files):
            content = file.read_bytes()  # at once, since a part may be writing it
            member = tarfile.TarInfo(str(file.relative_to(ROOT if file.is_relative_to(ROOT) else work)))
            member.size, member.mtime = len(content), int(time.time())
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def replace(file: Path, content: bytes) -> None:
    """Writes a file so that it is either the old one or the new one, never a part of it."""
    draft = file.with_name(f".{file.name}")
    draft.write_bytes(content)
    draft.replace(file)


def find_data(named: Path | None) -> Path | None:
    """Finds the directory with the original files of CIFAR-10; raises where `named` is no directory."""
    if named is not None and not named.is_dir():
        raise Mistake(f"--data {named} is no directory")
    given = os.environ.get("JAXACCEL_DATA_DIR")
    places = (
        [named]
        if named
        else [*([Path(given)] if given else []), ROOT / "shared/data", ROOT / "../shared/data"]
    )
    names = ("labels.npz", "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
    found = (
        p for p in places if any((p / sub / name).is_file() for sub in ("cifar10", ".") for name in names)
    )
    return next((place.resolve() for place in found), None)


def is_prepared() -> bool:
    """Tells whether CIFAR-10 was prepared before, so that its original files are not needed."""
    directory = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    return any(directory.glob("cifar10/*/dataset_info.json"))


def format_plan(parts: Sequence[Part]) -> str:
    """Formats the parts, with the second by which each has ended at the latest."""
    lines, due = [], 0
    for part in parts:
        due += part.limit
        note = f"  # skipped: {part.without}" if part.without else ""
        lines.append(f"{part.name:16} {part.limit:4} s  until {due:3} s  {part.format_command()}{note}")
    return "\n".join([*lines, f"at most {due} of {SECONDS} s"])


def choose_parts(options: Options) -> list[Part]:
    """Chooses the parts that the options ask for; without --quick they need a GPU."""
    platform = os.environ.get("JAX_PLATFORMS") if options.quick else None
    parts = list_parts(find_data(options.data), is_prepared(), options.quick, platform or GPU)
    known = [part.name for part in parts]
    for name in options.only:
        if name not in known:
            raise Mistake(f"--only: there is no part {name}: choose of {', '.join(known)}")
    return [part for part in parts if not options.only or part.name in options.only]


def run_session(words: Sequence[str]) -> int:
    """Runs the session that the words of a command line ask for; returns its exit code."""
    if words and not words[0].startswith("-"):
        words = ["--to", *words]
    options = read_options("gpu", __doc__ or "", OPTIONS, words)
    parts = choose_parts(options)
    if options.plan:
        print(format_plan(parts))
        return 0
    work = ROOT / WORK
    shutil.rmtree(work, ignore_errors=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    if not options.quick:
        environment["JAX_PLATFORMS"] = GPU
    session = Session(parts, options.to or Path(os.environ.get("OUT") or work), work, environment)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop_session)
    code = session.run()
    print(
        f"\n{session.summarize()}\n{session.to}/results.tar.gz has logs and records: tar xzf it at the root."
    )
    records = " ".join(str(file.relative_to(ROOT)) for file in session.list_records())
    print(f"to commit: {records}" if records else "to commit: nothing")
    return code


def stop_session(number: int, frame: Any) -> None:
    """Stops the session; whoever repeats it must not cut off its last writing."""
    for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped
