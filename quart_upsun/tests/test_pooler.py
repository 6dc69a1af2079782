"""The application behind PgBouncer, in transaction mode and in session mode."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Client
from sqlalchemy import URL, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.database import (
    Database,
    DatabaseUnavailableError,
    LockTimeoutError,
    TransactionPoolingError,
    connect,
    pool_timeout,
)
from quart_upsun.database.connection import STATEMENT_TIMEOUT_SECONDS
from quart_upsun.database.url import parse_database_url
from quart_upsun.mail.models import Mail
from quart_upsun.testing.pgbouncer import PREPARES, PgBouncer, pgbouncer
from quart_upsun.tests.sample import Settings, add_row, create_app

pytestmark = pytest.mark.requires("pgbouncer")

ROOT = Path(__file__).parent.parent.parent
SECONDS = 30.0
ACTIVE = """
    SELECT query FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
"""


@pytest.fixture
def pooler(database_url: str, tmp_path: Path) -> Iterator[PgBouncer]:
    with pgbouncer(database_url, tmp_path, default_pool_size=2, query_wait_timeout=4) as running:
        yield running


@pytest.fixture
def pooled_url(pooler: PgBouncer, database_url: str) -> URL:
    return parse_database_url(pooler.url(database_url))


@pytest.fixture
def real_url(database_url: str) -> URL:
    return parse_database_url(database_url)


@pytest.fixture
async def database(pooled_url: URL) -> AsyncIterator[Database]:
    database = Database(pooled_url, pool_size=4)
    yield database
    await database.close()


@pytest.fixture
async def behind(settings: Settings, pooled_url: URL, real_url: URL) -> AsyncIterator[Quart]:
    """The running sample application behind the pooler."""
    urls = {"database_url": pooled_url, "database_direct_url": real_url}
    app = create_app(settings.model_copy(update=urls))
    async with app.test_app():
        yield app


@pytest.fixture
async def direct(database_url: str) -> AsyncIterator[Any]:
    """A connection without the pooler."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.1)


async def until_idle(direct: Any) -> None:
    """Wait until no statement runs on the server and no transaction is open."""

    async def is_idle() -> bool:
        return not await direct.fetch(ACTIVE)

    await until(is_idle)


async def test_statements_of_many_clients_share_few_server_connections(
    database: Database, direct: Any
) -> None:
    async def query(number: int) -> None:
        pool_timeout.set(SECONDS)  # in the context of this task
        async with database.write() as session:
            await session.execute(add_row, {"kind": str(number)})
        async with database.read() as session:
            found = await session.scalar(select(Mail.kind).where(Mail.kind == str(number)))
            assert found == str(number)
        async with database.direct() as connection:
            found = await connection.fetchval("SELECT kind FROM mails WHERE kind = $1", found)
            assert found == str(number)

    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*map(query, range(60)))
    assert await direct.fetchval("SELECT count(*) FROM mails") == 60
    count = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'quart-upsun'
    """
    assert 1 <= await direct.fetchval(count) <= 2


async def test_migrations_that_change_types_do_not_break_statements(
    database: Database, direct: Any
) -> None:
    async def values() -> list[Any]:
        async with database.read() as session:
            found = [await session.scalar(text("SELECT a FROM changing"))]
        try:
            async with database.direct() as connection:
                found.append(await connection.fetchval("SELECT a FROM changing"))
        except (AssertionError, BufferError, asyncpg.InternalClientError):
            async with database.direct() as connection:  # only the first one fails
                found.append(await connection.fetchval("SELECT a FROM changing"))
        return found

    await direct.execute("CREATE TABLE changing (a integer); INSERT INTO changing VALUES (1)")
    assert await values() == [1, 1]
    await direct.execute("ALTER TABLE changing ALTER a TYPE bigint")
    assert await values() == [1, 1]
    await direct.execute("ALTER TABLE changing ALTER a TYPE text")
    assert await values() == ["1", "1"]


async def test_transactions_have_timeouts_of_the_server(database: Database, direct: Any) -> None:
    await direct.execute("BEGIN; LOCK TABLE mails IN ACCESS EXCLUSIVE MODE")
    with pytest.raises(LockTimeoutError):
        async with asyncio.timeout(SECONDS), database.write() as session:
            await session.execute(add_row, {"kind": "locked"})
    await direct.execute("ROLLBACK")
    async with database.write() as session:
        for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
            shown = await session.scalar(text(f"SHOW {name}"))
            assert shown == f"{STATEMENT_TIMEOUT_SECONDS}s"
    async with database.read() as session:  # not for the next client of the server connection
        assert await session.scalar(text("SHOW statement_timeout")) == "0"


async def hang(way: Any) -> None:
    """Run a statement that does not end."""
    async with way() as source:
        sleep = "SELECT pg_sleep(300)"
        await source.execute(text(sleep) if isinstance(source, AsyncSession) else sleep)


async def test_a_hung_statement_is_canceled_on_the_server(database: Database, direct: Any) -> None:
    for way in (database.read, database.direct):
        with pytest.raises(DatabaseUnavailableError):
            await asyncio.wait_for(hang(way), SECONDS)
        await until_idle(direct)


async def test_a_canceled_request_leaves_no_open_transaction(
    database: Database, direct: Any
) -> None:
    for way in (database.write, database.read, database.direct):
        task = asyncio.create_task(hang(way))

        async def runs() -> bool:
            return bool(await direct.fetch(ACTIVE))

        await until(runs)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(direct)


async def test_a_restart_of_the_pooler_is_an_outage(behind: Quart, pooler: PgBouncer) -> None:
    client = behind.test_client()
    assert (await client.get("/rows/")).status_code == 200
    pooler.stop()
    for path in ("/rows/", "/api/v1/rows", "/readyz"):
        assert (await client.get(path)).status_code == 503, path
    pooler.start()
    await recovers(client)


async def test_a_paused_pooler_answers_503(behind: Quart, pooler: PgBouncer) -> None:
    client = behind.test_client()
    assert (await client.get("/rows/")).status_code == 200
    pooler.pause()

    async def is_unavailable() -> bool:
        response = await client.get("/rows/")
        assert response.status_code in {200, 503}
        return response.status_code == 503

    await until(is_unavailable)
    pooler.resume()
    await recovers(client)


async def test_an_exhausted_pool_answers_503(
    behind: Quart, pooled_url: URL, pooler: PgBouncer
) -> None:
    client = behind.test_client()
    assert (await client.get("/rows/")).status_code == 200
    others = Database(pooled_url, pool_size=2)
    try:
        async with others.write() as first, others.write() as second:
            for session in (first, second):  # all server connections
                await session.execute(text("SELECT 1"))
            async with asyncio.timeout(SECONDS):
                assert (await client.get("/rows/")).status_code == 503  # query_wait_timeout
    finally:
        await others.close()
    await recovers(client)


async def test_too_many_clients_answer_503(
    settings: Settings, database_url: str, real_url: URL, tmp_path: Path
) -> None:
    with pgbouncer(database_url, tmp_path, max_client_conn=3) as pooler:
        url = parse_database_url(pooler.url(database_url))
        urls = {"database_url": url, "database_direct_url": real_url}
        others = [await asyncpg.connect(pooler.url(database_url)) for _ in range(3)]
        app = create_app(settings.model_copy(update=urls))
        async with app.test_app():
            client = app.test_client()
            assert (await client.get("/rows/")).status_code == 503
            for each in others:
                await each.close()
            await recovers(client)


async def recovers(client: Client) -> None:
    async def answers() -> bool:
        return (await client.get("/rows/")).status_code == 200

    await until(answers)
    assert (await client.get("/api/v1/rows")).status_code == 200


async def test_a_session_is_refused_in_transaction_mode(
    pooled_url: URL, database_url: str, tmp_path: Path
) -> None:
    with pytest.raises(TransactionPoolingError, match="in transaction mode"):
        await connect(pooled_url, name="listener")
    for settings in ({"server_round_robin": 1}, {"pool_mode": "statement"}):
        with pgbouncer(database_url, tmp_path, **settings) as other:
            url = parse_database_url(other.url(database_url))
            # Several idle server connections
            clients = [await asyncpg.connect(other.url(database_url)) for _ in range(3)]
            await asyncio.gather(*(each.execute("SELECT pg_sleep(0.2)") for each in clients))
            with pytest.raises(TransactionPoolingError):
                await connect(url, name="listener")
            for each in clients:
                each.terminate()


async def test_session_mode_has_sessions(database_url: str, tmp_path: Path) -> None:
    with pgbouncer(database_url, tmp_path, pool_mode="session", query_wait_timeout=1) as other:
        url = parse_database_url(other.url(database_url))
        connection = await connect(url, name="listener", settings={"lock_timeout": "3s"})
        assert await connection.fetchval("SHOW lock_timeout") == "3s"
        heard: asyncio.Queue[str] = asyncio.Queue()
        await connection.add_listener("news", lambda *values: heard.put_nowait(values[-1]))
        sender = await asyncpg.connect(database_url)
        await sender.execute("NOTIFY news, 'hello'")
        async with asyncio.timeout(SECONDS):
            assert await heard.get() == "hello"
        await sender.close()
        await connection.close()
        database = Database(url, pool_size=2)
        async with database.read() as session:
            assert await session.scalar(text("SELECT 1")) == 1
        await database.close()
    with pgbouncer(database_url, tmp_path, pool_mode="session", default_pool_size=1) as full:
        # The second connection of the check waits for the first one.
        connection = await connect(parse_database_url(full.url(database_url)), name="listener")
        await connection.close()


async def test_a_server_without_a_direct_connection_says_so(
    settings: Settings, pooled_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    urls = {"database_url": pooled_url, "database_direct_url": None}
    app = create_app(settings.model_copy(update=urls))
    async with app.test_app():

        async def is_logged() -> bool:
            return "direct connection missing" in caplog.text

        await until(is_logged)
        assert "Set DATABASE_DIRECT_URL" in caplog.text
        assert (await app.test_client().get("/rows/")).status_code == 200


def test_migrations_need_a_direct_connection(pooled_url: URL, real_url: URL) -> None:
    def upgrade(**variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "DATABASE_ENVIRONMENT": os.environ["DATABASE_ENVIRONMENT"],
                "DATABASE_URL": pooled_url.render_as_string(hide_password=False),
                **variables,
            },
            capture_output=True,
            text=True,
        )

    refused = upgrade()
    assert refused.returncode == 1
    (sentence,) = refused.stderr.splitlines()
    assert sentence.startswith(f"127.0.0.1:{pooled_url.port} is a connection pooler")
    assert sentence.endswith("Set DATABASE_DIRECT_URL to the URL of PostgreSQL itself.")
    direct = real_url.render_as_string(hide_password=False)
    migrated = upgrade(DATABASE_DIRECT_URL=direct)
    assert migrated.returncode == 0, migrated.stderr


async def test_prepared_statements_follow_the_pooler(database_url: str, tmp_path: Path) -> None:
    """Only PgBouncer 1.21 and later can forward them."""
    with pgbouncer(database_url, tmp_path) as pooler:
        can_prepare = pooler.version >= PREPARES
    for size in (0, 100) if can_prepare else (None,):
        settings = {} if size is None else {"max_prepared_statements": size}
        with pgbouncer(database_url, tmp_path, **settings) as pooler:
            database = Database(parse_database_url(pooler.url(database_url)), pool_size=1)
            async with database.direct() as connection:
                assert connection.is_pooled
                assert connection.names_statements == bool(size)
            await database.close()


async def test_a_connection_without_a_pooler_is_unchanged(database_url: str) -> None:
    database = Database(parse_database_url(database_url), pool_size=1)
    async with database.direct() as connection:
        assert (connection.is_pooled, connection.names_statements) == (False, True)
        assert await connection.fetchval("SHOW statement_timeout") == "8s"
        names = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE '__asyncpg%'"
        assert await connection.fetchval(names) > 0
    await database.close()
