"""What a client may ask for: `Limits`, names, and bytes that all requests together may hold (`ByteBudget`)."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator

from jaxaccel.core.options import Count, Options, Positive
from jaxaccel.deployment.serving.faults import BUSY, TOO_LARGE, Refusal

MAX_NAME = 128
"""Characters of a name of a model, a tensor or a request."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


@dataclasses.dataclass(frozen=True)
class Limits(Options):
    """What one request, and all of them together, may take."""

    body_mb: Positive = 64
    """Megabytes of the body of a request, after it was decompressed."""
    json_mb: Positive = 8
    """Megabytes of JSON in a request. Tensors that are larger must be sent as binary data."""
    pending_mb: Positive = 512
    """Megabytes of the bodies of all requests of HTTP that are not answered yet."""
    elements: Count = 64_000_000
    """Elements of a tensor."""
    inputs: Count = 64
    """Tensors in a request."""
    read_seconds: Positive = 30
    """Seconds in which a body must have arrived."""
    connections: Count = 4096
    """Connections of HTTP, and calls of gRPC, at a time."""

    @property
    def body_bytes(self) -> int:
        """Bytes of a body."""
        return int(self.body_mb * 1e6)

    @property
    def json_bytes(self) -> int:
        """Bytes of JSON in a body."""
        return int(self.json_mb * 1e6)

    def check_body(self, size: int) -> None:
        """Checks the size of a body in bytes.

        Raises:
          Refusal: it is too large.
        """
        if size > self.body_bytes:
            raise Refusal(f"the body has more than the {self.body_mb:g} MB that it may have", TOO_LARGE)


class ByteBudget:
    """Counts the bytes that requests hold, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """Takes so many bytes more.

        Raises:
          Refusal: there are not so many left.
        """
        if self.held + size > self.limit:
            raise Refusal("the server holds as many bytes of requests as it may: ask again later", BUSY)
        self.held += size

    @contextlib.contextmanager
    def lend(self) -> Iterator["Loan"]:
        """A loan that is given back at the end."""
        loan = Loan(self)
        try:
            yield loan
        finally:
            self.held -= loan.size


class Loan:
    """The bytes of a budget that one request holds."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.size = 0

    def grow_to(self, size: int) -> None:
        """Holds `size` bytes, if it held fewer.

        Raises:
          Refusal: the budget has not so many left.
        """
        if size > self.size:
            self._budget.take(size - self.size)
            self.size = size


def is_name(text: str) -> bool:
    """Whether `text` may name a model: letters, digits, dots, dashes and underscores, and no path."""
    return len(text) <= MAX_NAME and _NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether `text` may name a version: a whole number of at least 1, written plainly."""
    return re.fullmatch(r"[1-9][0-9]{0,17}", text, re.ASCII) is not None


def is_request_id(text: str) -> bool:
    """Whether `text` may stand in logs as the id of a request."""
    return _REQUEST_ID.fullmatch(text) is not None
