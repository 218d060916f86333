"""The body of a request of HTTP, read within its limits of bytes and time, and a client that leaves."""

import asyncio
import zlib
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from jaxaccel.deployment.serving.faults import LEFT, TOO_LARGE, TOO_SLOW, Refusal
from jaxaccel.deployment.serving.limits import Limits, Loan

if TYPE_CHECKING:
    from starlette.requests import Request

T = TypeVar("T")
_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What `zlib` calls the encodings of HTTP."""


class ClientLeft(Refusal):
    """The client closed its connection before it had an answer."""

    def __init__(self) -> None:
        super().__init__("the client left", LEFT)


async def read_body(request: "Request", limits: Limits, loan: Loan) -> bytes:
    """The body of a request, decompressed.

    Args:
      request: whose body is read.
      limits: what it may have.
      loan: of the bytes that all requests may hold together.

    Raises:
      Refusal: it has too many bytes, arrives too slowly, or is compressed in a way that is not known.
      ClientLeft: the client left.
    """
    from starlette.requests import ClientDisconnect

    announced = request.headers.get("content-length", "0")
    if announced.isascii() and announced.isdecimal() and len(announced) < 20:
        limits.check_body(int(announced))
        # Before a byte is read: a client that is refused now has cost no memory.
        loan.grow_to(int(announced))
    pieces, size = [], 0
    try:
        async with asyncio.timeout(limits.read_seconds):
            async for piece in request.stream():
                size += len(piece)
                limits.check_body(size)
                loan.grow_to(size)
                pieces.append(piece)
    except TimeoutError:
        raise Refusal(f"the body did not arrive within {limits.read_seconds:g} seconds", TOO_SLOW) from None
    except ClientDisconnect:
        raise ClientLeft from None
    return _decompress(b"".join(pieces), request.headers.get("content-encoding", "identity"), limits, loan)


async def while_connected(request: "Request", work: Coroutine[Any, Any, T]) -> T:
    """Does `work` for a client, and stops as soon as that has left.

    Raises:
      ClientLeft: it has.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_for_leaving(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def _wait_for_leaving(request: "Request") -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _decompress(body: bytes, encoding: str, limits: Limits, loan: Loan) -> bytes:
    if encoding == "identity":
        return body
    if encoding not in _WINDOWS:
        raise Refusal("the body may be compressed by gzip or deflate, and by nothing else")
    inflater = zlib.decompressobj(_WINDOWS[encoding])
    try:
        found = inflater.decompress(body, limits.body_bytes)
    except zlib.error:
        raise Refusal(f"the body is not compressed by {encoding}") from None
    if inflater.unconsumed_tail:
        raise Refusal(f"decompressed, the body has more than {limits.body_mb:g} MB", TOO_LARGE)
    if not inflater.eof or inflater.unused_data:
        raise Refusal(f"the body is not compressed by {encoding}")
    loan.grow_to(len(body) + len(found))
    return found
