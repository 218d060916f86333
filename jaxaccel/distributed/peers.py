"""The processes of one run watch each other, so that none waits for ever for one that has gone.

Process 0 holds a connection to each other one, over which both send a byte now and then. Where a connection breaks, or
is silent for too long, all that are left say in one line who has gone, and end at once: a collective operation in
which they wait would otherwise hold them for minutes, and end in a signal that names nobody.
"""

import contextlib
import os
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 20.0
"""Without a byte for so long a process counts as gone: it was stopped, or its machine is not reached any more."""
_CONNECT_SECONDS = 20.0
_GRACE_SECONDS = 0.2
"""For a message of this process's own, where all end for the same reason."""
_BEAT, _BYE, _GONE = b"b", b"q", b"x"
_HELLO = struct.Struct("!16sI")


@contextlib.contextmanager
def watch_peers(lost: Callable[[int], None] | None = None) -> Iterator[None]:
    """Watches the other processes of the run while the body runs; nothing to do for a process alone.

    All processes must enter it at the same place. Where a connection cannot be made (a firewall), JAX's own heartbeat
    remains.

    Args:
      lost: called in a thread with the number of a process that has gone; by default this process ends.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = Watch(lost or _end)
    watch.start()
    yield
    watch.leave()  # not where something was raised: then the others are to know


class Watch:
    """The connections of this process."""

    def __init__(self, lost: Callable[[int], None]) -> None:
        self._lost = lost
        self._links: dict[int, socket.socket] = {}
        self._left: set[int] = set()
        self._over = threading.Event()
        self._told = threading.Lock()

    def start(self) -> None:
        """Makes the connections, and goes on in threads."""
        listener = socket.create_server(("", 0), backlog=256) if jax.process_index() == 0 else None
        address, token = _meeting_place(listener)
        if listener is not None:
            threading.Thread(target=self._welcome, args=(listener, token), daemon=True).start()
        else:
            with contextlib.suppress(OSError):
                link = socket.create_connection(address, timeout=_CONNECT_SECONDS)
                link.sendall(_HELLO.pack(token, jax.process_index()))
                self._keep(0, link)
        threading.Thread(target=self._beat, daemon=True).start()

    def leave(self) -> None:
        """Says good-bye: from here on nobody is missed."""
        self._over.set()
        for link in list(self._links.values()):
            with contextlib.suppress(OSError):
                link.sendall(_BYE)

    def _welcome(self, listener: socket.socket, token: bytes) -> None:
        while not self._over.is_set():
            link, _ = listener.accept()
            try:
                link.settimeout(_CONNECT_SECONDS)
                said, rank = _HELLO.unpack(_read_whole(link, _HELLO.size))
                if secrets.compare_digest(said, token):
                    self._keep(rank, link)
                    continue
            except (OSError, struct.error):
                pass
            link.close()

    def _keep(self, rank: int, link: socket.socket) -> None:
        link.settimeout(SILENCE_SECONDS)
        self._links[rank] = link
        threading.Thread(target=self._listen, args=(rank, link), daemon=True).start()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            for link in list(self._links.values()):
                with contextlib.suppress(OSError):  # whoever listens notices
                    link.sendall(_BEAT)

    def _listen(self, rank: int, link: socket.socket) -> None:
        while True:
            try:
                said = link.recv(1)
                gone = struct.unpack("!I", _read_whole(link, 4))[0] if said == _GONE else rank
            except (OSError, struct.error):  # silent for too long, or broken
                said, gone = b"", rank
            if said == _BYE or self._over.is_set():
                self._left.add(rank)
                return
            if said in (b"", _GONE):
                self._tell(gone)
                return

    def _tell(self, gone: int) -> None:
        """Tells the others and this process, once."""
        if not self._told.acquire(blocking=False):
            return
        for rank, link in self._links.items():
            if rank not in (gone, *self._left):
                with contextlib.suppress(OSError):
                    link.sendall(_GONE + struct.pack("!I", gone))
        time.sleep(_GRACE_SECONDS if gone else 0)  # JAX aborts within moments of the end of process 0
        if not self._over.is_set():
            self._lost(gone)


def _meeting_place(listener: socket.socket | None) -> tuple[tuple[str, int], bytes]:
    """Host and port of process 0, and the token by which it knows the others."""
    room = np.zeros(300, np.uint8)
    if listener is not None:
        host = os.environ.get("JAX_COORDINATOR_ADDRESS", "").rpartition(":")[0] or socket.gethostname()
        data = secrets.token_bytes(16) + struct.pack("!H", listener.getsockname()[1]) + host.encode()[:280]
        room[: len(data)] = list(data)
    data = bytes(np.asarray(multihost_utils.broadcast_one_to_all(room)))
    host = data[18:].rstrip(b"\0").decode()
    return (host, struct.unpack("!H", data[16:18])[0]), data[:16]


def _read_whole(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := link.recv(size - len(data))):
        data += more
    return data


def _end(gone: int) -> None:
    # What else is written (JAX's own complaints of the same) comes later than this line, or never.
    print(
        f"error: process {gone} of {jax.process_count()} has gone: see its own output, then start all of them again "
        "with --resume", file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(2)


def wait_for_the_cause() -> None:
    """Waits until it would be known that somebody has gone; this process ends meanwhile, if somebody has."""
    time.sleep(2.0)
