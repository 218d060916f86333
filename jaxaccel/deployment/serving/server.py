"""A server: its ports, its models loaded and warmed up, and its end, which answers all that was asked before."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jaxaccel.deployment.serving.logs import log_event
from jaxaccel.deployment.serving.metrics import Metrics
from jaxaccel.deployment.serving.ports import make_grpc, make_http
from jaxaccel.deployment.serving.registry import Registry
from jaxaccel.deployment.serving.server_options import ServerOptions
from jaxaccel.deployment.serving.service import Service
from jaxaccel.deployment.serving.sources import Load, Repository, Source
from jaxaccel.deployment.serving.tracing import Span, no_span

if TYPE_CHECKING:
    import grpc.aio
    import uvicorn


class Server:
    """Models behind both protocols. It is made and used in one event loop.

    Args:
      options: what it is to be.
      load: opens a model.
      span: makes a span around each inference.

    Raises:
      UserError: a package is missing, or there is no such repository.
    """

    def __init__(self, options: ServerOptions, load: Load, span: Span = no_span) -> None:
        self._options = options
        metrics, repository = Metrics(), Repository(options.repository)
        self.registry = Registry(load, options.engine, options.batching, repository, metrics)
        self.service = Service(self.registry, metrics, options.limits, options.token, span)
        self.http_port = self.grpc_port = 0
        self._http: uvicorn.Server | None = None
        self._grpc: grpc.aio.Server | None = None
        self._http_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Opens the ports. Until `load_models` is done, only the liveness is answered.

        Raises:
          UserError: a package is missing, or a port is taken.
        """
        options = self._options
        self._http, sockets = make_http(self.service, options)
        self.http_port = sockets[0].getsockname()[1]
        self._http_task = asyncio.create_task(self._http.serve(sockets))
        self._grpc, self.grpc_port = make_grpc(self.service, options)
        await self._grpc.start()

    async def load_models(self, sources: list[Source]) -> None:
        """Loads the models, one after another, and is ready.

        Raises:
          UserError: one cannot be loaded.
        """
        for source in sources:
            served = await self.registry.add(source)
            signature = served.signature
            print(
                f"serving {served.name}, version {served.version}: {', '.join(map(_told, signature.inputs))} -> "
                f"{', '.join(map(_told, signature.outputs))}, by {served.engine.name}",
                flush=True,
            )
        # What was imported and loaded stays: a collection that looks through it all would hold up requests.
        gc.collect()
        gc.freeze()
        self.registry.ready = True

    async def stop(self) -> None:
        """Takes no more requests, answers those under way, and closes the ports."""
        self.registry.ready = False
        if self._grpc is not None:
            await asyncio.gather(self._stop_http(), self._grpc.stop(self._options.drain_seconds))
        else:
            await self._stop_http()
        try:
            async with asyncio.timeout(self._options.drain_seconds + 1):
                await self.registry.close()
        except TimeoutError:
            log_event("abandoned", logging.WARNING, reason="an engine did not return")

    async def _stop_http(self) -> None:
        if self._http is not None and self._http_task is not None:
            self._http.should_exit = True
            await self._http_task


async def serve(
    options: ServerOptions, sources: list[Source], load: Load, span: Span = no_span,
    ready: Callable[[Server], None] = lambda server: None,
) -> None:  # fmt: skip
    """Serves until SIGTERM or Ctrl-C, then drains. A second signal ends at once.

    Args:
      options: what the server is to be.
      sources: the models.
      load: opens one.
      span: makes a span around each inference.
      ready: is called when the server is ready.

    Raises:
      UserError: a model cannot be loaded, a port is taken, or a package is missing.
    """
    server = Server(options, load, span)
    with signaled() as told:
        try:
            await server.start()
            if await _load_unless(told, server, sources):
                log_event("ready", http_port=server.http_port, grpc_port=server.grpc_port)
                ready(server)
                await told.wait()
            log_event("draining", seconds=options.drain_seconds)
        finally:
            await server.stop()
        log_event("ended")


async def _load_unless(told: asyncio.Event, server: Server, sources: list[Source]) -> bool:
    """Loads the models; False where the server was told to end before it was ready."""
    loading = asyncio.create_task(server.load_models(sources))
    ending = asyncio.create_task(told.wait())
    await asyncio.wait({loading, ending}, return_when=asyncio.FIRST_COMPLETED)
    ending.cancel()
    if loading.done():
        loading.result()
        return True
    loading.cancel()
    await asyncio.wait({loading})
    return False


@contextlib.contextmanager
def signaled() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set; the second of them ends the process."""
    told, loop = asyncio.Event(), asyncio.get_running_loop()

    def tell() -> None:
        if told.is_set():
            os._exit(1)
        told.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, tell)
    try:
        yield told
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _told(spec: Any) -> str:
    return f"{spec.name} {spec}"
