"""Maintenance and read-only mode in one process: commands, responses, jobs and streams."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner, Result
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, update

from quart_upsun.commands.switches import switch_group
from quart_upsun.current import current_toolkit
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.jobs import JobContext, Task, enqueue
from quart_upsun.policy import NO_STORE, always_open
from quart_upsun.security.models import AuditEvent
from quart_upsun.switches import (
    MAINTENANCE,
    READ_ONLY,
    Switch,
    Switches,
    current_switches,
    state,
    watcher,
)
from quart_upsun.switches.models import MAX_MESSAGE_LENGTH, SwitchRow
from quart_upsun.switches.state import MIN_RETRY_AFTER_SECONDS
from quart_upsun.testing.servers import eventually
from quart_upsun.tests.sample import Settings, create_app

Run = Callable[..., Awaitable[Result]]


@pytest.fixture(autouse=True)
def no_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes are noticed because of a notification, not because of the next poll."""
    monkeypatch.setattr(watcher, "POLL_SECONDS", 600.0)


@pytest.fixture
def quick_poll(no_poll: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "POLL_SECONDS", 0.2)


@pytest.fixture
def run(database_url: str) -> Run:
    """Run a command of a switch, in a thread, because it has an event loop of its own."""

    async def invoke(name: str, *arguments: str, expected: int = 0) -> Result:
        group = switch_group(parse_database_url(database_url), name)
        result = await asyncio.to_thread(CliRunner().invoke, group, arguments)
        assert result.exit_code == expected, result.output
        return result

    return invoke


@pytest.fixture
def switches(app: Quart) -> Switches:
    found: Switches = app.extensions["quart_upsun"].switches
    return found


@pytest.fixture
async def reader(app: Quart) -> AsyncIterator[Client]:
    """A client of another application on the same database, as a second process would have."""
    settings = app.extensions["quart_upsun"].settings
    other = create_app(settings)
    async with other.test_app():
        yield other.test_client()  # type: ignore[misc]


def minutes_left(minutes: int) -> set[str]:
    """Return the values of `Retry-After` within two minutes of a command."""
    return {str(60 * minutes - passed) for passed in range(120)}


async def until(condition: Callable[[], bool]) -> None:
    await eventually(condition, "change")


async def test_maintenance_refuses_all_but_health_checks(
    client: Client, run: Run, switches: Switches
) -> None:
    await run(MAINTENANCE, "on", "--message", "Back <at> noon.", "--retry-after", "7")
    await until(lambda: MAINTENANCE in switches.active)
    for path in ("/", "/rows/", "/nothing"):
        page = await client.get(path)
        assert page.status_code == 503, path
        assert page.headers["Retry-After"] in minutes_left(7)
        assert page.headers["Cache-Control"] == NO_STORE
        assert "Back &lt;at&gt; noon." in await page.get_data(as_text=True)
    answer = await client.get("/api/v1/rows", headers={"Authorization": "Bearer token-7"})
    assert (answer.status_code, answer.content_type) == (503, "application/problem+json")
    assert answer.headers["Retry-After"] in minutes_left(7)
    assert (await answer.get_json())["detail"] == "Back <at> noon."
    for path in ("/livez", "/readyz"):
        assert (await client.get(path)).status_code == 200, path
    await run(MAINTENANCE, "off")
    await until(lambda: not switches.active)
    assert (await client.get("/")).status_code == 200


async def test_maintenance_lets_exempt_requests_and_open_views_pass(
    app: Quart, client: Client, run: Run, switches: Switches
) -> None:
    @always_open
    async def entrance() -> str:
        return "open"

    # The application has served no request yet.
    app.add_url_rule("/entrance", view_func=entrance, methods=["GET", "POST"])
    await run(MAINTENANCE, "on")
    await run(READ_ONLY, "on")
    await until(lambda: len(switches.active) == 2)
    assert (await client.get("/entrance")).status_code == 200
    assert (await client.post("/entrance")).status_code == 200

    async def is_exempt() -> bool:
        return True

    assert (await client.get("/")).status_code == 503
    switches.is_exempt = is_exempt
    assert (await client.get("/")).status_code == 200


async def test_read_only_mode_refuses_unsafe_methods(
    client: Client, run: Run, switches: Switches
) -> None:
    await run(READ_ONLY, "on")
    await until(lambda: READ_ONLY in switches.active)
    assert (await client.get("/rows/")).status_code == 200
    page = await client.post("/rows/", form={"kind": "x"})
    assert page.status_code == 503
    assert page.headers["Retry-After"] == "300"
    assert "read-only at the moment" in await page.get_data(as_text=True)
    assert await (await client.get("/rows/")).get_data(as_text=True) == "0"
    # Not found and not allowed are still that.
    assert (await client.post("/nothing")).status_code == 404
    assert (await client.post("/about/")).status_code == 405
    await run(READ_ONLY, "off")
    await until(lambda: not switches.active)
    assert (await client.post("/rows/", form={"kind": "x"})).status_code == 303


async def test_a_process_that_starts_later_knows_at_once(run: Run, settings: Settings) -> None:
    await run(MAINTENANCE, "on")
    app = create_app(settings)
    async with app.test_app():
        assert (await app.test_client().get("/about/")).status_code == 503


async def test_requests_do_not_wait_long_for_a_database_that_is_away(
    settings: Settings, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "FIRST_READ_SECONDS", 60.0)
    url = parse_database_url(f"postgresql://u:p@127.0.0.1:{unused_tcp_port}/d")
    app = create_app(settings.model_copy(update={"database_url": url}))
    async with app.test_app():
        async with asyncio.timeout(20):
            assert (await app.test_client().get("/about/")).status_code == 200


async def test_the_last_known_state_holds_during_an_outage(
    client: Client, run: Run, switches: Switches, database_url: str, server_url: str
) -> None:
    await run(MAINTENANCE, "on")
    await until(lambda: bool(switches.active))
    name = database_url.rpartition("/")[2].partition("?")[0]
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1", name
        )
        page = await client.get("/about/")
        assert page.status_code == 503
        assert "maintenance" in await page.get_data(as_text=True)
    finally:
        await connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await connection.close()
    await run(MAINTENANCE, "off")  # the listener may have reconnected already, or does so now
    await until(lambda: not switches.active)


async def test_changes_without_a_notification_are_found_by_the_poll(
    quick_poll: None, run: Run, switches: Switches, database_url: str
) -> None:
    await run(READ_ONLY, "on")
    await until(lambda: bool(switches.active))
    connection = await asyncpg.connect(database_url)
    await connection.execute("DELETE FROM switches")
    await connection.close()
    await until(lambda: not switches.active)


async def test_all_processes_are_notified(
    client: Client, reader: Client, run: Run, switches: Switches
) -> None:
    assert (await reader.get("/about/")).status_code == 200
    await run(MAINTENANCE, "on")
    others: Switches = reader.app.extensions["quart_upsun"].switches
    await until(lambda: bool(switches.active and others.active))
    assert (await client.get("/about/")).status_code == 503
    assert (await reader.get("/about/")).status_code == 503


@pytest.mark.parametrize("name", [MAINTENANCE, READ_ONLY])
async def test_jobs_pause_while_a_switch_is_on(
    app: Quart, database: Database, run: Run, switches: Switches, name: str
) -> None:
    done: list[int] = []

    async def work(job: JobContext) -> None:
        done.append(job.id)

    task = Task("switch test", work)
    jobs = app.extensions["quart_upsun"].jobs
    jobs.register(task)
    await run(name, "on")
    await until(lambda: bool(switches.active))
    async with database.write() as session:
        await enqueue(session, task)
    running = asyncio.create_task(jobs.run())
    try:
        await asyncio.sleep(1)  # a job that is not paused starts in a fraction of it
        assert not done
        await run(name, "off")
        await until(lambda: bool(done))
    finally:
        jobs.stop()
        await running


async def test_maintenance_ends_open_streams_and_read_only_mode_does_not(
    app: Quart, user: int, run: Run, switches: Switches
) -> None:
    live = app.extensions["quart_upsun"].live
    stream = live.open(user, None, None)
    pieces: list[bytes] = []

    async def consume() -> None:
        async for piece in stream:
            pieces.append(piece)
        await stream.aclose()

    reading = asyncio.create_task(consume())
    await until(lambda: len(pieces) >= 2)  # `retry` and `hello`
    await run(READ_ONLY, "on")
    await until(lambda: bool(switches.active))
    assert len(live) == 1
    await run(MAINTENANCE, "on")
    await asyncio.wait_for(reading, 20)
    assert len(live) == 0


async def test_changes_are_in_the_audit_trail(database: Database, run: Run) -> None:
    await run(MAINTENANCE, "on")
    await run(MAINTENANCE, "off")
    assert "already off" in (await run(MAINTENANCE, "off")).output
    await run(READ_ONLY, "on")
    async with database.read() as session:
        events = (await session.scalars(select(AuditEvent).order_by(AuditEvent.id))).all()
    assert [event.kind for event in events] == [
        "maintenance on",
        "maintenance off",
        "read-only mode on",
    ]
    assert {(event.user_id, event.actor_id, event.client) for event in events} == {
        (None, None, None)
    }


async def test_clients_are_told_when_it_is_expected_to_end(
    client: Client, database: Database, run: Run, switches: Switches
) -> None:
    end = datetime.now(UTC) + timedelta(hours=3)
    longest = "x" * MAX_MESSAGE_LENGTH
    output = (await run(MAINTENANCE, "on", "--message", longest, "--until", "3h")).output
    assert f"Expected end: {end:%Y-%m-%d}" in output
    assert "in 180 minutes. Switch it off yourself then." in output
    await until(lambda: MAINTENANCE in switches.active)
    page = await client.get("/")
    assert page.headers["Retry-After"] in minutes_left(180)
    assert f"{longest} Expected end: {end:%Y-%m-%d}" in await page.get_data(as_text=True)
    # Another time counts from now as well, although it has been on since before.
    async with database.write() as session:
        await session.execute(update(SwitchRow).values(since=func.now() - timedelta(hours=1)))
    await run(MAINTENANCE, "on", "--until", "10m")
    await until(lambda: "down for" in switches.active[MAINTENANCE].message)
    page = await client.get("/")
    assert page.headers["Retry-After"] in minutes_left(10)
    assert "The site is down for maintenance. Expected end: 20" in await page.get_data(as_text=True)


def test_clients_try_again_every_minute_after_the_expected_end() -> None:
    since = datetime.now(UTC) - timedelta(minutes=10)
    assert Switch(MAINTENANCE, "Soon.", 300, since).retry_after == MIN_RETRY_AFTER_SECONDS


async def test_status_shows_the_current_message(app: Quart, run: Run, switches: Switches) -> None:
    assert (await run(MAINTENANCE, "status")).output == "Maintenance is off.\n"
    await run(MAINTENANCE, "on", "--message", "First.")
    await run(MAINTENANCE, "on", "--message", "Second.", "--retry-after", "60")
    shown = (await run(MAINTENANCE, "status")).output.splitlines()
    assert shown[0].startswith("Maintenance is on since 20")
    assert shown[1] == "Message: Second."
    end = datetime.strptime(shown[2], "Clients try again: %Y-%m-%d %H:%M UTC").replace(tzinfo=UTC)
    assert timedelta(minutes=57) < end - datetime.now(UTC) <= timedelta(minutes=60)
    await until(lambda: bool(switches.active))
    async with app.app_context():
        [switch] = current_switches()
        assert current_toolkit().switches is switches
    assert (switch.title, switch.message) == ("Maintenance", "Second.")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--message", "x" * (MAX_MESSAGE_LENGTH + 1)], "The message has 451 characters"),
        (["--message", "  "], "The message is empty."),
        (["--message", "two\nlines"], "one line without control characters"),
        (["--retry-after", "0"], "0 is not in the range"),
        (["--until", "2020-01-01T00:00Z"], "is in the past: it is 20"),
        (["--until", "soon"], "'soon' is not a time. Use 14:30Z,"),
        (["--until", "1h", "--retry-after", "5"], "Use either --retry-after or --until."),
    ],
)
async def test_invalid_options_are_rejected(run: Run, arguments: list[str], sentence: str) -> None:
    output = (await run(MAINTENANCE, "on", *arguments, expected=2)).output
    assert sentence in " ".join(output.split())
    assert (await run(MAINTENANCE, "status")).output == "Maintenance is off.\n"


async def test_database_errors_are_one_sentence(empty_database: str) -> None:
    group = switch_group(parse_database_url(empty_database), MAINTENANCE)
    result: Any = await asyncio.to_thread(CliRunner().invoke, group, ["on"])
    assert result.exit_code == 1
    assert "If it is not migrated, run `alembic upgrade head`." in result.output
