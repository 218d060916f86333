"""Logs of a server: one JSON object a line, each with the id of its request."""

import datetime
import json
import logging
import sys
import uuid
from typing import Any, Literal

from jaxaccel.deployment.serving.limits import is_request_id

LOG = logging.getLogger("jaxaccel.serving")
LogLevel = Literal["requests", "errors", "none"]


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, event, and the fields of its call."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logs(level: LogLevel) -> None:
    """Sends the server's logs, and uvicorn's and grpc's warnings, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("jaxaccel.serving", "uvicorn", "grpc"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING)
    LOG.setLevel({"requests": logging.INFO, "errors": logging.WARNING, "none": logging.CRITICAL + 1}[level])


def log_event(
    event: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any
) -> None:
    """Logs an event with its fields; `error` with its traceback, which no client ever sees."""
    if LOG.isEnabledFor(level):
        LOG.log(level, event, extra={"fields": fields}, exc_info=error)


def choose_request_id(given: str) -> str:
    """The id that the client gave its request, if it can stand in a log; else a new one."""
    return given if is_request_id(given) else uuid.uuid4().hex
