"""What both protocols do alike: `Service` holds the models, limits, metrics and the token, and answers inferences."""

import asyncio
import contextlib
import dataclasses
import hmac
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from jaxaccel import __version__
from jaxaccel.deployment.serving.batching import Outputs
from jaxaccel.deployment.serving.faults import NO_TOKEN, Refusal, as_refusal
from jaxaccel.deployment.serving.limits import ByteBudget, Limits
from jaxaccel.deployment.serving.logs import choose_request_id, log_event
from jaxaccel.deployment.serving.metrics import Metrics
from jaxaccel.deployment.serving.registry import Registry, Served
from jaxaccel.deployment.serving.tracing import Span, no_span
from jaxaccel.deployment.signature import Arrays

METADATA = {"name": "jaxaccel", "version": __version__}
EXTENSIONS = ["binary_tensor_data", "model_repository"]


@dataclasses.dataclass
class Record:
    """What is known of a request while it is answered; it becomes a line of the log and a count."""

    protocol: str
    """``http`` or ``grpc``."""
    id: str
    served: Served | None = None
    examples: int = 0
    batch: int = 0
    waited: float = 0.0
    computed: float = 0.0
    refusal: Refusal | None = None


class Service:
    """All that is behind both protocols.

    Args:
      registry: the models.
      metrics: where requests are counted.
      limits: what a client may ask for.
      token: what clients have to show; empty where everybody may ask.
      span: makes a span around each inference.
    """

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        limits: Limits,
        token: str = "",
        span: Span = no_span,
    ) -> None:
        self.registry, self.metrics, self.limits = registry, metrics, limits
        self.budget = ByteBudget(int(limits.pending_mb * 1e6))
        self._token, self._span = token.encode(), span

    def check_token(self, authorization: str) -> None:
        """Checks the header ``Authorization: Bearer TOKEN``.

        Raises:
          Refusal: it is not the token.
        """
        if self._token:
            scheme, _, given = authorization.partition(" ")
            # In constant time: how long it takes must not tell how much of it is right.
            right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
            if scheme.lower() != "bearer" or not right:
                raise Refusal("show the server's token: Authorization: Bearer TOKEN", NO_TOKEN)

    @contextlib.asynccontextmanager
    async def recorded(self, protocol: str, headers: Mapping[str, str]) -> AsyncIterator[Record]:
        """A record around one inference. It is logged and counted, whatever becomes of it.

        An error inside is kept as the record's refusal, and does not leave.

        Args:
          protocol: ``http`` or ``grpc``.
          headers: of the request, by names in lower case.
        """
        record, begin = (
            Record(protocol, choose_request_id(headers.get("x-request-id", ""))),
            time.perf_counter(),
        )
        try:
            with self._span("infer", headers, {"protocol": protocol, "request_id": record.id}):
                yield record
        except Exception as error:
            record.refusal = as_refusal(error)
            if record.refusal.kind.http == 500:
                log_event("failed", logging.ERROR, error, request_id=record.id)
        except asyncio.CancelledError:
            self._tell(record, "cancelled", time.perf_counter() - begin)
            raise
        self._tell(record, self._status(record), time.perf_counter() - begin)

    async def infer(self, record: Record, served: Served, arrays: Arrays, timeout: float | None) -> Outputs:
        """The outputs of a model for one request.

        Args:
          record: of the request.
          served: the model.
          arrays: its inputs by name.
          timeout: seconds to wait at most.

        Raises:
          UserError: they are not its inputs.
          Refusal: as `Batcher.submit`.
        """
        record.examples = len(next(iter(arrays.values()), ()))
        # While the body was read the model may have been loaded anew. No other task runs between these two lines.
        served = self.registry.find_again(served)
        answer = await served.batcher.submit(arrays, timeout)
        record.batch, record.waited, record.computed = answer.batch, answer.waited, answer.computed
        self.metrics.count_wait(served.name, served.version, answer.waited)
        return answer.outputs

    def describe(self, served: Served) -> dict[str, Any]:
        """Name, versions and platform of a model, as the protocol's metadata has them."""
        versions = self.registry.versions(served.name)
        return {"name": served.name, "versions": versions, "platform": f"jaxaccel_{served.engine.name}"}

    def _status(self, record: Record) -> str:
        if record.protocol == "grpc":
            return record.refusal.kind.grpc if record.refusal else "OK"
        return str(record.refusal.kind.http if record.refusal else 200)

    def _tell(self, record: Record, status: str, seconds: float) -> None:
        name, version = (record.served.name, record.served.version) if record.served else ("", "")
        self.metrics.count_request(name, version, record.protocol, status, seconds)
        bad = record.refusal is not None
        level = logging.WARNING if bad else logging.INFO
        log_event(
            "infer", level, None, request_id=record.id, protocol=record.protocol, model=name, version=version,
            status=status, examples=record.examples, batch=record.batch, ms=round(1e3 * seconds, 3),
            queue_ms=round(1e3 * record.waited, 3), batch_ms=round(1e3 * record.computed, 3),
            **({"reason": str(record.refusal)} if bad else {}),
        )  # fmt: skip
