"""Log lines: JSON on Upsun and in pipes, readable on a terminal; a request id on every one."""

import logging
import os
import re
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SECRET_NAMES = re.compile(r"password|secret|token|cookie|authorization|database_url", re.IGNORECASE)
URL_PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):[^\s@]+@")
# PostgreSQL puts the offending row's values into DETAIL; what a visitor typed is not for the log.
DETAIL_PATTERN = re.compile(
    r"\nDETAIL: .*?(?=\n(?:HINT:|\[SQL|\[parameters|  File|Traceback|The above|During|\n)|\Z)",
    re.DOTALL,
)
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure_logging(
    level: str, *, stream: TextIO | None = None, readable: bool | None = None
) -> None:
    """Send every logger of the process to one stream.

    Args:
        level: name of the lowest level that is written.
        stream: stdout by default; a command whose output is its answer takes stderr.
        readable: lines for people instead of JSON; by default when the stream is a terminal.
    """
    # A process may have been started with its standard output closed.
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
    # Ours alone is replaced: a test runner, for one, listens with a handler of its own.
    root.handlers = [
        other
        for other in root.handlers
        if not isinstance(other.formatter, structlog.stdlib.ProcessorFormatter)
    ] + [handler]
    root.setLevel(level.upper())
    # These talk about every statement, byte and template in debug mode.
    for chatty in ("alembic.runtime.plugins", "asyncio", "hpack", "httpcore", "sqlalchemy"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def scrub(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Take out secrets, database rows and characters that would forge a line of their own."""
    for key, value in event.items():
        if SECRET_NAMES.search(key):
            event[key] = "[hidden]"
        elif key == "exception":  # many lines by nature; each renderer keeps them apart
            event[key] = URL_PASSWORD.sub(r"\1:[hidden]@", DETAIL_PATTERN.sub("", str(value)))
        elif isinstance(value, str):
            event[key] = CONTROL_CHARACTERS.sub(_escape, URL_PASSWORD.sub(r"\1:[hidden]@", value))
    return event


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode()


def get_logger(name: str) -> Any:
    """Return the structured logger of a module."""
    return structlog.stdlib.get_logger(name)
