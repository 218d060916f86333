"""Processes that end with the one that started them, however that ends."""

import os
import threading
import time

POLL_SECONDS = 1.0
"""Between two looks at whether the parent is there."""


def end_with(parent: int) -> None:
    """Ends this process, without a word, soon after process `parent`, which started it, has ended.

    A killed process can tell its children nothing. On Linux alone the kernel would, and only of the thread that started
    them.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="watch the parent", daemon=True).start()
