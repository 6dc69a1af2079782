"""Sessions, the connection pool and the schema gate, on a real PostgreSQL."""

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import certifi
import pytest
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from quart import Quart
from sqlalchemy import URL, make_url, select, text

from quart_upsun.database import (
    Database,
    DatabaseUnavailableError,
    LockTimeoutError,
    ReadOnlyDatabaseError,
    SchemaBehindError,
)
from quart_upsun.database.url import parse_database_url
from quart_upsun.mail.models import Mail
from quart_upsun.testing.certificates import server_context
from quart_upsun.testing.databases import set_read_only, writable_again
from quart_upsun.tests.sample import add_row, count_rows, create_app
from quart_upsun.tests.sample.settings import ROOT, Settings


def settings_for(url: str) -> Settings:
    return Settings(
        database_url=parse_database_url(url),
        secret_key=SecretStr("a secret key that is only for tests"),
    )


@pytest.fixture
async def unmigrated(empty_database: str) -> AsyncIterator[Quart]:
    app = create_app(settings_for(empty_database))
    async with app.test_app():
        yield app


async def migrate(monkeypatch: pytest.MonkeyPatch, url: str, revision: str = "head") -> None:
    """Migrate in a thread, so that the application does not hold locks meanwhile."""
    monkeypatch.setenv("DATABASE_URL", url)
    change = command.downgrade if revision == "base" else command.upgrade
    await asyncio.to_thread(change, Config(ROOT / "alembic.ini"), revision)


async def add(database: Database, kind: str) -> None:
    async with database.write() as session:
        await session.execute(add_row, {"kind": kind})


async def count(database: Database) -> int:
    async with database.read() as session:
        return await session.scalar(count_rows) or 0


async def test_write_commits_or_rolls_back(app: Quart) -> None:
    database: Database = app.extensions["quart_upsun"].database
    await add(database, "kept")

    async def fail_in_the_middle() -> None:
        async with database.write() as session:
            await session.execute(add_row, {"kind": "lost"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_in_the_middle()
    assert await count(database) == 1


async def test_each_statement_of_read_is_a_transaction(app: Quart) -> None:
    async with app.extensions["quart_upsun"].database.read() as session:
        first = await session.scalar(text("SELECT pg_current_xact_id()"))
        second = await session.scalar(text("SELECT pg_current_xact_id()"))
    assert first != second


async def test_an_exception_returns_the_connection_to_the_pool(app: Quart) -> None:
    database: Database = app.extensions["quart_upsun"].database

    async def fail() -> None:
        async with database.read() as session:
            await session.scalar(text("SELECT 1"))
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await fail()
    pool: Any = database.engine.pool
    assert pool.checkedout() == 0


@pytest.mark.parametrize("way", [Database.read, Database.direct])
async def test_an_exhausted_pool_times_out(
    way: Callable[[Database], AbstractAsyncContextManager[Any]],
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quart_upsun.database.session.POOL_TIMEOUT_SECONDS", 0.05)
    database = Database(parse_database_url(database_url), pool_size=1, migrations=ROOT / "alembic")
    async with way(database):
        with pytest.raises(DatabaseUnavailableError, match="in use"):
            async with way(database):
                pass
    assert await count(database) == 0
    await database.close()


async def test_requests_get_503_until_the_schema_is_migrated(
    unmigrated: Quart, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = unmigrated.test_client()
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/")).status_code == 200

    ready = await client.get("/readyz")
    gate = unmigrated.extensions["quart_upsun"].database.gate
    assert ready.status_code == 503
    assert await ready.get_json() == {
        "status": "unready",
        "reason": "schema",
        "database": None,
        "needed": gate.needed,
    }
    page = await client.get("/rows/")
    assert page.status_code == 503
    assert int(page.headers["Retry-After"]) > 0
    assert page.headers["Cache-Control"] == "private, no-store"

    await migrate(monkeypatch, empty_database)
    assert (await client.get("/readyz")).status_code == 200
    responses = await asyncio.gather(*(unmigrated.test_client().get("/rows/") for _ in range(20)))
    assert {response.status_code for response in responses} == {200}


async def test_the_gate_does_not_return_a_stale_state(app: Quart, database_url: str) -> None:
    """After the migration, a deploy releases all held requests within milliseconds."""
    gate = app.extensions["quart_upsun"].database.gate
    connection = await asyncpg.connect(database_url)
    for _ in range(3):
        await connection.execute("DELETE FROM alembic_version")
        gate.close()
        held = [asyncio.create_task(gate.check()) for _ in range(3)]
        assert all(
            isinstance(result, SchemaBehindError)
            for result in await asyncio.gather(*held, return_exceptions=True)
        )
        await connection.execute("INSERT INTO alembic_version VALUES ($1)", gate.needed)
        async with asyncio.timeout(30):
            await asyncio.gather(*(gate.check() for _ in range(3)))
    await connection.close()


async def test_the_gate_logs_a_reason_once(
    unmigrated: Quart, caplog: pytest.LogCaptureFixture
) -> None:
    client = unmigrated.test_client()
    for _ in range(2):
        await client.get("/readyz")
        await client.get("/rows/")
    assert caplog.text.count("schema behind") == 1


async def test_a_newer_schema_is_accepted(app: Quart, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    await connection.close()
    client = app.test_client()
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.get("/rows/")).status_code == 200


async def test_a_dropped_schema_closes_the_gate(
    unmigrated: Quart, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be restored from an old backup, or synced from another environment."""
    # With the migrations of this tree: an unknown revision would count as newer.
    await migrate(monkeypatch, empty_database)
    client = unmigrated.test_client()
    assert (await client.get("/rows/")).status_code == 200
    await migrate(monkeypatch, empty_database, "base")
    assert (await client.get("/rows/")).status_code == 503
    assert (await client.get("/readyz")).status_code == 503
    await migrate(monkeypatch, empty_database)
    assert (await client.get("/rows/")).status_code == 200


async def test_a_changed_column_type_does_not_break_pooled_connections(
    app: Quart, database_url: str
) -> None:
    """The previous release runs while the next one migrates; its prepared plans become stale."""
    database: Database = app.extensions["quart_upsun"].database
    await add(database, "ada")
    barrier = asyncio.Barrier(5)

    async def query() -> str | None:
        async with database.read() as session:
            await barrier.wait()  # five connections at once
            return await session.scalar(select(Mail.kind))

    async with asyncio.timeout(30):
        assert await asyncio.gather(*(query() for _ in range(5))) == ["ada"] * 5
    connection = await asyncpg.connect(database_url)
    await connection.execute("ALTER TABLE mails ALTER COLUMN kind TYPE text")
    await connection.close()
    async with asyncio.timeout(30):
        assert await asyncio.gather(*(query() for _ in range(5))) == ["ada"] * 5


async def test_closed_idle_connections_are_replaced(
    app: Quart, server_url: str, database_url: str
) -> None:
    database: Database = app.extensions["quart_upsun"].database
    assert await count(database) == 0
    connection = await asyncpg.connect(server_url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = $1 AND pid <> pg_backend_pid()",
        database_url.partition("?")[0].rpartition("/")[2],
    )
    await connection.close()
    await asyncio.sleep(0.1)  # lets the event loop notice the closed sockets
    assert await count(database) == 0


async def test_an_unreachable_database_is_unavailable(unused_tcp_port: int) -> None:
    app = create_app(settings_for(f"postgresql://u:p@127.0.0.1:{unused_tcp_port}/d"))
    async with app.test_app():
        client = app.test_client()
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/")).status_code == 200
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert await response.get_json() == {"status": "unready", "reason": "database"}
        page = await client.get("/rows/")
        assert page.status_code == 503
        with pytest.raises(DatabaseUnavailableError):
            async with app.extensions["quart_upsun"].database.read():
                pass


def test_schema_behind_names_both_revisions() -> None:
    assert "none" in str(SchemaBehindError(None, "abc"))
    assert "abc" in str(SchemaBehindError("old", "abc"))


WAYS = pytest.mark.parametrize("way", [Database.read, Database.write, Database.direct])


@WAYS
@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("of a call elsewhere"),
        ConnectionResetError("of a call elsewhere"),
        OSError("of a call elsewhere"),
        asyncpg.InterfaceError("of another connection"),
        asyncpg.CannotConnectNowError("of another database"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_exception_of_the_block_passes_through(
    way: Callable[[Database], AbstractAsyncContextManager[Any]], error: Exception, app: Quart
) -> None:
    database: Database = app.extensions["quart_upsun"].database

    async def fail() -> None:
        async with way(database) as session:
            if way is Database.write:
                await session.execute(add_row, {"kind": "lost"})
            raise error

    assert await count(database) == 0
    with pytest.raises(type(error)) as raised:
        await fail()
    assert raised.value is error
    assert database.gate.is_open
    assert await count(database) == 0


@pytest.mark.parametrize("way", [Database.read, Database.write])
async def test_a_statement_timeout_is_an_outage(
    way: Callable[[Database], AbstractAsyncContextManager[Any]], database_url: str
) -> None:
    """asyncpg raises `TimeoutError` if the server's own timeout does not end the statement."""
    database = Database(parse_database_url(database_url), pool_size=1, migrations=ROOT / "alembic")
    assert await count(database) == 0

    async def query() -> None:
        async with way(database) as session:
            connection = await session.connection()
            pooled = await connection.get_raw_connection()
            pooled.driver_connection._config = pooled.driver_connection._config._replace(
                command_timeout=0.05
            )
            await session.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(DatabaseUnavailableError, match="the connection to the database was lost"):
        await query()
    assert not database.gate.is_open
    assert await count(database) == 0
    await database.close()


async def test_the_block_can_catch_a_lock_timeout(app: Quart, database_url: str) -> None:
    database: Database = app.extensions["quart_upsun"].database
    holder = await asyncpg.connect(database_url)
    await holder.execute("BEGIN; LOCK TABLE mails")
    async with database.read() as session:
        await session.execute(text("SET lock_timeout = '10ms'"))
        with pytest.raises(LockTimeoutError):
            await session.execute(text("SELECT 1 FROM mails"))
        await session.invalidate()
    await holder.close()
    assert database.gate.is_open


@WAYS
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_cancellation_rolls_back_and_returns_the_connection(
    way: Callable[[Database], AbstractAsyncContextManager[Any]], times: int, app: Quart
) -> None:
    """Cancels at every step of connect, statements, commit and rollback, up to three times."""
    database: Database = app.extensions["quart_upsun"].database
    pool: Any = database.engine.pool
    async with database.write() as session:
        await session.execute(text("CREATE TABLE pairs (half integer)"))

    async def work() -> None:
        async with way(database) as session:
            if way is Database.direct:
                await session.fetch("SELECT 1")
                return
            for half in (1, 2) if way is Database.write else ():
                await session.execute(text("INSERT INTO pairs VALUES (:half)"), {"half": half})
            await session.execute(text("SELECT 1"))
            if way is Database.write and step % 2:
                raise ZeroDivisionError  # to be cancelled while it rolls back

    unhandled: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    ends = set()
    try:
        for step in range(60):
            task = asyncio.create_task(work())
            for _ in range(step // 2):
                await asyncio.sleep(0)
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            try:
                await task
                ends.add("done")
            except (asyncio.CancelledError, ZeroDivisionError) as error:
                ends.add(type(error).__name__)
            assert pool.checkedout() == 0
            assert database._slots._value == pool.size()
        gc.collect()
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert "CancelledError" in ends
    assert unhandled == []
    async with database.read() as session:
        halves = (
            "SELECT count(*) FILTER (WHERE half = 1), count(*) FILTER (WHERE half = 2) FROM pairs"
        )
        first, second = (await session.execute(text(halves))).one()
    assert first == second
    assert database.gate.is_open


async def test_cancellation_during_the_rollback_is_raised(app: Quart, database_url: str) -> None:
    """The task must end with CancelledError, not with the error that caused the rollback."""
    database: Database = app.extensions["quart_upsun"].database
    failing = asyncio.Event()

    async def fail() -> None:
        async with database.write() as session:
            await session.execute(text("SELECT 1"))
            failing.set()
            raise ZeroDivisionError

    task = asyncio.create_task(fail())
    await failing.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    pool: Any = database.engine.pool
    assert pool.checkedout() == 0


async def test_a_failing_rollback_does_not_hide_the_error(app: Quart) -> None:
    database: Database = app.extensions["quart_upsun"].database

    async def fail() -> None:
        async with database.write() as session:
            await session.execute(text("SELECT 1"))
            connection = await session.connection()
            pooled: Any = await connection.get_raw_connection()
            pooled.driver_connection.terminate()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await count(database) == 0


async def test_readiness_checks_read_only_in_a_new_session(
    app: Quart, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quart_upsun.database.session.READ_ONLY_INTERVAL_SECONDS", 0.0)
    database: Database = app.extensions["quart_upsun"].database
    await set_read_only(database_url, "on")
    assert not await database.accepts_changes()
    # Opens three sessions, which stay read-only.
    barrier = asyncio.Barrier(3)

    async def use() -> None:
        async with database.read() as session:
            await session.scalar(text("SELECT 1"))
            await barrier.wait()

    await asyncio.gather(*(use() for _ in range(3)))
    await writable_again(database_url)
    assert await database.accepts_changes()


@pytest.mark.parametrize("found_by", ["readyz", "a change"])
async def test_the_read_only_state_is_cached(found_by: str, app: Quart, database_url: str) -> None:
    """Each check costs new connections, for which readers would wait."""
    database: Database = app.extensions["quart_upsun"].database
    await set_read_only(database_url, "on")
    if found_by == "readyz":
        assert not await database.accepts_changes()
    else:
        with pytest.raises(ReadOnlyDatabaseError):
            await add(database, "ada")
    assert database.is_read_only
    await writable_again(database_url)
    assert not await database.accepts_changes()
    with pytest.raises(ReadOnlyDatabaseError):
        await add(database, "ada")


async def test_connects_with_the_parameters_of_the_url(database_url: str) -> None:
    url = f"{database_url}{'&' if '?' in database_url else '?'}" + (
        "sslmode=prefer&channel_binding=prefer&application_name=from%20the%20address"
        "&options=-csearch_path%3Dpublic%20-cstatement_timeout%3D1&connect_timeout=7"
        "&target_session_attrs=read-write"
    )
    database = Database(parse_database_url(url), pool_size=1, migrations=ROOT / "alembic")
    async with database.read() as session:
        shown = [
            await session.scalar(text(f"SHOW {name}"))
            for name in ("application_name", "search_path", "statement_timeout", "timezone")
        ]
    assert shown == ["from the address", "public", "8s", "UTC"]
    await database.close()


async def test_a_server_with_other_session_attributes_is_unavailable(database_url: str) -> None:
    joined = "&" if "?" in database_url else "?"
    url = parse_database_url(f"{database_url}{joined}target_session_attrs=standby")
    database = Database(url, pool_size=1, migrations=ROOT / "alembic")
    with pytest.raises(DatabaseUnavailableError):
        await count(database)
    await database.close()


@asynccontextmanager
async def tls_proxy(url: URL, context: ssl.SSLContext) -> AsyncIterator[URL]:
    """Run a TLS proxy that speaks PostgreSQL's protocol; the embedded server has no TLS."""
    encrypted: list[bool] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(8)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(context)
            encrypted.append(True)
            inner, out = await asyncio.open_connection(url.host, url.port)
            await asyncio.gather(pump(reader, out), pump(inner, writer))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        yield url.set(host="localhost", port=port)
    assert encrypted


async def test_the_server_certificate_is_verified(database_url: str, tmp_path: Path) -> None:
    certificate, context = await server_context(tmp_path, "localhost")

    async def count_over(url: URL, **query: str) -> int:
        database = Database(
            parse_database_url(url.update_query_dict(query)),
            pool_size=1,
            migrations=ROOT / "alembic",
        )
        try:
            return await count(database)
        finally:
            await database.close()

    async with tls_proxy(make_url(database_url), context) as url:
        trusted, untrusted = {"sslrootcert": str(certificate)}, {"sslrootcert": certifi.where()}
        assert await count_over(url, sslmode="require") == 0
        assert await count_over(url, sslmode="verify-full", **trusted) == 0
        assert await count_over(url.set(host="127.0.0.1"), sslmode="verify-ca", **trusted) == 0
        for refused in (
            count_over(url, sslmode="verify-full", **untrusted),
            count_over(url, sslmode="require", **untrusted),
            count_over(url, sslrootcert="system"),
            count_over(url.set(host="127.0.0.1"), sslmode="verify-full", **trusted),
        ):
            with pytest.raises(DatabaseUnavailableError) as raised:
                await refused
            assert "certificate verify failed" in str(raised.value.__cause__)
