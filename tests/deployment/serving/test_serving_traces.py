import contextlib

import pytest
from serving_engines import Rows
from test_batching import rows, with_batcher

from jaxaccel.deployment.serving.tracing import make_span
from jaxaccel.errors import UserError

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_span_is_below_that_of_the_client():
    export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter, provider = export.InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    span = make_span()
    with contextlib.suppress(ValueError), span("infer", {"traceparent": TRACEPARENT}, {"request_id": "7"}):
        with_batcher(Rows(), lambda batcher: batcher.submit(rows(0)))
        raise ValueError
    (made,) = exporter.get_finished_spans()
    assert (made.name, made.attributes["request_id"], made.status.is_ok) == ("infer", "7", False)
    assert f"{made.context.trace_id:032x}-{made.parent.span_id:016x}" == TRACEPARENT[3:-3]


def test_without_opentelemetry_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry", None)
    with pytest.raises(UserError, match="pip install opentelemetry-distro"):
        make_span()
