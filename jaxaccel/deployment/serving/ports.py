"""The two ports of a server: uvicorn's for HTTP and gRPC's."""

import contextlib
import socket
from typing import TYPE_CHECKING, Any

from jaxaccel.deployment.serving.http_routes import make_app
from jaxaccel.deployment.serving.server_options import ServerOptions
from jaxaccel.deployment.serving.service import Service
from jaxaccel.deployment.serving.ui import make_routes
from jaxaccel.errors import UserError, option

if TYPE_CHECKING:
    import grpc.aio
    import uvicorn

BACKLOG = 2048
"""Connections that may wait to be accepted."""


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
