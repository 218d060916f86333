"""The Open Inference Protocol v2 over HTTP: an application of Starlette.

Paths and bodies are those of https://github.com/kserve/open-inference-protocol
(specification/protocol/inference_rest.md). An error is ``{"error": MESSAGE}``.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxaccel.deployment.serving.codec import HEADER_LENGTH, decode_request, encode_response, parse_json
from jaxaccel.deployment.serving.faults import BUSY, FORBIDDEN, NO_TOKEN, RETRY_SECONDS, Refusal, as_refusal
from jaxaccel.deployment.serving.http_body import read_body, while_connected
from jaxaccel.deployment.serving.logs import choose_request_id, log_event
from jaxaccel.deployment.serving.registry import Served, describe_tensors
from jaxaccel.deployment.serving.service import EXTENSIONS, METADATA, Service
from jaxaccel.errors import UserError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

Handler = Callable[["Request"], Awaitable["Response"]]
MODEL = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")


def make_app(service: Service, more: Sequence["Route"] = ()) -> "Starlette":
    """The application.

    Args:
      service: what answers.
      more: further routes, as of the page of ``--ui``.

    Raises:
      UserError: Starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route
    except ImportError as error:
        raise UserError("serving needs more packages: pip install 'jaxaccel[serve]'") from error

    async def tell_unknown(request: "Request", error: Exception) -> "Response":
        status = error.status_code if isinstance(error, HTTPException) else 500
        return as_json({"error": "there is no such path here, or it takes another method"}, status)

    handlers = _Handlers(service)
    routes = [
        # Whoever watches a server (Kubernetes, a load balancer) asks without a token.
        Route("/v2/health/live", guard(service, handlers.tell_live, open_to_all=True)),
        Route("/v2/health/ready", guard(service, handlers.tell_ready, open_to_all=True)),
        Route("/v2", guard(service, handlers.describe_server)),
        Route("/metrics", guard(service, handlers.tell_metrics)),
        *(Route(path, guard(service, handlers.describe_model)) for path in MODEL),
        *(Route(f"{path}/ready", guard(service, handlers.tell_model_ready)) for path in MODEL),
        *(Route(f"{path}/infer", handlers.infer, methods=["POST"]) for path in MODEL),
        Route("/v2/repository/index", guard(service, handlers.tell_index), methods=["POST"]),
        Route("/v2/repository/models/{model}/load", guard(service, handlers.load), methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", guard(service, handlers.unload), methods=["POST"]),
        *more,
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: tell_unknown, 500: tell_unknown})


def guard(service: Service, handle: Handler, open_to_all: bool = False) -> Handler:
    """Puts the checks of every request before a handler, and answers its refusals.

    Args:
      service: which knows the token.
      handle: the handler.
      open_to_all: whether it answers without a token as well.
    """

    async def guarded(request: "Request") -> "Response":
        try:
            check_origin(request)
            if not open_to_all:
                service.check_token(request.headers.get("authorization", ""))
            return await handle(request)
        except Exception as error:
            refusal = as_refusal(error)
            request_id = choose_request_id(request.headers.get("x-request-id", ""))
            if refusal.kind.http == 500:
                log_event("failed", logging.ERROR, error, request_id=request_id, path=request.url.path)
            return refuse(refusal, request_id)

    return guarded


def check_origin(request: "Request") -> None:
    """Checks that no page of another site makes a browser ask for it.

    Raises:
      Refusal: a browser says that one does.
    """
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise Refusal("pages of other sites may not ask this server", FORBIDDEN)


def refuse(refusal: Refusal, request_id: str) -> "Response":
    """The answer that says why there is none."""
    response = as_json({"error": str(refusal)}, refusal.kind.http)
    response.headers["x-request-id"] = request_id
    if refusal.kind == BUSY:
        response.headers["retry-after"] = str(RETRY_SECONDS)
    if refusal.kind == NO_TOKEN:
        response.headers["www-authenticate"] = "Bearer"
    return response


def as_json(value: object, status: int = 200) -> "Response":
    """An answer of JSON."""
    from starlette.responses import Response

    return Response(json.dumps(value), status, media_type="application/json")


class _Handlers:
    """The handlers of the protocol's paths."""

    def __init__(self, service: Service) -> None:
        self._service, self._registry = service, service.registry

    async def tell_live(self, request: "Request") -> "Response":
        return as_json({"live": True})

    async def tell_ready(self, request: "Request") -> "Response":
        self._registry.check_ready()
        return as_json({"ready": True})

    async def tell_metrics(self, request: "Request") -> "Response":
        from starlette.responses import Response

        return Response(
            self._service.metrics.as_text(), headers={"content-type": self._service.metrics.content_type}
        )

    async def describe_server(self, request: "Request") -> "Response":
        return as_json({**METADATA, "extensions": EXTENSIONS})

    async def describe_model(self, request: "Request") -> "Response":
        served = self._find(request)
        inputs, outputs = map(describe_tensors, (served.signature.inputs, served.signature.outputs))
        return as_json({**self._service.describe(served), "inputs": inputs, "outputs": outputs})

    async def tell_model_ready(self, request: "Request") -> "Response":
        self._registry.check_ready()
        served = self._find(request)
        return as_json({"name": served.name, "version": served.version, "ready": True})

    async def tell_index(self, request: "Request") -> "Response":
        self._registry.repository.check_open()
        only_ready = (await self._read(request)).get("ready") is True
        rows = [row for row in self._registry.index() if not only_ready or row["state"] == "READY"]
        return as_json(rows)

    async def load(self, request: "Request") -> "Response":
        self._registry.repository.check_open()
        if (await self._read(request)).get("parameters"):
            raise Refusal("a model is loaded as its bundle says: send no parameters")
        await self._registry.load(request.path_params["model"])
        return as_json({})

    async def unload(self, request: "Request") -> "Response":
        self._registry.repository.check_open()
        await self._read(request)
        await self._registry.unload(request.path_params["model"])
        return as_json({})

    async def infer(self, request: "Request") -> "Response":
        from starlette.responses import Response

        service, response = self._service, None
        async with service.recorded("http", request.headers) as record:
            check_origin(request)
            service.check_token(request.headers.get("authorization", ""))
            self._registry.check_ready()
            record.served = served = self._find(request)
            with service.budget.lend() as loan:
                body = await read_body(request, service.limits, loan)
                size = request.headers.get(HEADER_LENGTH)
                asked = decode_request(body, size, served.signature, service.limits)
                work = service.infer(record, served, asked.arrays, asked.timeout)
                outputs = await while_connected(request, work)
            pieces, head = encode_response(asked, served.name, served.version, outputs)
            response = Response(b"".join(pieces), media_type="application/octet-stream")
            if head is None:
                response.headers["content-type"] = "application/json"
            else:
                response.headers[HEADER_LENGTH] = str(head)
            response.headers["x-request-id"] = record.id
        return response or refuse(record.refusal or Refusal(""), record.id)

    def _find(self, request: "Request") -> Served:
        return self._registry.find(request.path_params["model"], request.path_params.get("version", ""))

    async def _read(self, request: "Request") -> dict[str, Any]:
        """The JSON of a small body; an empty object where there is none."""
        with self._service.budget.lend() as loan:
            body = await read_body(request, self._service.limits, loan)
        return parse_json(body) if body else {}
