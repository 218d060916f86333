"""A server: its ports, its models loaded and warmed up, and its end, which answers all that was asked before."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval

from jaxaccel.core.options import NonNegative, Options
from jaxaccel.deployment.bundle import EngineName
from jaxaccel.deployment.serving.batching import BatchOptions
from jaxaccel.deployment.serving.http_routes import make_app
from jaxaccel.deployment.serving.limits import Limits
from jaxaccel.deployment.serving.logs import log_event
from jaxaccel.deployment.serving.metrics import Metrics
from jaxaccel.deployment.serving.registry import Registry
from jaxaccel.deployment.serving.service import Service
from jaxaccel.deployment.serving.sources import Load, Repository, Source
from jaxaccel.deployment.serving.tracing import Span, no_span
from jaxaccel.deployment.serving.ui import make_routes
from jaxaccel.errors import UserError, option

if TYPE_CHECKING:
    import grpc.aio
    import uvicorn

Port = Annotated[int, Interval(ge=0, le=65535)]
BACKLOG = 2048
"""Connections that may wait to be accepted."""


@dataclasses.dataclass(frozen=True)
class ServerOptions(Options):
    """What a server is to be."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every network that the machine is in."""
    port: Port = 8000
    """Port of HTTP; 0 is any that is free."""
    grpc_port: Port = 8001
    """Port of gRPC; 0 is any that is free."""
    engine: EngineName = "auto"
    """What computes the models."""
    batching: BatchOptions = BatchOptions()
    """How requests are joined."""
    limits: Limits = Limits()
    """What clients may ask for."""
    repository: Path | None = None
    """Let clients load and unload the models in this directory."""
    token: str = ""
    """What clients have to show, but for the health of the server; empty where everybody may ask."""
    tls_cert: Path | None = None
    """File of the certificates, for both ports."""
    tls_key: Path | None = None
    """File of the key of the certificate."""
    ui: bool = False
    """Serve the page for people at /."""
    drain_seconds: NonNegative = 30
    """Seconds that requests may take which are under way when the server is told to end."""

    def check_values(self) -> None:
        """Checks that a certificate has its key, and that both can be read."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UserError(f"{option('tls_cert')} and {option('tls_key')} come together: give both")
        for name in ("tls_cert", "tls_key"):
            path = getattr(self, name)
            if path is not None and not os.access(path, os.R_OK):
                raise UserError(f"{option(name, path)} cannot be read")

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """The certificate and its key."""
        return (self.tls_cert, self.tls_key) if self.tls_cert and self.tls_key else None


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


def make_http(service: Service, options: ServerOptions) -> "tuple[uvicorn.Server, list[socket.socket]]":
    """uvicorn's server and its open port.

    Raises:
      UserError: a package is missing, or the port is taken.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise UserError("serving needs more packages: pip install 'jaxaccel[serve]'") from error

    class SilentServer(uvicorn.Server):
        """uvicorn's server, which leaves the signals to `signaled`."""

        def capture_signals(self) -> Any:
            return contextlib.nullcontext()

    app = make_app(service, make_routes(service) if options.ui else ())
    certificate, key = options.tls or (None, None)
    try:
        config = uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, backlog=BACKLOG,
            limit_concurrency=options.limits.connections, timeout_keep_alive=75,
            timeout_graceful_shutdown=round(options.drain_seconds), ssl_certfile=certificate, ssl_keyfile=key,
        )  # fmt: skip
        config.load()
    except OSError as error:  # of the module ssl
        raise UserError(
            f"{option('tls_cert')} and {option('tls_key')} cannot be used: {error.strerror}"
        ) from error
    return SilentServer(config), [open_socket(options.host, options.port, "port")]


def open_socket(host: str, port: int, name: str) -> socket.socket:
    """A socket that listens.

    Args:
      host: the address.
      port: 0 for any that is free.
      name: of the option that chose the port.

    Raises:
      UserError: the address is none of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named. With it an answer waits 40 ms for the
    # client's acknowledgment of its first half.
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise UserError(
            f"{host}:{port} cannot be opened ({error.strerror}): choose another {option(name)}"
        ) from error
    return opened


def make_grpc(service: Service, options: ServerOptions) -> "tuple[grpc.aio.Server, int]":
    """gRPC's server and the number of its open port.

    Raises:
      UserError: a package is missing, or the port is taken.
    """
    try:
        from jaxaccel.deployment.serving import grpc_service
    except ImportError as error:
        raise UserError("serving needs more packages: pip install 'jaxaccel[serve]'") from error
    # gRPC itself would write into our standard error why it cannot open the port.
    open_socket(options.host, options.grpc_port, "grpc_port").close()
    server = grpc_service.make_server(service)
    host = f"[{options.host}]" if ":" in options.host else options.host
    return server, grpc_service.open_port(server, f"{host}:{options.grpc_port}", options.tls)


def _told(spec: Any) -> str:
    return f"{spec.name} {spec}"
