"""What is measured of requests and jobs, and which of them are logged."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from quart import Quart, Response
from quart.testing import QuartClient as Client
from sqlalchemy import select

from quart_upsun.database import Database
from quart_upsun.identity import set_session_user
from quart_upsun.jobs.queue import JobContext, PermanentJobError, Task, enqueue
from quart_upsun.measure import JobMeasure, RequestMeasure, parse_traceparent
from quart_upsun.testing import runner_of
from quart_upsun.tests.metrics.recorder import Recorder
from quart_upsun.tests.sample import Settings, add_row, count_rows, create_app

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Ada:
    """A user."""

    id = 7
    username = "ada"


def add_routes(app: Quart) -> None:
    """Add routes that use the database, fail, stream or take time."""
    database: Database = app.extensions["quart_upsun"].database

    @app.get("/queries/<name>")
    async def queries(name: str) -> str:
        set_session_user(Ada())
        async with database.read() as session:
            await session.scalar(count_rows)
            await session.scalar(count_rows)
        async with database.direct() as connection:
            await connection.fetchval("SELECT pg_sleep(0.05)")
        return name

    @app.get("/write")
    async def write() -> str:
        async with database.write() as session:
            await session.execute(add_row, [{"kind": "a"}, {"kind": "b"}])
        return ""

    @app.get("/fails/<name>")
    async def fails(name: str) -> str:
        raise RuntimeError(name)

    @app.get("/sleep")
    async def sleep() -> str:
        await asyncio.sleep(0.06)
        return ""

    @app.get("/stream")
    async def stream() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            await asyncio.sleep(0.06)
            yield b"three"

        response = Response(parts())
        response.timeout = None
        return response


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    app = create_app(settings.model_copy(update={"slow_request_ms": 50}))
    add_routes(app)
    async with app.test_app():
        yield app


@pytest.fixture
def recorder(app: Quart) -> Recorder:
    return Recorder(app)


async def measured(app: Quart, path: str, **options: Any) -> RequestMeasure:
    recorder = Recorder(app)
    await app.test_client().get(path, **options)
    (measure,) = recorder.requests
    return measure


async def test_request_is_measured(app: Quart) -> None:
    await measured(app, "/queries/x")  # opens the gate
    measure = await measured(app, "/queries/secret-value")
    assert (measure.method, measure.route, measure.status) == ("GET", "/queries/<name>", 200)
    assert measure.user_id == 7
    assert measure.response_bytes == len("secret-value")
    assert measure.database.queries == 3
    assert 0.05 <= measure.database.seconds <= measure.seconds < 1
    assert measure.database.waited_seconds == 0
    assert "secret-value" not in str(measure)


async def test_statements_of_transactions_are_counted(app: Quart) -> None:
    await measured(app, "/write")
    assert (await measured(app, "/write")).database.queries == 3  # BEGIN, INSERT, COMMIT


async def test_wait_for_a_connection_is_measured(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"database_pool_size": 1}))
    add_routes(app)
    async with app.test_app():
        await measured(app, "/queries/x")
        recorder, client = Recorder(app), app.test_client()
        await asyncio.gather(client.get("/queries/x"), client.get("/queries/x"))
    waited = sorted(each.database.waited_seconds for each in recorder.requests)
    assert waited[1] >= 0.03
    # The wait does not count as database time.
    assert all(each.database.seconds < 0.1 for each in recorder.requests)


@pytest.mark.parametrize(
    ("path", "status", "route"),
    [("/absent/secret", 404, None), ("/fails/secret", 500, "/fails/<name>")],
)
async def test_rejected_and_failed_requests_are_measured(
    app: Quart, path: str, status: int, route: str | None
) -> None:
    measure = await measured(app, path)
    assert (measure.status, measure.route, measure.is_error) == (status, route, status == 500)


async def test_unknown_methods_share_a_name(settings: Settings) -> None:
    app = create_app(settings)
    recorder = Recorder(app)
    await app.test_client().open("/", method="BREW")  # type: ignore[call-arg]
    assert [(each.method, each.status) for each in recorder.requests] == [("_OTHER", 405)]


async def test_stream_is_marked(app: Quart) -> None:
    measure = await measured(app, "/stream")
    assert measure.is_stream
    assert measure.response_bytes == len(b"onethree")


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_trace_headers_are_used_only_if_trusted(
    settings: Settings, is_trusted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    update = {"trust_trace_headers": is_trusted, "request_log": "all"}
    app = create_app(settings.model_copy(update=update))
    recorder = Recorder(app)
    headers = {"traceparent": TRACEPARENT, "X-Request-ID": "from-the-proxy"}
    response = await app.test_client().get("/about/", headers=headers)
    (measure,) = recorder.requests
    assert (measure.trace_id == TRACE) is is_trusted
    assert (measure.parent == (TRACE, "b7ad6b7169203331", True)) is is_trusted
    assert (response.headers["X-Request-ID"] == "from-the-proxy") is is_trusted
    assert measure.request_id == response.headers["X-Request-ID"]
    (line,) = lines(caplog, "request handled")
    assert line["trace_id"] == measure.trace_id


async def test_invalid_request_id_is_replaced(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"trust_trace_headers": True}))
    recorder = Recorder(app)
    await app.test_client().get("/about/", headers={"X-Request-ID": "a b\u00e9"})
    assert len(recorder.requests[0].request_id) == 16


@pytest.mark.parametrize(
    "header",
    [
        "",
        TRACEPARENT.upper(),
        TRACEPARENT[:-1],
        f"{TRACEPARENT}-more",
        f"ff{TRACEPARENT[2:]}",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE}-{'0' * 16}-01",
    ],
)
def test_invalid_traceparent_is_ignored(header: str) -> None:
    assert parse_traceparent(header.encode()) is None


def test_traceparent_of_a_later_version_is_accepted() -> None:
    parent = parse_traceparent(f"01-{TRACE}-b7ad6b7169203331-00-more".encode())
    assert parent == (TRACE, "b7ad6b7169203331", False)


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """Return the logged lines of an event."""
    found = [each.msg for each in caplog.records if isinstance(each.msg, dict)]
    return [json.loads(json.dumps(each, default=str)) for each in found if each["event"] == event]


async def test_slow_and_failed_requests_are_logged(
    app: Quart, caplog: pytest.LogCaptureFixture
) -> None:
    await measured(app, "/queries/x")
    caplog.clear()
    for path in ("/about/", "/stream", "/absent/", "/queries/secret", "/fails/secret"):
        await app.test_client().get(path)
    slow, failed = lines(caplog, "request handled")
    assert slow["http.route"] == "/queries/<name>"
    assert slow["http.request.method"] == "GET"
    assert slow["http.response.status_code"] == 200
    assert slow["http.response.body.size"] == len("secret")
    assert slow["http.server.request.duration"] >= slow["db.client.operation.duration"] >= 0.05
    assert slow["db.client.operation.count"] == 3
    assert slow["user.id"] == 7
    assert len(slow["trace_id"]) == 32
    assert (failed["http.route"], failed["http.response.status_code"]) == ("/fails/<name>", 500)
    assert "secret" not in json.dumps([slow, failed])


@pytest.mark.parametrize(("mode", "count"), [("all", 2), ("slow", 0), ("off", 0)])
async def test_request_log_setting(
    settings: Settings, mode: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings.model_copy(update={"request_log": mode}))
    add_routes(app)
    async with app.test_app():
        for path in ("/about/", "/stream"):
            await app.test_client().get(path)
    assert len(lines(caplog, "request handled")) == count


async def test_failing_observer_does_not_fail_the_request(
    app: Quart, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def on_request(self, measure: RequestMeasure) -> None:
            raise RuntimeError("broken")

        def on_job(self, measure: JobMeasure) -> None:
            raise RuntimeError("broken")

    app.extensions["quart_upsun"].observers.insert(0, Broken())
    recorder = Recorder(app)
    assert (await client.get("/about/")).status_code == 200
    assert len(recorder.requests) == 1
    assert lines(caplog, "observer failed")


async def run_job(app: Quart, task: Task) -> None:
    async with app.extensions["quart_upsun"].database.write() as session:
        await enqueue(session, task)
    await runner_of(app, task).run_due()


async def test_job_is_measured_and_logged(
    app: Quart, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(job: JobContext) -> None:
        async with job.database.read() as session:
            await session.scalar(select(1))
        await asyncio.sleep(0.06)

    await run_job(app, Task("slow task", work))
    (measure,) = recorder.jobs
    assert (measure.task, measure.attempt, measure.outcome) == ("slow task", 1, "done")
    assert 0 <= measure.waited_seconds < 30
    assert 0.06 <= measure.seconds < 30
    assert measure.database.queries == 1
    (line,) = lines(caplog, "job handled")
    assert (line["task"], line["attempt"], line["outcome"]) == ("slow task", 1, "done")
    assert line["trace_id"] == measure.trace_id


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(RuntimeError("again"), "retried"), (PermanentJobError("no", "no"), "failed")],
)
async def test_failed_attempt_is_logged(
    app: Quart,
    recorder: Recorder,
    error: Exception,
    outcome: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work(job: JobContext) -> None:
        raise error

    await run_job(app, Task("failing task", work))
    assert [each.outcome for each in recorder.jobs] == [outcome]
    assert [line["outcome"] for line in lines(caplog, "job handled")] == [outcome]
