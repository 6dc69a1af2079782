"""Structured logging: JSON on Upsun and in pipes, readable lines on a terminal."""

import logging
import os
import re
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SECRET_NAMES = re.compile(
    r"password|secret|token|cookie|authorization|database_\w*url", re.IGNORECASE
)
URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^\s@]+@")
# PostgreSQL's DETAIL contains values of a row, which may be user input.
DETAIL_PATTERN = re.compile(
    r"\nDETAIL: .*?(?=\n(?:HINT:|\[SQL|\[parameters|  File|Traceback|The above|During|\n)|\Z)",
    re.DOTALL,
)
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure_logging(
    level: str, *, stream: TextIO | None = None, readable: bool | None = None
) -> None:
    """Send the output of all loggers to one stream.

    Args:
        level: the name of the lowest level to log.
        stream: stdout by default. A command that prints its result to stdout passes stderr.
        readable: whether to log readable lines instead of JSON; by default only on a terminal.
    """
    # The process may have been started with a closed stdout.
    stream = stream or sys.stdout or sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if readable is None:
        readable = stream.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        scrub,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if readable
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    # Replaces only a handler of this function: a test runner, for instance, has its own.
    root.handlers = [
        other
        for other in root.handlers
        if not isinstance(other.formatter, structlog.stdlib.ProcessorFormatter)
    ] + [handler]
    root.setLevel(level.upper())
    # At level debug these log every statement and byte.
    for name in ("alembic.runtime.plugins", "asyncio", "hpack", "httpcore", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.WARNING)


def scrub(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Remove secrets and database rows, and escape characters that could forge a log line."""
    for key, value in event.items():
        if SECRET_NAMES.search(key):
            event[key] = "[hidden]"
        elif key == "exception":  # may have several lines; the renderers handle them
            event[key] = URL_PASSWORD.sub(r"\1:[hidden]@", DETAIL_PATTERN.sub("", str(value)))
        elif isinstance(value, str):
            event[key] = CONTROL_CHARACTERS.sub(_escape, URL_PASSWORD.sub(r"\1:[hidden]@", value))
    return event


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode()


def get_logger(name: str) -> Any:
    """Return the structured logger of a module."""
    return structlog.stdlib.get_logger(name)
