"""Why a request is not answered: `Refusal`, with its status of HTTP and of gRPC."""

import dataclasses
from typing import Final

from jaxaccel.errors import UserError


@dataclasses.dataclass(frozen=True)
class Kind:
    """A reason, as each of the protocols tells it."""

    http: int
    """Status of HTTP (RFC 9110)."""
    grpc: str
    """Name of a `grpc.StatusCode`."""


BAD: Final = Kind(400, "INVALID_ARGUMENT")
NO_TOKEN: Final = Kind(401, "UNAUTHENTICATED")
FORBIDDEN: Final = Kind(403, "PERMISSION_DENIED")
NOT_FOUND: Final = Kind(404, "NOT_FOUND")
TOO_SLOW: Final = Kind(408, "DEADLINE_EXCEEDED")
TOO_LARGE: Final = Kind(413, "INVALID_ARGUMENT")
LEFT: Final = Kind(499, "CANCELLED")
"""Nobody is told: the client has gone. The log has the number that nginx gives it."""
BUSY: Final = Kind(503, "UNAVAILABLE")
LATE: Final = Kind(504, "DEADLINE_EXCEEDED")
BROKEN: Final = Kind(500, "INTERNAL")

RETRY_SECONDS: Final = 1
"""After so many seconds a client of a busy server may ask again."""


class Refusal(UserError):
    """A request that is not answered; the message says to the client what to do instead.

    Args:
      message: one line, without anything of the server's insides.
      kind: which reason it is.
    """

    def __init__(self, message: str, kind: Kind = BAD) -> None:
        super().__init__(message)
        self.kind = kind


def as_refusal(error: Exception) -> Refusal:
    """The refusal that `error` is to a client: an engine's `UserError` is a bad request, all else a broken server."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UserError):
        return Refusal(str(error), BAD)
    return Refusal("the server failed; its log says why, at this request's id", BROKEN)
