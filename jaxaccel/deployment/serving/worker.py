"""A thread for an event loop: `Worker` runs what would hold the loop up, one call after another."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """A thread that runs functions. A function that never returns does not keep the process from its end.

    The pools of `concurrent.futures` do: Python waits for their threads.

    Args:
      name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """What `function` gives for `args`. If the caller is cancelled, the call goes on and its result is dropped."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                result = function(*args)
            except BaseException as error:
                told, value = future.set_exception, error
            else:
                told, value = future.set_result, result
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_tell, future, told, value)

        self._jobs.put(job)
        return await future

    def end(self) -> None:
        """Ends the thread once it has run what was given to it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # its arrays are free while the thread waits for the next


def _tell(future: asyncio.Future[Any], told: Callable[[Any], None], value: Any) -> None:
    if not future.done():
        told(value)
