"""Sessions and the schema gate, on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from quart import Quart
from sqlalchemy import func, select, text

from app import create_app
from app.database import Database, SchemaBehind, Unavailable
from app.settings import ROOT, Settings, parse_database_url
from app.user import accounts
from app.user.models import User
from tests.features.factories import Person


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


async def add_user(database: Database, name: str) -> None:
    async with database.write() as session:
        await accounts.create(
            session, username=name, email=f"{name}@example.com", password_hash="x"
        )


async def count_users(database: Database) -> int:
    async with database.read() as session:
        return await session.scalar(select(func.count(User.id))) or 0


async def test_a_write_commits_as_a_whole_or_not_at_all(app: Quart) -> None:
    database: Database = app.extensions["database"]
    await add_user(database, "kept")

    async def fail_in_the_middle() -> None:
        async with database.write() as session:
            await accounts.create(session, username="lost", email="l@e.org", password_hash="x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_in_the_middle()
    assert await count_users(database) == 1


async def test_statements_of_a_read_stand_alone(app: Quart) -> None:
    async with app.extensions["database"].read() as session:
        first = await session.scalar(text("SELECT pg_current_xact_id()"))
        second = await session.scalar(text("SELECT pg_current_xact_id()"))
    assert first != second


async def test_no_connection_is_left_behind(app: Quart) -> None:
    database: Database = app.extensions["database"]

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
    monkeypatch.setattr("app.database.POOL_TIMEOUT", 0.05)
    database = Database(parse_database_url(database_url), pool_size=1)
    async with way(database):
        with pytest.raises(Unavailable, match="busy"):
            async with way(database):
                pass
    assert await count_users(database) == 0
    await database.close()


async def test_behind_is_503_with_words_until_migrated(
    unmigrated: Quart, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = unmigrated.test_client()
    form = {"username": "somebody", "password": "some password"}
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/")).status_code == 200

    ready = await client.get("/readyz")
    gate = unmigrated.extensions["database"].gate
    assert ready.status_code == 503
    assert await ready.get_json() == {
        "status": "unready",
        "reason": "schema",
        "database": None,
        "needed": gate.needed,
    }
    page = await client.post("/login/", form=form)
    assert page.status_code == 503
    assert int(page.headers["Retry-After"]) > 0
    assert page.headers["Cache-Control"] == "private, no-store"

    await migrate(monkeypatch, empty_database)
    assert (await client.get("/readyz")).status_code == 200
    responses = await asyncio.gather(
        *(
            unmigrated.test_client().post("/login/", form=form | {"username": f"somebody{n}"})
            for n in range(20)
        )
    )
    assert {response.status_code for response in responses} == {200}


async def test_nobody_hears_what_was_so_before_they_came(app: Quart, database_url: str) -> None:
    """A deploy that has migrated lets all go whom it has held, within milliseconds."""
    gate = app.extensions["database"].gate
    connection = await asyncpg.connect(database_url)
    for _ in range(3):
        await connection.execute("DELETE FROM alembic_version")
        gate.close()
        held = [asyncio.create_task(gate.check()) for _ in range(3)]
        assert all(
            isinstance(heard, SchemaBehind)
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
        await client.post("/login/", form={"username": "somebody", "password": "a password"})
    assert caplog.text.count("schema behind") == 1


async def test_a_database_that_is_ahead_is_served(app: Quart, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    await connection.close()
    client = app.test_client()
    assert (await client.get("/readyz")).status_code == 200
    assert (await client.post("/login/", form=Person().registration)).status_code == 200


async def test_a_schema_that_goes_away_closes_the_gate(
    unmigrated: Quart, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore of an old backup, or a data sync from another environment."""
    # By this tree's migrations: those of a later release would not be known to be undone.
    await migrate(monkeypatch, empty_database)
    client = unmigrated.test_client()
    form = {"username": "somebody", "password": "some password"}
    assert (await client.post("/login/", form=form)).status_code == 200
    await migrate(monkeypatch, empty_database, "base")
    assert (await client.post("/login/", form=form)).status_code == 503
    assert (await client.get("/readyz")).status_code == 503
    await migrate(monkeypatch, empty_database)
    assert (await client.post("/login/", form=form)).status_code == 200


async def test_a_changed_column_type_fails_no_pooled_connection(
    app: Quart, database_url: str
) -> None:
    """The old release lives on while the new one migrates; its prepared plans become stale."""
    database: Database = app.extensions["database"]
    await add_user(database, "ada")
    barrier = asyncio.Barrier(5)

    async def query() -> str | None:
        async with database.read() as session:
            await barrier.wait()  # five connections at once
            return await session.scalar(select(User.username))

    async with asyncio.timeout(10):
        assert await asyncio.gather(*(query() for _ in range(5))) == ["ada"] * 5
    connection = await asyncpg.connect(database_url)
    await connection.execute("ALTER TABLE users ALTER COLUMN username TYPE text")
    await connection.close()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*(query() for _ in range(5))) == ["ada"] * 5


async def test_connections_that_died_while_idle_are_replaced(
    app: Quart, server_url: str, database_url: str
) -> None:
    database: Database = app.extensions["database"]
    assert await count_users(database) == 0
    connection = await asyncpg.connect(server_url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = $1 AND pid <> pg_backend_pid()",
        database_url.partition("?")[0].rpartition("/")[2],
    )
    await connection.close()
    await asyncio.sleep(0.1)  # let the loop hear of the closed sockets
    assert await count_users(database) == 0


async def test_nothing_listens(unused_tcp_port: int) -> None:
    app = create_app(settings_for(f"postgresql://u:p@127.0.0.1:{unused_tcp_port}/d"))
    async with app.test_app():
        client = app.test_client()
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/")).status_code == 200
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert await response.get_json() == {"status": "unready", "reason": "database"}
        page = await client.post("/login/", form={"username": "ada", "password": "some password"})
        assert page.status_code == 503
        key = {"X-API-Key": "no token of ours"}
        assert (await client.get("/api/v1/me", headers=key)).status_code == 401
        with pytest.raises(Unavailable):
            async with app.extensions["database"].read():
                pass


def test_schema_behind_says_what_is_there_and_what_is_needed() -> None:
    assert "none" in str(SchemaBehind(None, "abc"))
    assert "abc" in str(SchemaBehind("old", "abc"))
