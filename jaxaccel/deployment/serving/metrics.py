"""Metrics as Prometheus reads them: requests, latencies, batches, and what waits."""

from typing import TYPE_CHECKING

from jaxaccel.errors import UserError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SECONDS = (5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LABELS = ("model", "version")


class Metrics:
    """The metrics of one server. Only names of models that are served are labels, or clients could make any number."""

    def __init__(self) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise UserError("serving needs more packages: pip install 'jaxaccel[serve]'") from error
        self.registry: CollectorRegistry = prometheus.CollectorRegistry()
        self.content_type = prometheus.CONTENT_TYPE_LATEST
        self._write = prometheus.generate_latest
        given = {"registry": self.registry, "namespace": "jaxaccel"}
        self._requests = prometheus.Counter(
            "requests", "Requests by protocol and status.", (*LABELS, "protocol", "status"), **given
        )
        self._latency = prometheus.Histogram(
            "request_seconds", "From a request to its answer.", LABELS, buckets=SECONDS, **given
        )
        self._queue = prometheus.Histogram(
            "queue_seconds", "Time in the queue.", LABELS, buckets=SECONDS, **given
        )
        self._compute = prometheus.Histogram(
            "batch_seconds", "Time of a batch on the device.", LABELS, buckets=SECONDS, **given
        )
        self._batch = prometheus.Histogram(
            "batch_examples", "Examples of a batch.", LABELS, buckets=EXAMPLES, **given
        )
        self._waiting = prometheus.Gauge("waiting_examples", "Examples in the queue.", LABELS, **given)
        self._ready = prometheus.Gauge("model_ready", "1 where a model is ready.", LABELS, **given)

    def count_request(self, model: str, version: str, protocol: str, status: str, seconds: float) -> None:
        """Counts an answered request; `status` is a status of HTTP or the name of one of gRPC."""
        self._requests.labels(model, version, protocol, status).inc()
        if model:
            self._latency.labels(model, version).observe(seconds)

    def count_wait(self, model: str, version: str, seconds: float) -> None:
        """Counts the time that a request waited."""
        self._queue.labels(model, version).observe(seconds)

    def count_batch(self, model: str, version: str, examples: int, seconds: float) -> None:
        """Counts a batch."""
        self._batch.labels(model, version).observe(examples)
        self._compute.labels(model, version).observe(seconds)

    def set_waiting(self, model: str, version: str, examples: int) -> None:
        """Sets what waits now."""
        self._waiting.labels(model, version).set(examples)

    def set_ready(self, model: str, version: str, ready: bool) -> None:
        """Sets whether a model is ready."""
        self._ready.labels(model, version).set(int(ready))

    def as_text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return self._write(self.registry)
