"""The Open Inference Protocol v2 over gRPC: the service ``inference.GRPCInferenceService``."""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio

from jaxaccel.deployment.serving import open_inference_pb2 as messages
from jaxaccel.deployment.serving.faults import Refusal, as_refusal
from jaxaccel.deployment.serving.grpc_codec import decode_message, encode_message
from jaxaccel.deployment.serving.logs import log_event
from jaxaccel.deployment.serving.registry import describe_tensors
from jaxaccel.deployment.serving.service import EXTENSIONS, METADATA, Service
from jaxaccel.errors import UserError, option

NAME = "inference.GRPCInferenceService"
OPEN_TO_ALL = frozenset({"ServerLive", "ServerReady"})
"""Whoever watches a server asks without a token."""


def make_server(service: Service) -> grpc.aio.Server:
    """The server, without a port."""
    calls = _Calls(service)
    described = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(calls, name) if name == "ModelInfer" else guard(service, name, getattr(calls, name)),
            request_deserializer=getattr(messages, method.input_type.name).FromString,
            response_serializer=getattr(messages, method.output_type.name).SerializeToString,
        )
        for name, method in described.items()
    }
    longest = service.limits.body_bytes
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", longest),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # or a second server on the port would take half of the calls
            ("grpc.max_metadata_size", 16_384),
            # By default gRPC cancels calls, without a word why, while 1,000 to 3,000 wait to be seen by Python. What
            # comes beyond our own limit is to be told so.
            ("grpc.server.max_pending_requests", 2 * service.limits.connections),
            ("grpc.server.max_pending_requests_hard_limit", 2 * service.limits.connections),
        ],
        maximum_concurrent_rpcs=service.limits.connections,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
    return server


def open_port(server: grpc.aio.Server, address: str, tls: tuple[Path, Path] | None) -> int:
    """Gives a server its port, and returns the number.

    Args:
      server: of `make_server`.
      address: ``HOST:PORT``; port 0 is any that is free.
      tls: files of the certificates and of the key; None for no encryption.

    Raises:
      UserError: the port cannot be opened.
    """
    try:
        if tls is None:
            return server.add_insecure_port(address)
        certificate, key = tls[0].read_bytes(), tls[1].read_bytes()
        return server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    except RuntimeError:
        raise UserError(f"{address} cannot be opened: choose another {option('grpc_port')}") from None


def guard(
    service: Service, name: str, call: Callable[[Any], Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """Puts the check of the token before a call, and tells its refusals.

    Args:
      service: which knows the token.
      name: of the call.
      call: from its request to its answer.
    """

    async def guarded(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            if name not in OPEN_TO_ALL:
                service.check_token(read_metadata(context).get("authorization", ""))
            return await call(request)
        except Exception as error:
            refusal = as_refusal(error)
            if refusal.kind.http == 500:
                log_event("failed", logging.ERROR, error, call=name)
            await tell_refusal(context, refusal)

    return guarded


def read_metadata(context: grpc.aio.ServicerContext) -> dict[str, str]:
    """The metadata of a call that are texts."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


async def tell_refusal(context: grpc.aio.ServicerContext, refusal: Refusal) -> NoReturn:
    """Ends a call with the status of a refusal."""
    await context.abort(grpc.StatusCode[refusal.kind.grpc], str(refusal))
    raise AssertionError("abort always raises")


class _Calls:
    """The calls of the service, by the names of the protocol."""

    def __init__(self, service: Service) -> None:
        self._service, self._registry = service, service.registry

    async def ServerLive(self, request: messages.ServerLiveRequest) -> messages.ServerLiveResponse:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, request: messages.ServerReadyRequest) -> messages.ServerReadyResponse:
        return messages.ServerReadyResponse(ready=self._registry.ready)

    async def ModelReady(self, request: messages.ModelReadyRequest) -> messages.ModelReadyResponse:
        ready = self._registry.ready and self._registry.has(request.name, request.version)
        return messages.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: messages.ServerMetadataRequest
    ) -> messages.ServerMetadataResponse:
        return messages.ServerMetadataResponse(**METADATA, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: messages.ModelMetadataRequest) -> messages.ModelMetadataResponse:
        served = self._registry.find(request.name, request.version)
        tensor = messages.ModelMetadataResponse.TensorMetadata
        return messages.ModelMetadataResponse(
            **self._service.describe(served),
            inputs=[tensor(**values) for values in describe_tensors(served.signature.inputs)],
            outputs=[tensor(**values) for values in describe_tensors(served.signature.outputs)],
        )

    async def RepositoryIndex(
        self, request: messages.RepositoryIndexRequest
    ) -> messages.RepositoryIndexResponse:
        self._registry.repository.check_open()
        rows = [row for row in self._registry.index() if not request.ready or row["state"] == "READY"]
        row_type = messages.RepositoryIndexResponse.ModelIndex
        return messages.RepositoryIndexResponse(models=[row_type(**row) for row in rows])

    async def RepositoryModelLoad(
        self, request: messages.RepositoryModelLoadRequest
    ) -> messages.RepositoryModelLoadResponse:
        self._registry.repository.check_open()
        if request.parameters:
            raise Refusal("a model is loaded as its bundle says: send no parameters")
        await self._registry.load(request.model_name)
        return messages.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: messages.RepositoryModelUnloadRequest
    ) -> messages.RepositoryModelUnloadResponse:
        self._registry.repository.check_open()
        await self._registry.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    async def ModelInfer(
        self, request: messages.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> messages.ModelInferResponse:
        service, headers = self._service, read_metadata(context)
        async with service.recorded("grpc", headers) as record:
            service.check_token(headers.get("authorization", ""))
            self._registry.check_ready()
            served = record.served = self._registry.find(request.model_name, request.model_version)
            asked = decode_message(request, served.signature, service.limits)
            given = [seconds for seconds in (asked.timeout, context.time_remaining()) if seconds is not None]
            outputs = await service.infer(record, served, asked.arrays, min(given, default=None))
            answer = encode_message(asked, served.name, served.version, outputs)
            await context.send_initial_metadata((("x-request-id", record.id),))
            return answer
        await tell_refusal(context, record.refusal or Refusal(""))
