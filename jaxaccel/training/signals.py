"""Being told to stop."""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a question to ask between calls, while it is entered; once.

    Several processes must all stop at the same step: JAX's own preemption service agrees on one, and catches
    SIGTERM itself.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def asked(self, call: int) -> bool:
        """Whether to stop after this call, the `call`-th of this process; to be asked after each one."""
        if jax.process_count() > 1:
            self._asked |= multihost_utils.reached_preemption_sync_point(call)
        return self._asked

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True
        self.__exit__()
