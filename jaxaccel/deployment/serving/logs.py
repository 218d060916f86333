"""Logs of a server: one JSON object a line, each with the id of its request."""

import contextlib
import datetime
import json
import logging
import logging.handlers
import queue
import sys
import threading
import uuid
from collections.abc import Iterator
from typing import Any, Literal

from jaxaccel.deployment.serving.limits import is_request_id

LOG = logging.getLogger("jaxaccel.serving")
MAX_WAITING = 10_000
"""Lines that may wait to be written."""
LAST_SECONDS = 2
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


class DroppingHandler(logging.handlers.QueueHandler):
    """Hands records to the thread that writes them, and drops them while too many wait.

    Whoever should read standard error may have stopped: then a server that wrote itself would stop as well.
    """

    def enqueue(self, record: logging.LogRecord) -> None:
        """Hands one over."""
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record as it is: the other thread formats it."""
        return record


@contextlib.contextmanager
def logs_on_stderr(level: LogLevel) -> Iterator[None]:
    """Sends the server's logs, and uvicorn's and grpc's warnings, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING)
    listener = logging.handlers.QueueListener(waiting, handler)
    loggers = [logging.getLogger(name) for name in ("jaxaccel.serving", "uvicorn", "grpc")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [DroppingHandler(waiting)], False
        logger.setLevel(logging.WARNING)
    LOG.setLevel({"requests": logging.INFO, "errors": logging.WARNING, "none": logging.CRITICAL + 1}[level])
    listener.start()
    try:
        yield
    finally:
        # Whoever reads has this long to take the last lines.
        last = threading.Thread(target=listener.stop, daemon=True)
        last.start()
        last.join(LAST_SECONDS)
        for logger, (handlers, propagate, was) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(was)


def log_event(
    event: str, level: int = logging.INFO, error: BaseException | None = None, **fields: Any
) -> None:
    """Logs an event with its fields; `error` with its traceback, which no client ever sees."""
    if LOG.isEnabledFor(level):
        LOG.log(level, event, extra={"fields": fields}, exc_info=error)


def choose_request_id(given: str) -> str:
    """The id that the client gave its request, if it can stand in a log; else a new one."""
    return given if is_request_id(given) else uuid.uuid4().hex
