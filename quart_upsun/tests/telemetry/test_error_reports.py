"""Error reports, as a service with Sentry's protocol receives them from the real server."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from quart_upsun.testing.servers import UPSUN, Server, serving
from quart_upsun.tests.telemetry.application import NAME
from quart_upsun.tests.telemetry.collecting import Collector, closed_port, collecting

SECRET = "hunter2"


@asynccontextmanager
async def reporting(
    collector: Collector, **variables: str
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """Run the application with a collector, and a client for it."""
    defaults = {"SENTRY_DSN": collector.dsn}
    async with (
        serving(1, NAME, **{**defaults, **variables}) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        yield server, client


def frames(event: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = event["exception"]["values"][-1]["stacktrace"]["frames"]
    return found


async def test_an_unhandled_exception_is_reported_without_values_of_the_request() -> None:
    async with collecting() as collector, reporting(collector, **UPSUN) as (server, client):
        response = await client.post(
            f"/crash/{SECRET}-path?query={SECRET}-query",
            data={"field": f"{SECRET}-form"},
            headers={
                "Cookie": f"session={SECRET}-cookie",
                "Authorization": f"Bearer {SECRET}-token",
                "X-Client-IP": "203.0.113.9",
            },
        )
        assert response.status_code == 500
        await collector.wait_for(lambda c: c.events, "report")
        (event,) = collector.events
        assert event["message"] == "unhandled exception"
        assert event["release"] == "1f3a"
        assert event["environment"] == "production"
        assert event["transaction"] == "POST /crash/<token>"
        assert event["user"] == {"id": "7"}
        assert event["tags"] == {
            "method": "POST",
            "route": "/crash/<token>",
            "request_id": response.headers["X-Request-ID"],
            "upsun.environment": "main-bvxea6i",
        }
        (line,) = server.events("unhandled exception")
        assert event["contexts"]["trace"]["trace_id"] == line["trace_id"]
        (exception,) = event["exception"]["values"]
        assert exception["type"] == "ValueError"
        assert exception["mechanism"]["handled"] is False
        assert exception["value"].startswith("cannot use '[hidden]'")
        assert frames(event)[-1]["function"] == "crash"
        assert not any("vars" in frame for frame in frames(event))
        assert "request" not in event
        assert SECRET not in str(event)
        assert "203.0.113.9" not in str(event)


async def test_a_failed_job_is_reported_without_its_message(database_url: str) -> None:
    async with (
        collecting() as collector,
        reporting(collector, DATABASE_URL=database_url, RUN_JOBS="1") as (_, client),
    ):
        await client.post("/failures", data={"value": SECRET})
        await collector.wait_for(lambda c: c.events, "report")
        (event,) = collector.events
        assert event["message"] == "job failed permanently"
        assert event["environment"] == "local"
        assert event["tags"] == {"task": "fail"}
        assert event["extra"]["reason"] == "bad value"
        assert event["exception"]["values"][-1]["type"] == "PermanentJobError"
        assert event["exception"]["values"][-1]["value"] == ""
        assert frames(event)[-1]["function"] == "fail"
        assert SECRET not in str(event)


async def test_reports_are_sent_before_the_server_stops() -> None:
    async with collecting() as collector, reporting(collector) as (server, client):
        await client.get("/crash/x")
        server.send()
        assert await server.wait_for_exit() == 0
        await collector.wait_for(lambda c: c.events, "report")


@pytest.mark.parametrize("mode", ["hangs", "limits", "fails", "refuses"])
async def test_a_service_that_is_away_delays_nothing(mode: str) -> None:
    async with collecting("accepts" if mode == "refuses" else mode) as collector:
        dsn = f"http://key@127.0.0.1:{closed_port()}/42" if mode == "refuses" else collector.dsn
        async with reporting(collector, SENTRY_DSN=dsn) as (server, client):
            slowest = 0.0
            for _ in range(150):  # more than the queue of the SDK holds
                started = time.monotonic()
                assert (await client.get("/crash/x")).status_code == 500
                slowest = max(slowest, time.monotonic() - started)
            assert slowest < 5  # one that hangs would take longer
            reasons = {
                "hangs": "full_queue",
                "limits": "HTTP 429",
                "fails": "HTTP 500",
                "refuses": "network",
            }
            (line,) = await server.wait_for_event("telemetry not delivered")
            assert line["signal"] == "errors"
            assert line["reason"] == reasons[mode]
            assert line["destination"] == "127.0.0.1"
            if mode == "limits":  # nothing is sent until the time of Retry-After is over
                assert collector.requests() < 20
            server.send()
            assert await server.wait_for_exit() == 0
            assert len(server.events("telemetry not delivered")) == 1
            # No line of the SDK, no traceback of its threads.
            others = [each for each in server.log() if each["event"] != "unhandled exception"]
            assert not [each for each in others if each["level"] == "error"]
            names = {each["logger"].partition(".")[0] for each in others}
            assert names == {"hypercorn", "quart_upsun"}
