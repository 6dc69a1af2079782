"""Sessions and the schema gate, on a real PostgreSQL."""

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
        secret_key=SecretStr("a key for tests, of no worth anywhere else"),
    )


@pytest.fixture
async def unmigrated(empty_database: str) -> AsyncIterator[Quart]:
    app = create_app(settings_for(empty_database))
    async with app.test_app():
        yield app


async def migrate(monkeypatch: pytest.MonkeyPatch, url: str, revision: str = "head") -> None:
    """Migrate while the application goes on: in the middle of a statement it would hold a lock."""
    monkeypatch.setenv("DATABASE_URL", url)
    change = command.downgrade if revision == "base" else command.upgrade
    await asyncio.to_thread(change, Config(ROOT / "alembic.ini"), revision)


async def add(database: Database, kind: str) -> None:
    async with database.write() as session:
        await session.execute(add_row, {"kind": kind})


async def count(database: Database) -> int:
    async with database.read() as session:
        return await session.scalar(count_rows) or 0


async def test_a_write_commits_as_a_whole_or_not_at_all(app: Quart) -> None:
    database: Database = app.extensions["quart_upsun"].database
    await add(database, "kept")

    async def fail_in_the_middle() -> None:
        async with database.write() as session:
            await session.execute(add_row, {"kind": "lost"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_in_the_middle()
    assert await count(database) == 1


async def test_statements_of_a_read_stand_alone(app: Quart) -> None:
    async with app.extensions["quart_upsun"].database.read() as session:
        first = await session.scalar(text("SELECT pg_current_xact_id()"))
        second = await session.scalar(text("SELECT pg_current_xact_id()"))
    assert first != second


async def test_no_connection_is_left_behind(app: Quart) -> None:
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
async def test_an_exhausted_pool_is_unavailable(
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


async def test_behind_is_503_with_words_until_migrated(
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


async def test_nobody_hears_what_was_so_before_they_came(app: Quart, database_url: str) -> None:
    """A deploy that has migrated lets all go whom it has held, within milliseconds."""
    gate = app.extensions["quart_upsun"].database.gate
    connection = await asyncpg.connect(database_url)
    for _ in range(3):
        await connection.execute("DELETE FROM alembic_version")
        gate.close()
        held = [asyncio.create_task(gate.check()) for _ in range(3)]
        assert all(
            isinstance(heard, SchemaBehindError)
            for heard in await asyncio.gather(*held, return_exceptions=True)
        )
        await connection.execute("INSERT INTO alembic_version VALUES ($1)", gate.needed)
        async with asyncio.timeout(10):
            await asyncio.gather(*(gate.check() for _ in range(3)))
    await connection.close()


async def test_the_reason_is_logged_once(
    unmigrated: Quart, caplog: pytest.LogCaptureFixture
) -> None:
    client = unmigrated.test_client()
    for _ in range(2):
        await client.get("/readyz")
        await client.get("/rows/")
    assert caplog.text.count("schema behind") == 1


async def test_a_database_that_is_ahead_is_served(app: Quart, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    await connection.close()
    client = app.test_client()
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.get("/rows/")).status_code == 200


async def test_a_schema_that_goes_away_closes_the_gate(
    unmigrated: Quart, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore of an old backup, or a data sync from another environment."""
    # By this tree's migrations: those of a later release would not be known to be undone.
    await migrate(monkeypatch, empty_database)
    client = unmigrated.test_client()
    assert (await client.get("/rows/")).status_code == 200
    await migrate(monkeypatch, empty_database, "base")
    assert (await client.get("/rows/")).status_code == 503
    assert (await client.get("/readyz")).status_code == 503
    await migrate(monkeypatch, empty_database)
    assert (await client.get("/rows/")).status_code == 200


async def test_a_changed_column_type_fails_no_pooled_connection(
    app: Quart, database_url: str
) -> None:
    """The old release lives on while the new one migrates; its prepared plans become stale."""
    database: Database = app.extensions["quart_upsun"].database
    await add(database, "ada")
    barrier = asyncio.Barrier(5)

    async def query() -> str | None:
        async with database.read() as session:
            await barrier.wait()  # five connections at once
            return await session.scalar(select(Mail.kind))

    async with asyncio.timeout(10):
        assert await asyncio.gather(*(query() for _ in range(5))) == ["ada"] * 5
    connection = await asyncpg.connect(database_url)
    await connection.execute("ALTER TABLE mails ALTER COLUMN kind TYPE text")
    await connection.close()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*(query() for _ in range(5))) == ["ada"] * 5


async def test_connections_that_died_while_idle_are_replaced(
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
    await asyncio.sleep(0.1)  # let the loop hear of the closed sockets
    assert await count(database) == 0


async def test_nothing_listens(unused_tcp_port: int) -> None:
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


def test_schema_behind_says_what_is_there_and_what_is_needed() -> None:
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
async def test_an_error_of_the_caller_passes_through(
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
async def test_a_statement_without_an_answer_is_an_outage(
    way: Callable[[Database], AbstractAsyncContextManager[Any]], database_url: str
) -> None:
    """asyncpg's `TimeoutError`, which the server's own time limit does not come before."""
    database = Database(parse_database_url(database_url), pool_size=1, migrations=ROOT / "alembic")
    assert await count(database) == 0

    async def ask() -> None:
        async with way(database) as session:
            connection = await session.connection()
            pooled = await connection.get_raw_connection()
            pooled.driver_connection._config = pooled.driver_connection._config._replace(
                command_timeout=0.05
            )
            await session.execute(text("SELECT pg_sleep(60)"))

    with pytest.raises(DatabaseUnavailableError, match="the connection to the database was lost"):
        await ask()
    assert not database.gate.is_open
    assert await count(database) == 0
    await database.close()


async def test_the_block_itself_can_catch_a_lock_timeout(app: Quart, database_url: str) -> None:
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
async def test_a_cancelled_block_leaves_no_half_transaction_and_no_busy_connection(
    way: Callable[[Database], AbstractAsyncContextManager[Any]], times: int, app: Quart
) -> None:
    """Cancelled at every step of connecting, statements, commit and rollback, and again in it."""
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


async def test_a_cancellation_during_the_rollback_comes_out(app: Quart, database_url: str) -> None:
    """Not the error that was the reason for the rollback: who cancels waits for the end."""
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


async def test_an_error_is_not_hidden_by_a_rollback_that_fails(app: Quart) -> None:
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


async def test_readyz_asks_a_new_session_whether_the_database_is_read_only(
    app: Quart, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quart_upsun.database.session.READ_ONLY_INTERVAL_SECONDS", 0.0)
    database: Database = app.extensions["quart_upsun"].database
    await set_read_only(database_url, "on")
    assert not await database.accepts_changes()
    # Several that are read-only for as long as they last.
    barrier = asyncio.Barrier(3)

    async def use() -> None:
        async with database.read() as session:
            await session.scalar(text("SELECT 1"))
            await barrier.wait()

    await asyncio.gather(*(use() for _ in range(3)))
    await writable_again(database_url)
    assert await database.accepts_changes()


@pytest.mark.parametrize("found_by", ["readyz", "a change"])
async def test_a_read_only_database_is_not_asked_again_for_a_moment(
    found_by: str, app: Quart, database_url: str
) -> None:
    """Each attempt costs new connections, which those who read would wait for."""
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


async def test_an_address_with_parameters_is_connected_to(database_url: str) -> None:
    url = f"{database_url}{'&' if '?' in database_url else '?'}" + (
        "sslmode=prefer&channel_binding=prefer&application_name=from%20the%20address"
        "&options=-csearch_path%3Dpublic%20-cstatement_timeout%3D1&connect_timeout=7"
        "&target_session_attrs=read-write"
    )
    database = Database(parse_database_url(url), pool_size=1, migrations=ROOT / "alembic")
    async with database.read() as session:
        told = [
            await session.scalar(text(f"SHOW {name}"))
            for name in ("application_name", "search_path", "statement_timeout", "timezone")
        ]
    assert told == ["from the address", "public", "8s", "UTC"]
    await database.close()


async def test_a_server_of_another_kind_is_no_connection(database_url: str) -> None:
    joined = "&" if "?" in database_url else "?"
    url = parse_database_url(f"{database_url}{joined}target_session_attrs=standby")
    database = Database(url, pool_size=1, migrations=ROOT / "alembic")
    with pytest.raises(DatabaseUnavailableError):
        await count(database)
    await database.close()


@asynccontextmanager
async def tls_in_front_of(url: URL, context: ssl.SSLContext) -> AsyncIterator[URL]:
    """Speak TLS as PostgreSQL does; the embedded server is built without it."""
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


async def test_the_certificate_of_the_server_is_checked(database_url: str, tmp_path: Path) -> None:
    certificate, context = await server_context(tmp_path, "localhost")

    async def counted(url: URL, **query: str) -> int:
        database = Database(
            parse_database_url(url.update_query_dict(query)),
            pool_size=1,
            migrations=ROOT / "alembic",
        )
        try:
            return await count(database)
        finally:
            await database.close()

    async with tls_in_front_of(make_url(database_url), context) as url:
        mine, others = {"sslrootcert": str(certificate)}, {"sslrootcert": certifi.where()}
        assert await counted(url, sslmode="require") == 0
        assert await counted(url, sslmode="verify-full", **mine) == 0
        assert await counted(url.set(host="127.0.0.1"), sslmode="verify-ca", **mine) == 0
        for refused in (
            counted(url, sslmode="verify-full", **others),
            counted(url, sslmode="require", **others),
            counted(url, sslrootcert="system"),
            counted(url.set(host="127.0.0.1"), sslmode="verify-full", **mine),
        ):
            with pytest.raises(DatabaseUnavailableError) as raised:
                await refused
            assert "certificate verify failed" in str(raised.value.__cause__)
