"""Bundles as an application of Ray Serve: replicas on one machine or many, which Ray starts again when they fail.

    serve run jaxaccel.deployment.serving.ray_serve:build bundles=bundles/digits replicas=2

Each replica answers by the Open Inference Protocol v2 over HTTP, with batches of its own, as `jaxaccel.serve` does.
Ray's proxy is the one address of all. Docs: https://docs.ray.io/en/latest/serve.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxaccel.core.options import Count, NonNegative, Options
from jaxaccel.deployment.bundle import EngineName
from jaxaccel.deployment.serving import bundles
from jaxaccel.deployment.serving.batching import BatchOptions
from jaxaccel.deployment.serving.http_routes import make_app
from jaxaccel.deployment.serving.server import Server
from jaxaccel.deployment.serving.server_options import ServerOptions
from jaxaccel.deployment.serving.sources import read_source
from jaxaccel.errors import UserError, option

if TYPE_CHECKING:
    from ray.serve import Application  # pyright: ignore[reportMissingImports]
    from starlette.requests import Request
    from starlette.responses import Response


@dataclasses.dataclass(frozen=True)
class RayOptions(Options):
    """What the application is to be; ``serve run`` gives each as ``NAME=VALUE``."""

    bundles: str = ""
    """Bundles to serve, joined by commas, each as `jaxaccel.serve` takes them: PATH, or NAME=PATH. Every
    machine of the cluster has to find them under these paths."""
    replicas: Count = 1
    """Number of replicas."""
    cpus: Count = 1
    """Cores that Ray sets aside for a replica; its threads are bounded by nothing but them."""
    engine: EngineName = "auto"
    """What computes the models."""
    max_batch: Count = 32
    """Examples of a batch."""
    max_delay_ms: NonNegative = 2.0
    """Milliseconds that a request waits for others while the device is free."""
    max_queue: Count = 1024
    """Examples that may wait in a replica; further requests get 503."""
    key: Path | None = None
    """Verify the signature of each bundle with this public key, in PEM, before anything of it is read."""

    def check_values(self) -> None:
        """Checks that there is something to serve."""
        if not self.bundles:
            raise UserError(f"name what to serve: {option('bundles', 'bundles/digits')}")


class Replica:
    """One process that serves the bundles; Ray makes it, asks it, and replaces it.

    Args:
      options: of the application.
    """

    def __init__(self, options: RayOptions) -> None:
        batching = BatchOptions(
            max_batch=options.max_batch, max_delay_ms=options.max_delay_ms, max_queue=options.max_queue
        )
        load = bundles.open_served
        if options.key is not None:
            load = bundles.load_verified(load, bundles.verify, options.key)
        self._sources = [read_source(word) for word in options.bundles.split(",")]
        self._server = Server(ServerOptions(engine=options.engine, batching=batching), load)
        self._app = make_app(self._server.service)
        self._loaded = False

    async def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Loads and warms up the models, before Ray lets the first request in."""
        if not self._loaded:
            await self._server.load_models(self._sources)
            self._loaded = True

    async def check_health(self) -> None:
        """Tells Ray, which asks now and then, that this replica can answer."""
        self._server.registry.check_ready()

    async def __call__(self, request: "Request") -> "Response":
        """Answers as the server does."""
        from starlette.responses import Response

        parts: list[Mapping[str, Any]] = []

        async def keep(message: Mapping[str, Any]) -> None:
            parts.append(message)

        await self._app(request.scope, request.receive, keep)  # pyright: ignore[reportArgumentType]
        start = next(part for part in parts if part["type"] == "http.response.start")
        answer = Response(b"".join(part.get("body", b"") for part in parts), start["status"])
        answer.raw_headers = list(start["headers"])
        return answer


def build(arguments: Mapping[str, str]) -> "Application":
    """Builds the application, for ``serve run`` and for `ray.serve.run`.

    Args:
      arguments: the fields of `RayOptions` by name, as texts.

    Raises:
      UserError: an argument is unknown or none of its kind, or Ray is not installed.
    """
    try:
        from ray import serve  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("Ray Serve is not installed: pip install 'jaxaccel[ray]'") from error
    options = read_arguments(arguments)
    logging.getLogger(__name__).info("serving %s in %d replicas", options.bundles, options.replicas)
    deployment = serve.deployment(
        num_replicas=options.replicas,
        max_ongoing_requests=options.max_queue,
        health_check_period_s=2,
        user_config={},  # for which Ray calls `reconfigure`
        ray_actor_options={"num_cpus": options.cpus},
    )(Replica)
    return deployment.bind(options)


def read_arguments(arguments: Mapping[str, str]) -> RayOptions:
    """The options that texts stand for.

    Raises:
      UserError: one is unknown or none of its kind.
    """
    fields = {field.name: field for field in dataclasses.fields(RayOptions)}
    if odd := sorted(arguments.keys() - fields.keys()):
        raise UserError(f"there is no argument {odd[0]}: there are {', '.join(fields)}")
    values: dict[str, Any] = {}
    for name, text in arguments.items():
        default = fields[name].default
        kind = Path if name == "key" else type(default)
        try:
            values[name] = kind(text)
        except ValueError:
            raise UserError(f"{name}={text} is none of its kind, such as {default}") from None
    return RayOptions(**values)
