"""Reports errors to Sentry or a compatible service, with the core of Sentry's SDK.

Only imported if `SENTRY_DSN` is set. None of the SDK's integrations is used: each line in the log
with the level error becomes a report, with what the line contains and the traceback of the
exception that is being handled. Sentry's integration for Quart has failed on new releases of Quart,
and it sends headers, cookies and query strings, which the log does not contain either.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from quart import Quart
from sentry_sdk import Client
from sentry_sdk.transport import HttpTransport
from sentry_sdk.types import Event
from sentry_sdk.utils import event_from_exception

from quart_upsun.logging import scrub
from quart_upsun.measure import current_request
from quart_upsun.settings import Settings
from quart_upsun.telemetry.failures import FailureLog, silence
from quart_upsun.telemetry.resources import process_attributes
from quart_upsun.web.errors import redact, submitted_values

# Keys of lines in the log that a report has as tags, by which reports can be searched.
TAGS = ("method", "route", "task", "request_id")


class ErrorReports(logging.Handler):
    """A handler that sends a report for each line.

    Args:
        client: the SDK's client. Its thread sends the reports; what does not fit into its queue is
            dropped.
        attributes: the resource attributes of the process.
    """

    def __init__(self, client: Client, attributes: dict[str, str]) -> None:
        super().__init__(logging.ERROR)
        self._client = client
        self._attributes = attributes

    def emit(self, record: logging.LogRecord) -> None:
        """Send a report."""
        try:
            self._client.capture_event(self._event(record))
        except Exception:
            self.handleError(record)

    def _event(self, record: logging.LogRecord) -> Event:
        # Lines of this project are dictionaries, from which secrets have been removed.
        fields: dict[str, Any] = (
            dict(record.msg)
            if isinstance(record.msg, dict)
            else dict(scrub(None, "", {"event": record.getMessage()}))
        )
        has_traceback = fields.pop("exception", None) is not None or bool(record.exc_info)
        event: Event = {"level": "error", "logger": record.name, "platform": "python"}
        error = record.exc_info if isinstance(record.exc_info, tuple) else sys.exc_info()
        if error[1] is not None:
            is_handled = fields["event"] != "unhandled exception"
            mechanism = {"type": "logging", "handled": is_handled}
            found, _ = event_from_exception(error[1], self._client.options, mechanism)
            event["exception"] = found["exception"]
            values = submitted_values()
            for each in event["exception"]["values"]:
                # A line without a traceback leaves out the message, which may quote a user.
                text = redact(str(each.get("value") or ""), values)
                each["value"] = scrub(None, "", {"exception": text})["exception"]
                if not has_traceback:
                    each["value"] = ""
        event["message"] = str(fields.pop("event"))
        if "route" in fields:
            event["transaction"] = f"{fields.get('method')} {fields['route']}"
        event["tags"] = {name: str(fields[name]) for name in TAGS if name in fields}
        if "upsun.environment" in self._attributes:
            event["tags"]["upsun.environment"] = self._attributes["upsun.environment"]
        if trace_id := fields.pop("trace_id", None):
            span_id = fields.pop("span_id", trace_id[:16])
            event["contexts"] = {"trace": {"trace_id": trace_id, "span_id": span_id}}
        measure = current_request.get()
        if measure is not None and measure.user_id is not None:
            event["user"] = {"id": str(measure.user_id)}
        more = {name: value for name, value in fields.items() if name not in TAGS}
        event["extra"] = {
            name: value for name, value in more.items() if name not in {"timestamp", "level"}
        }
        return event


def init_app(app: Quart, settings: Settings, closers: list[Callable[[], None]]) -> None:
    """Report the errors of an application while it serves.

    Args:
        app: the application.
        settings: its settings.
        closers: functions that send the rest at the end; one is added.
    """
    silence("sentry_sdk", "sentry_sdk.errors", "urllib3")
    dsn = settings.sentry_dsn.get_secret_value()

    class Transport(HttpTransport):
        """Reports once a minute what could not be sent."""

        failures = FailureLog(urlsplit(dsn).hostname or "")

        def on_dropped_event(self, reason: str) -> None:
            self.failures.report("errors", reason.replace("status_", "HTTP "))

    @app.before_serving
    async def start() -> None:
        attributes = process_attributes(settings)
        client = Client(
            dsn=dsn,
            transport=Transport,
            release=attributes.get("service.version"),
            environment=attributes["deployment.environment.name"],
            server_name=attributes["service.instance.id"],
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
            send_client_reports=False,
            include_local_variables=False,
            max_request_body_size="never",
            max_breadcrumbs=0,
        )
        handler = ErrorReports(client, attributes)
        logging.getLogger().addHandler(handler)

        def close() -> None:
            logging.getLogger().removeHandler(handler)
            client.close(timeout=10.0)  # the caller does not wait that long

        closers.append(close)
