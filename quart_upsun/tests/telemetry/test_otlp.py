"""Traces and metrics, as a collector receives them from the real server."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from quart_upsun.testing.servers import UPSUN, Server, serving, spawned
from quart_upsun.tests.telemetry.application import NAME
from quart_upsun.tests.telemetry.collecting import Collector, closed_port, collecting

SERVER, CLIENT, CONSUMER = 2, 3, 5  # https://opentelemetry.io/docs/specs/otel/trace/api/#spankind
ERROR = 2
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}


@asynccontextmanager
async def traced(
    collector: Collector, processes: int = 1, **variables: str
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """Run the application with a collector, and a client for it."""
    defaults = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "PAGE": f"{collector.url}/page?token=hunter2",
    }
    async with (
        serving(processes, NAME, **{**defaults, **variables}) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        yield server, client


def named(collector: Collector, name: str) -> list[dict[str, Any]]:
    return [span for span in collector.spans if span["name"] == name]


async def test_a_job_is_linked_to_the_request_that_enqueued_it(database_url: str) -> None:
    async with (
        collecting() as collector,
        traced(collector, DATABASE_URL=database_url, RUN_JOBS="1") as (server, client),
    ):
        assert (await client.post("/previews/hunter2?key=hunter2")).status_code == 200
        await collector.wait_for(lambda c: named(c, "process preview"), "span of the job")
        (request,) = named(collector, "POST /previews/<name>")
        (job,) = named(collector, "process preview")
        assert request["span_kind"] == SERVER
        assert request["parent"] == ""
        assert request["attributes"] == {
            "http.request.method": "POST",
            "http.route": "/previews/<name>",
            "http.response.status_code": 200,
            "url.scheme": "http",
        }
        assert job["span_kind"] == CONSUMER
        assert job["links"] == [[request["trace"], request["id"]]]
        assert job["trace"] != request["trace"]
        assert job["attributes"]["quart_upsun.job.outcome"] == "done"

        # One statement of the fast path, and those of a transaction.
        queries = [span for span in collector.spans if span["parent"] == request["id"]]
        texts = [span["attributes"]["db.query.text"] for span in queries]
        assert "SELECT count(*) FROM mails WHERE kind = $1" in texts
        assert any("INSERT INTO pgqueuer" in each for each in texts)
        assert {span["trace"] for span in queries} == {request["trace"]}
        assert {span["attributes"]["db.system.name"] for span in queries} == {"postgresql"}

        steps = {s["name"]: s for s in collector.spans if s["parent"] == job["id"]}
        assert steps["SELECT"]["attributes"]["db.operation.name"] == "SELECT"
        assert "own" in steps
        assert steps["GET"]["attributes"] == {
            "http.request.method": "GET",
            "server.address": "127.0.0.1",
            "server.port": collector.port,
            "http.response.status_code": 200,
        }
        assert "hunter2" not in str(collector.received)

        # Lines of the log have the ids of the spans.
        (line,) = server.events("enqueueing")
        assert (line["trace_id"], line["span_id"]) == (request["trace"], request["id"])
        (line,) = server.events("previewing")
        assert (line["trace_id"], line["span_id"]) == (job["trace"], job["id"])
        await server.stop_cleanly()


async def test_a_job_of_the_worker_is_linked_to_a_request_of_the_server(database_url: str) -> None:
    async with (
        collecting() as collector,
        traced(collector, DATABASE_URL=database_url, RUN_JOBS="0") as (server, client),
    ):
        await client.post("/previews/x")
        await server.stop_cleanly()
        variables = {
            "DATABASE_URL": database_url,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "PAGE": collector.url,
        }
        async with spawned(1, NAME, "worker", **variables) as worker:
            await worker.wait_for_event("previewing")
            worker.send()
            assert await worker.wait_for_exit() == 0
            assert worker.problems() == []
        (request,) = named(collector, "POST /previews/<name>")
        (job,) = named(collector, "process preview")  # sent when the worker stopped
        assert job["links"] == [[request["trace"], request["id"]]]
        instances = {each["resource"]["service.instance.id"] for each in (request, job)}
        assert len(instances) == 2


async def test_mail_is_traced(database_url: str) -> None:
    async with (
        collecting() as collector,
        traced(collector, DATABASE_URL=database_url, RUN_JOBS="1") as (server, client),
    ):
        await client.post("/mails")
        await collector.wait_for(lambda c: named(c, "process mail"), "span of the job")
        (mail,) = named(collector, "send mail")
        (job,) = named(collector, "process mail")
        assert mail["parent"] == job["id"]
        assert mail["attributes"] == {"quart_upsun.mail.kind": "greeting"}
        assert "example.com" not in str(collector.spans)
        await server.stop_cleanly()


async def test_failed_requests_are_marked() -> None:
    async with collecting() as collector, traced(collector) as (_, client):
        assert (await client.get("/crash/hunter2?key=hunter2")).status_code == 500
        assert (await client.get("/hunter2")).status_code == 404
        await collector.wait_for(lambda c: len(named(c, "GET")) == 1, "span of the 404")
        (crash,) = named(collector, "GET /crash/<token>")
        assert crash["status"] == ERROR
        assert crash["attributes"]["error.type"] == "500"
        (missing,) = named(collector, "GET")
        assert missing["status"] != ERROR
        assert "http.route" not in missing["attributes"]
        assert "hunter2" not in str(collector.received)


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_the_parent_is_taken_over_only_where_it_is_trusted(is_trusted: bool) -> None:
    async with (
        collecting() as collector,
        traced(collector, TRUST_TRACE_HEADERS=str(int(is_trusted))) as (_, client),
    ):
        await client.get("/process", headers=TRACEPARENT)
        await collector.wait_for(lambda c: named(c, "GET /process"), "span")
        (span,) = named(collector, "GET /process")
        assert (span["trace"] == TRACE_ID) is is_trusted
        assert span["parent"] == (SPAN_ID if is_trusted else "")


async def test_each_forked_process_sends_its_spans_and_metrics() -> None:
    async with collecting() as collector, traced(collector, 2, **UPSUN) as (server, client):
        seen: set[str] = set()
        while len(seen) < 2:
            response = await client.get(
                "/process", headers={"Connection": "close", "X-Forwarded-Proto": "https"}
            )
            seen.add(response.text)
        await server.stop_cleanly()
        await collector.wait_for(lambda c: len(c.metrics) > 0, "metrics")
        found = {
            span["resource"]["service.instance.id"] for span in named(collector, "GET /process")
        }
        assert {each.rpartition("-")[2] for each in found} == seen
        resource = named(collector, "GET /process")[0]["resource"]
        assert resource["service.name"] == "app"
        assert resource["service.version"] == "1f3a"
        assert resource["deployment.environment.name"] == "production"
        assert resource["upsun.environment"] == "main-bvxea6i"


async def test_metrics_are_sent_when_the_server_stops(database_url: str) -> None:
    async with (
        collecting() as collector,
        traced(collector, DATABASE_URL=database_url, RUN_JOBS="1") as (server, client),
    ):
        await client.post("/previews/x")
        await collector.wait_for(lambda c: named(c, "process preview"), "span of the job")
        await server.stop_cleanly()
        await collector.wait_for(lambda c: c.metrics, "metrics")
        found = {metric["name"]: metric for metric in collector.metrics}
        assert found["http.server.request.duration"]["count"] >= 1
        assert found["messaging.process.duration"]["attributes"] == {
            "messaging.destination.name": "preview"
        }
        assert "db.client.operation.duration" in found
        assert "db.client.connection.count" in found
        assert "process.memory.usage" in found
        assert "quart_upsun.event_loop.lag" in found


async def test_variables_of_the_sdk_work() -> None:
    async with (
        collecting() as collector,
        traced(
            collector,
            OTEL_SERVICE_NAME="shop",
            OTEL_RESOURCE_ATTRIBUTES="team=blue",
            OTEL_TRACES_SAMPLER="parentbased_always_off",
            TRUST_TRACE_HEADERS="1",
        ) as (_, client),
    ):
        await client.get("/livez")
        await client.get("/process", headers=TRACEPARENT)  # sampled by the caller
        await collector.wait_for(lambda c: named(c, "GET /process"), "sampled span")
        assert len(collector.spans) == 1
        resource = collector.spans[0]["resource"]
        assert (resource["service.name"], resource["team"]) == ("shop", "blue")


EXPORT_SECONDS = 5


@pytest.mark.parametrize("mode", ["hangs", "fails", "refuses"])
async def test_a_collector_that_is_away_delays_nothing(mode: str) -> None:
    async with collecting("accepts" if mode == "refuses" else mode) as collector:
        url = f"http://127.0.0.1:{closed_port()}" if mode == "refuses" else collector.url
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_BSP_MAX_QUEUE_SIZE": "20",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10",
            "OTEL_EXPORTER_OTLP_TIMEOUT": str(EXPORT_SECONDS),
        }
        async with traced(collector, 1, **variables) as (server, client):
            slowest = 0.0
            for _ in range(200):  # ten times the queue
                started = time.monotonic()
                assert (await client.get("/process")).status_code == 200
                slowest = max(slowest, time.monotonic() - started)
            assert slowest < EXPORT_SECONDS
            (line,) = await server.wait_for_event("telemetry not delivered")
            assert line["signal"] == "traces"
            assert line["destination"] == url.removeprefix("http://")
            expected = {"fails": "HTTP 500", "hangs": "ReadTimeout", "refuses": "ConnectionError"}
            assert line["reason"] == expected[mode]
            await server.stop_cleanly()  # no traceback and no other line of the SDK
            assert time.monotonic() - server.stopped < EXPORT_SECONDS
            assert len(server.events("telemetry not delivered")) == 1
            assert not [each for each in server.log() if "opentelemetry" in each["logger"]]


async def test_nothing_is_imported_without_the_variables() -> None:
    code = (
        "import sys; from quart_upsun.tests.sample import create_app; create_app();"
        "print(*[m for m in sys.modules if m.partition('.')[0] in"
        " {'opentelemetry', 'sentry_sdk', 'requests'} or m.startswith('quart_upsun.telemetry.')])"
    )
    assert (await run(code)).split() == []


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
            "OTEL_EXPORTER_OTLP_ENDPOINT is not the URL of a collector. Use, for example,"
            " http://host:4318.",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:hunter2@host:4318"},
            "OTEL_EXPORTER_OTLP_ENDPOINT is not the URL of a collector. Use, for example,"
            " http://host:4318.",
        ),
        (
            {"SENTRY_DSN": "https://hunter2@/x"},
            "SENTRY_DSN is malformed. Use the DSN of the project's settings: https://key@host/project.",
        ),
        (
            {"METRICS_TOKEN": "hunter2"},
            "METRICS_TOKEN must have at least 16 ASCII characters, and no spaces.",
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://host:4318", "WITHOUT": "opentelemetry"},
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but the package 'opentelemetry' is not installed."
            " Add quart-upsun[otel] to the requirements, or unset OTEL_EXPORTER_OTLP_ENDPOINT.",
        ),
        (
            {"SENTRY_DSN": "https://key@host/1", "WITHOUT": "sentry_sdk"},
            "SENTRY_DSN is set, but the package 'sentry_sdk' is not installed. Add"
            " quart-upsun[sentry] to the requirements, or unset SENTRY_DSN.",
        ),
    ],
)
async def test_invalid_variables_end_the_start_with_a_sentence(
    variables: dict[str, str], message: str
) -> None:
    # A finder that does not find the package stands in for an environment without it.
    code = (
        "import os, sys, importlib.abc\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == os.environ.get('WITHOUT'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from quart_upsun.tests.sample import create_app; create_app()"
    )
    assert (await run(code, code=1, **variables)).strip() == message


async def run(source: str, code: int = 0, **variables: str) -> str:
    """Run Python code, and return its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", source),
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
            "SECRET_KEY": "x" * 40,
            **variables,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == code, output.decode()
    return output.decode()
