"""Spans of OpenTelemetry around requests, for those who ask for them.

Only the interface of OpenTelemetry is called. Where the spans go is set up outside, as for any other program:
``opentelemetry-instrument python -m jaxaccel.serve ...``.
"""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from jaxaccel.errors import UserError

Span = Callable[[str, Mapping[str, str], Mapping[str, str]], AbstractContextManager[object]]
"""(name, headers that may name the parent, attributes) -> the span while it is entered."""


def no_span(
    name: str, headers: Mapping[str, str], attributes: Mapping[str, str]
) -> AbstractContextManager[object]:
    """A span that nobody sees."""
    return contextlib.nullcontext()


def make_span() -> Span:
    """Spans of OpenTelemetry.

    Raises:
      UserError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import propagate, trace  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "traces need OpenTelemetry: pip install opentelemetry-distro opentelemetry-exporter-otlp"
        ) from error
    tracer = trace.get_tracer("jaxaccel.serving")

    def span(
        name: str, headers: Mapping[str, str], attributes: Mapping[str, str]
    ) -> AbstractContextManager[object]:
        parent = propagate.extract(dict(headers))
        return tracer.start_as_current_span(
            name, context=parent, kind=trace.SpanKind.SERVER, attributes=dict(attributes)
        )

    return span
