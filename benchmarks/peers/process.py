"""Peers: which take part, what to install for them, and the other Python in which some of them run."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.options import Mistake, Options

ROOT = Path(__file__).parents[2]
MISSING = "missing"
"""What `--without` calls all peers that are not installed."""
PAUSE = 0.3
"""Seconds after the turn of another process, whose threads go on spinning for a while and would slow the next one."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """What jaxaccel is compared with."""

    name: str
    packages: Sequence[str]
    """The modules that it imports."""
    install: str
    """What installs it."""
    apart: bool = False
    """Whether it runs in a process of its own, which another Python may be (``--peers-python``)."""


def choose_peers(peers: Sequence[Peer], options: Options) -> set[str]:
    """Chooses the peers that take part; raises where one is missing and not left out."""
    chosen = set()
    for peer in peers:
        if peer.name in options.without:
            continue
        python = options.peers_python if peer.apart else None
        missing = find_missing(peer.packages, python)
        if missing and MISSING not in options.without:
            elsewhere = ", name a Python that has it (--peers-python PATH)" if peer.apart else ""
            raise Mistake(
                f"{python or 'this Python'} has no {', '.join(missing)}: {peer.install} installs it{elsewhere}; "
                f"or leave {peer.name} out (--without {peer.name})"
            )
        if not missing:
            chosen.add(peer.name)
    return chosen


def find_missing(packages: Sequence[str], python: str | None = None) -> list[str]:
    """Finds the packages that a Python cannot import; None is the one that runs."""
    if python is None:
        return [name for name in packages if importlib.util.find_spec(name) is None]
    code = "import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
    try:
        done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Mistake(f"--peers-python {python} does not run: {error}") from None
    return done.stdout.split()


class Process:
    """Another Python that runs a module of `benchmarks.peers`: commands and answers are lines of JSON."""

    def __init__(self, python: str, module: str, environment: Mapping[str, str]) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{module}"], env={**os.environ, **environment, "PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **command: Any) -> Any:
        """Sends a command and waits for its answer."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"{self._process.args} ended with code {self._process.wait()}")
        return json.loads(answer)

    def turn(self, name: str) -> Callable[[int], float]:
        """Makes turns of what the process runs by that name; it is timed over there."""

        def take(count: int) -> float:
            seconds = self.ask(name=name, steps=count)
            time.sleep(PAUSE)
            return seconds

        return take

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


@contextlib.contextmanager
def open_process(
    module: str, peer: str, options: Options, environment: Mapping[str, str] | None = None
) -> Iterator[Process | None]:
    """Starts the process of a peer, with more variables, or gives None where that does not take part."""
    takes_part, python = peer in options.peers, options.peers_python or sys.executable
    process = Process(python, module, environment or {}) if takes_part else None
    try:
        yield process
    finally:
        if process:
            process.close()


def run_module(python: str, module: str, words: Sequence[str], environment: Mapping[str, str]) -> Any:
    """Runs a module of `benchmarks.peers` to its end, and reads the last line that it prints, which is JSON."""
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    done = subprocess.run(
        [python, "-m", f"benchmarks.peers.{module}", *words], env={**environment, "PYTHONPATH": path},
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])
