"""A process that receives OTLP over HTTP and Sentry's envelopes, and prints what it received.

`python -m quart_upsun.tests.telemetry.collector MODE`, where mode is `accepts`, `fails` (500),
`limits` (429) or `hangs`. The first line is the port. Each further line is a JSON object with
`kind`: `span`, `metric`, `event`, or `request` for each request.
"""

import gzip
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

STATUS = {"accepts": 200, "fails": 500, "limits": 429, "hangs": 200}
_lock = threading.Lock()


def put(kind: str, **values: Any) -> None:
    with _lock:
        print(json.dumps({"kind": kind, **values}), flush=True)


def attributes(found: Any) -> dict[str, Any]:
    """Return attributes as a dictionary."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value"))
        for each in found
        if each.value.WhichOneof("value") != "array_value"
    }


def put_spans(body: bytes) -> None:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = attributes(resource.resource.attributes)
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            put(
                "span",
                name=span.name,
                trace=span.trace_id.hex(),
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                links=[[each.trace_id.hex(), each.span_id.hex()] for each in span.links],
                span_kind=span.kind,
                status=span.status.code,
                milliseconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e6,
                attributes=attributes(span.attributes),
                resource=about,
            )


def put_metrics(body: bytes) -> None:
    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
            points = getattr(metric, metric.WhichOneof("data")).data_points
            for point in points:
                put(
                    "metric",
                    name=metric.name,
                    count=getattr(point, "count", None),
                    attributes=attributes(point.attributes),
                )


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer as a page, for outgoing requests of the application."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        put("request", path=self.path, user_agent=self.headers.get("User-Agent"))
        if mode == "hangs":
            time.sleep(3600)
        if self.path == "/v1/traces":
            put_spans(body)
        elif self.path == "/v1/metrics":
            put_metrics(body)
        else:  # the format of envelopes: https://develop.sentry.dev/sdk/data-model/envelopes/
            lines = body.split(b"\n")
            assert json.loads(lines[1])["type"] == "event"
            put("event", event=json.loads(lines[2]))
        self.send_response(STATUS[mode])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


if __name__ == "__main__":
    mode = sys.argv[1]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
