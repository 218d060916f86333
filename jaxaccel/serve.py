"""Serves models over the Open Inference Protocol v2: ``python -m jaxaccel.serve BUNDLE...``.

BUNDLE is a directory that was exported. NAME=BUNDLE serves it under that name, NAME:VERSION=BUNDLE as that version.
Clients exist already: NVIDIA's tritonclient, KServe's, any other of this protocol, and curl.

Requests that arrive together are computed together. /metrics has what Prometheus reads, /v2/health/live and
/v2/health/ready what Kubernetes asks for; standard error has a line of JSON a request. SIGTERM ends the server once all
that was asked for is answered.

By default only this machine can ask. With --host 0.0.0.0 others can: give --token-file and --tls-cert then.

For instance:

  python -m jaxaccel.serve bundles/digits
  python -m jaxaccel.serve digits:1=bundles/old digits:2=bundles/new --max-batch 64 --max-delay-ms 5
  python -m jaxaccel.serve bundles/digits --host 0.0.0.0 --token-file token --tls-cert cert.pem --tls-key key.pem
  python -m jaxaccel.serve --repository bundles
  python -m jaxaccel.serve bundles/digits --ui
"""

import asyncio
import dataclasses
import ipaddress
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxaccel import cli
from jaxaccel.core.options import NonNegative, Options
from jaxaccel.deployment.bundle import EngineName
from jaxaccel.deployment.serving import bundles
from jaxaccel.deployment.serving.batching import BatchOptions
from jaxaccel.deployment.serving.limits import Limits
from jaxaccel.deployment.serving.logs import LogLevel, logs_on_stderr
from jaxaccel.deployment.serving.server import Server, serve
from jaxaccel.deployment.serving.server_options import Port, ServerOptions
from jaxaccel.deployment.serving.sources import Load, read_source
from jaxaccel.deployment.serving.tracing import make_span, no_span
from jaxaccel.errors import UserError, option


@dataclasses.dataclass(frozen=True)
class ServeOptions(Options):
    """What to serve, and how."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Bundles to serve: BUNDLE, NAME=BUNDLE or NAME:VERSION=BUNDLE."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every network that the machine is in."""
    port: Port = 8000
    """Port of HTTP; 0 is any that is free."""
    grpc_port: Port = 8001
    """Port of gRPC; 0 is any that is free."""
    engine: EngineName = "auto"
    """What computes the models."""
    batching: Annotated[BatchOptions, tyro.conf.arg(name="")] = BatchOptions()
    """How requests are joined."""
    limits: Limits = Limits()
    """What clients may ask for."""
    repository: Path | None = None
    """Let clients load and unload the models in this directory, by name: DIR/NAME, or DIR/NAME/VERSION."""
    token_file: Path | None = None
    """Clients have to show the token in this file, but for the health of the server."""
    tls_cert: Path | None = None
    """File of the certificates, for both ports."""
    tls_key: Path | None = None
    """File of the key of the certificate."""
    require_signature: bool = False
    """Refuse to serve without a key."""
    key: Path | None = None
    """Verify the signature of each bundle with this public key, in PEM, before anything of it is read."""
    ui: bool = False
    """Serve a page for people at /."""
    trace: bool = False
    """Make a span of OpenTelemetry of each inference."""
    log: LogLevel = "requests"
    """What standard error has a line of: all requests, errors alone, or nothing."""
    drain_seconds: NonNegative = 30
    """Seconds that requests may take which are under way when the server is told to end."""
    traceback: bool = False
    """Show Python's traceback when something goes wrong."""

    def check_values(self) -> None:
        """Checks that there is a key where there must be."""
        if self.require_signature and self.key is None:
            raise UserError(
                f"{option('require_signature', True)} needs the public key: {option('key', 'FILE')}"
            )


def choose_load(options: ServeOptions, load: Load, verify: bundles.Verify) -> Load:
    """What opens a bundle: `load`, after `verify` where there is a key."""
    return load if options.key is None else bundles.load_verified(load, verify, options.key)


def as_server_options(options: ServeOptions) -> ServerOptions:
    """The options of the server itself.

    Raises:
      UserError: a file cannot be read, or the token in it is too short.
    """
    names = {field.name for field in dataclasses.fields(ServerOptions)} - {"token"}
    shared = {name: getattr(options, name) for name in names}
    try:
        return ServerOptions(**shared, token=read_token(options.token_file))
    except UserError as error:  # its options are flags here
        raise error.under("") from None


def read_token(file: Path | None) -> str:
    """The token in a file; empty without one.

    Raises:
      UserError: it cannot be read, or can be guessed.
    """
    if file is None:
        return ""
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option('token_file', file)} cannot be read as ASCII text") from error
    if len(token) < 16 or not token.isprintable() or " " in token:
        raise UserError(
            f"the token in {file} must have at least 16 characters and no space: openssl rand -hex 32 > {file}"
        )
    return token


def tell_ready(server: Server, options: ServeOptions) -> None:
    """Prints where the server is, and warns where anybody on the network may ask."""
    scheme = "http" if options.tls_cert is None else "https"
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"ready: {scheme}://{host}:{server.http_port}, gRPC {host}:{server.grpc_port}", flush=True)
    if options.token_file is None and not _is_loopback(options.host):
        print(
            "warning: whoever reaches this address may ask: give --token-file, and --tls-cert to hide the token",
            file=sys.stderr,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(
    argv: Sequence[str], load: Load = bundles.open_served, verify: bundles.Verify = bundles.verify
) -> int:
    """The command line; returns the exit code.

    Args:
      argv: its words.
      load: opens a bundle.
      verify: checks the signature of one.

    Raises:
      UserError: something is wrong with the words or a bundle, a port is taken, or a package is missing.
    """
    program = "python -m jaxaccel.serve"
    options = cli.parse_options(program, __doc__ or "", ServeOptions(), list(argv))
    if not options.models and options.repository is None:
        raise UserError(f"name a bundle to serve, or give {option('repository', 'DIR')} (--help shows all)")
    sources = [read_source(word) for word in options.models]
    span = make_span() if options.trace else no_span
    settings, chosen = as_server_options(options), choose_load(options, load, verify)
    with logs_on_stderr(options.log):
        asyncio.run(serve(settings, sources, chosen, span, lambda server: tell_ready(server, options)))
    return 0


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
