"""What a server is to be: `ServerOptions`."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from jaxaccel.core.options import NonNegative, Options
from jaxaccel.deployment.bundle import EngineName
from jaxaccel.deployment.serving.batching import BatchOptions
from jaxaccel.deployment.serving.limits import Limits
from jaxaccel.errors import UserError, option

Port = Annotated[int, Interval(ge=0, le=65535)]


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
