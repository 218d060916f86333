"""The page of ``--ui``: drop a picture or a sound, or type a text, and see what the model makes of it and how fast."""

import json
import time
from importlib import resources
from typing import TYPE_CHECKING

from jaxaccel.deployment.serving.faults import NOT_FOUND, Refusal
from jaxaccel.deployment.serving.http_body import read_body
from jaxaccel.deployment.serving.http_routes import as_json, guard
from jaxaccel.deployment.serving.limits import MAX_NAME
from jaxaccel.deployment.serving.service import Service
from jaxaccel.deployment.serving.worker import Worker

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; connect-src 'self'"
"""A browser then loads nothing from anywhere else, whatever stands in the page."""


def make_routes(service: Service) -> "list[Route]":
    """The page, and what it asks for."""
    from starlette.responses import Response
    from starlette.routing import Route

    page = resources.files("jaxaccel.deployment.serving").joinpath("page.html").read_bytes()
    # One at a time: preprocessing must not take all cores from the batches.
    worker = Worker("page")

    async def show_page(request: "Request") -> "Response":
        headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    async def list_models(request: "Request") -> "Response":
        found = [m for m in service.registry.all() if m.predictor is not None]
        return as_json([{"name": served.name, "version": served.version} for served in found])

    async def describe(request: "Request") -> "Response":
        service.registry.check_ready()
        served = service.registry.find(request.path_params["model"], request.path_params["version"])
        if served.predictor is None:
            raise Refusal(f"{served.name} reads arrays alone: ask for it by the protocol", NOT_FOUND)
        name = request.query_params.get("name", "")[-MAX_NAME:]
        with service.budget.lend() as loan:
            body = await read_body(request, service.limits, loan)
            content = body if name else read_text(body)
            begin = time.perf_counter()
            found = await worker.run(served.predictor.describe, content, name)
            taken = time.perf_counter() - begin
        return as_json({"result": json.loads(json.dumps(found, default=str)), "ms": round(1e3 * taken, 2)})

    return [
        Route("/", guard(service, show_page, open_to_all=True)),
        Route("/ui/models", guard(service, list_models)),
        Route("/ui/models/{model}/versions/{version}", guard(service, describe), methods=["POST"]),
    ]


def read_text(body: bytes) -> str:
    """The text that a body is.

    Raises:
      Refusal: it is none in UTF-8.
    """
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise Refusal("a text must be UTF-8; a file needs its name: ?name=FILE") from None
