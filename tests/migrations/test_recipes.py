"""Every recipe of docs/migrations.md, applied while the previous release is running."""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError

from app.settings import ROOT
from quart_upsun.database import advisory_locks
from tests.migrations.recipes import (
    DOCUMENT,
    HEADER,
    MODELS,
    Code,
    MigrationFailedError,
    Tree,
    blocks,
    head,
    recipe,
    reworded,
)

SECONDS = 30


@pytest.fixture
async def tree(tmp_path: Path, database_url: str) -> AsyncIterator[Tree]:
    tree = Tree(tmp_path / "tree", database_url)
    yield tree
    await tree.close()


@pytest.fixture
async def sql(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the database of the test."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def assert_consistent(tree: Tree, code: Code) -> None:
    """Assert that the models match the schema, that lint passes and that a downgrade works."""
    assert await code.drift() == []
    result = tree.lint()
    assert result.returncode == 0, result.stderr
    await tree.downgrade()
    assert await tree.code(MODELS.read_text()).drift() == []
    await tree.upgrade()
    assert await code.drift() == []


async def test_create_a_table(tree: Tree) -> None:
    old = tree.code()
    await old.use_table()
    await tree.release("table", 1, previous=old)
    new = tree.code()
    await new.use_table()
    assert "badges" in new.metadata.tables
    await assert_consistent(tree, new)


async def test_add_a_nullable_column(tree: Tree) -> None:
    old = tree.code()
    await old.use_table()
    await tree.release("nullable", 1, previous=old)
    new = tree.code()
    await new.use_table(nickname="Ada")
    await old.use_table()
    assert [row.nickname for row in await new.rows()] == [None, None, "Ada", None]
    await assert_consistent(tree, new)


async def test_add_a_column_with_a_default(tree: Tree) -> None:
    old = tree.code()
    await old.use_table()
    await tree.release("default", 1, previous=old)
    new = tree.code()
    await new.use_table(locale="fr")
    await old.use_table()
    assert [row.locale for row in await new.rows()] == ["en", "en", "fr", "en"]
    await assert_consistent(tree, new)


async def add_required_column(tree: Tree) -> Code:
    """Apply the releases of "Add a required column"; return the code of the last one."""
    zeroth = tree.code()
    await zeroth.use_table()
    await tree.release("nullable", 1, previous=zeroth)
    first = WritingCode(tree.code(), nickname="given")
    await first.use_table()
    await zeroth.use_table()
    await tree.release("fill", 1, previous=first)
    await tree.release("required", 2, previous=first)
    second = tree.code()
    await second.use_table(nickname="given")
    await first.use_table()
    assert all(row.nickname for row in await second.rows())
    return second


class WritingCode(Code):
    """Code of a release that sets certain columns in every row it inserts."""

    def __init__(self, code: Code, **values: object) -> None:
        self.__dict__.update(code.__dict__)
        self._values = values

    async def use_table(self, **values: object) -> None:
        await super().use_table(**{**self._values, **values})


async def test_add_a_required_column(tree: Tree) -> None:
    last = await add_required_column(tree)
    with pytest.raises(IntegrityError):  # the reason for two releases
        await tree.running[0].use_table()
    await assert_consistent(tree, last)


async def test_required_column_migrations_in_one_deploy(
    tree: Tree, sql: asyncpg.Connection
) -> None:
    """The constraint is committed before it is validated."""
    await tree.release("nullable", 1)
    await tree.code().use_table()  # a row without a value
    with pytest.raises(MigrationFailedError, match="null values"):
        await tree.release("required", 2)
    state = "SELECT convalidated FROM pg_constraint WHERE conname = 'users_nickname_not_null'"
    assert await sql.fetchval(state) is False
    assert await sql.fetchval("SELECT version_num FROM alembic_version") == "step2"
    await sql.execute("UPDATE users SET nickname = username")
    await tree.upgrade()
    assert await sql.fetchval(state) is True


async def test_backfill_a_column(tree: Tree, sql: asyncpg.Connection) -> None:
    """Each batch is committed, and an interrupted backfill resumes."""
    await tree.release("nullable", 1)
    old = tree.code()
    await sql.execute(
        "INSERT INTO users (username, email, password_hash)"
        " SELECT 'many' || n, n || '@example.com', 'x' FROM generate_series(1, 2500) AS n"
    )
    await sql.execute("UPDATE users SET nickname = 'own' WHERE username = 'many1'")
    filled = "SELECT count(*) FROM users WHERE nickname = username"
    holder = await asyncpg.connect(tree.url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("SELECT 1 FROM users WHERE username = 'many2200' FOR UPDATE")
    with pytest.raises(MigrationFailedError, match="stayed locked"):
        await tree.release("fill", 1)
    assert await sql.fetchval(filled) == 1999
    await old.use_table()
    await transaction.rollback()
    await holder.close()

    # All batches together may exceed the usual statement timeout.
    await sql.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$"
    )
    await sql.execute(
        "CREATE TRIGGER slow BEFORE UPDATE ON users FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    )
    tree.configure(statement_timeout="2500ms")
    await tree.upgrade()
    await sql.execute("DROP TRIGGER slow ON users")
    assert await sql.fetchval(filled) == 2500, "a row with a value was changed"
    assert tree.lint().returncode == 0


async def test_backfill_an_empty_table(tree: Tree) -> None:
    await tree.release("nullable", 1)
    await tree.release("fill", 1)


async def test_rename_in_python(tree: Tree) -> None:
    await tree.release("nullable", 1)
    old = tree.code()
    await tree.release("rename-in-python", 1)
    new = tree.code()
    await new.use_table(display_name="Ada")
    await old.use_table(nickname="Bob")
    assert [row.display_name for row in await new.rows()] == ["Ada", "Bob"]
    assert await new.drift() == []


async def test_rename_a_column(tree: Tree) -> None:
    zeroth = WritingCode(await add_required_column(tree), nickname="zeroth")
    await tree.release("rename", 1, previous=zeroth)
    first = WritingCode(tree.code(), nickname="first", display_name="first")
    await first.use_table()
    await zeroth.use_table()

    words = {"username": "nickname", "nickname": "display_name"}
    await tree.release("fill", 1, previous=first, **words)
    diff = recipe("required 2 model")[0]
    assert [reworded(diff, words)] == recipe("rename 2 model")
    await tree.release("required", 2, previous=first, **words)
    second = WritingCode(tree.code(), nickname="second", display_name="second")
    await second.use_table()
    await first.use_table()
    assert all(row.display_name == row.nickname for row in await second.rows())

    await tree.release("drop", 1, previous=second)
    third = WritingCode(tree.code(), display_name="third")
    await third.use_table()
    await second.use_table()
    assert all(row.display_name for row in await second.rows())

    await tree.release("drop", 2, previous=third)
    fourth = WritingCode(tree.code(), display_name="fourth")
    await fourth.use_table()
    await third.use_table()
    await assert_consistent(tree, fourth)


async def test_drop_a_column(tree: Tree) -> None:
    zeroth = WritingCode(await add_required_column(tree), nickname="zeroth")
    await tree.release("drop", 1, previous=zeroth)
    first = tree.code()
    await first.use_table()
    await zeroth.use_table()
    assert (await zeroth.rows())[-2].nickname == "", "the previous release reads the default"
    assert await first.drift() == [], "the column must not be dropped yet"

    await tree.release("drop", 2, previous=first)
    second = tree.code()
    await second.use_table()
    await first.use_table()
    with pytest.raises(DBAPIError, match="nickname"):  # the reason for two releases
        await zeroth.use_table()
    await assert_consistent(tree, second)


async def test_change_a_column_type(tree: Tree, sql: asyncpg.Connection) -> None:
    await tree.release("nullable", 1)
    old = tree.code()
    await old.use_table(nickname="short")
    table = "SELECT pg_relation_filenode('users')"
    before = await sql.fetchval(table)
    await tree.release("wider", 1, previous=old)
    new = tree.code()
    await new.use_table(nickname="n" * 80)
    await old.use_table()
    assert await sql.fetchval(table) == before, "rows were rewritten"
    assert max(len(row.nickname or "") for row in await old.rows()) == 80
    await assert_consistent(tree, new)

    # An index on an expression is rebuilt, as the document says.
    index = "SELECT pg_relation_filenode('uq_users_username')"
    before = await sql.fetchval(index)
    await sql.execute("ALTER TABLE users ALTER COLUMN username TYPE varchar(50)")
    assert await sql.fetchval(index) != before


async def wait_for_row(sql: asyncpg.Connection, query: str) -> asyncpg.Record:
    """Run a query until it returns a row."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if row := await sql.fetchrow(query):
            return row
        await asyncio.sleep(0.02)
    pytest.fail(f"no row within {SECONDS} s: {query}")


INDEX = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_users_created_at')"


async def test_create_an_index_during_writes(tree: Tree, sql: asyncpg.Connection) -> None:
    old = tree.code()
    await old.use_table()
    tree.configure(lock_timeout="100ms", statement_timeout="200ms")
    writer = await asyncpg.connect(tree.url)
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("UPDATE users SET session_version = session_version + 1")

    releasing = asyncio.create_task(tree.release("index", 1))
    # It waits for the open transaction, longer than both default timeouts.
    building = await wait_for_row(
        sql,
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%'"
        " AND datname = current_database() AND wait_event_type = 'Lock'"
        " AND clock_timestamp() - query_start > '600ms'",
    )
    # Other sessions can write meanwhile.
    await sql.execute("SET lock_timeout = '50ms'")
    await sql.execute(
        "INSERT INTO users (username, email, password_hash) VALUES ('meanwhile', 'm@e.org', 'x')"
    )
    await old.use_table()
    # The migration lock is still held after the commit, so a second deploy waits.
    locks = await sql.fetch(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        advisory_locks.MIGRATE,
    )
    assert [lock["pid"] for lock in locks] == [building["pid"]]
    second = await tree.start("upgrade", "head")
    assert second.stdout is not None
    second_output = b""
    while b"another migration is running" not in second_output:
        line = await asyncio.wait_for(second.stdout.readline(), SECONDS)
        assert line, second_output.decode()
        second_output += line
    assert not releasing.done()

    await transaction.commit()
    await writer.close()
    await asyncio.wait_for(releasing, SECONDS)
    output, _ = await asyncio.wait_for(second.communicate(), SECONDS)
    assert second.returncode == 0, output.decode()
    assert b"Running upgrade" not in second_output + output
    assert await sql.fetchval(INDEX) is True
    new = tree.code()
    await new.use_table()
    await old.use_table()
    await assert_consistent(tree, new)


async def test_timeouts_are_restored_after_autocommit_block(
    tree: Tree, sql: asyncpg.Connection
) -> None:
    tree.configure(lock_timeout="1234ms", statement_timeout="45678ms")
    await tree.release("index", 1)
    await tree.release("nullable", 1)
    await tree.release("fill", 1)
    tree.add(
        "def upgrade():\n"
        "    op.execute(\"CREATE TABLE found AS SELECT current_setting('lock_timeout') AS lock,"
        " current_setting('statement_timeout') AS statement\")\n"
        "def downgrade(): pass\n"
    )
    await tree.downgrade()
    await tree.upgrade()  # all in one session
    assert tuple(await sql.fetchrow("SELECT lock, statement FROM found")) == ("1234ms", "45678ms")


async def test_invalid_index_of_a_failed_build_is_replaced(
    tree: Tree, sql: asyncpg.Connection
) -> None:
    await tree.code().use_table()
    writer = await asyncpg.connect(tree.url)
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("UPDATE users SET session_version = session_version + 1")
    releasing = asyncio.create_task(tree.release("index", 1))
    building = await wait_for_row(
        sql,
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%'"
        " AND datname = current_database() AND wait_event_type = 'Lock'",
    )
    await sql.execute(
        "SELECT pg_terminate_backend($1)", building["pid"]
    )  # as if the deploy was killed
    with pytest.raises(MigrationFailedError):
        await asyncio.wait_for(releasing, SECONDS)
    assert await sql.fetchval(INDEX) is False
    assert await sql.fetchval("SELECT version_num FROM alembic_version") == head()
    await transaction.commit()
    await writer.close()

    await tree.running[0].use_table()
    await tree.upgrade()
    assert await sql.fetchval(INDEX) is True
    assert await tree.code().drift() == []


async def test_index_created_before_the_push_is_kept(tree: Tree, sql: asyncpg.Connection) -> None:
    await sql.execute("CREATE INDEX ix_users_created_at ON users (created_at)")
    before = await sql.fetchval("SELECT 'ix_users_created_at'::regclass::oid")
    await tree.release("index", 1)
    assert await sql.fetchval("SELECT 'ix_users_created_at'::regclass::oid") == before


async def test_add_a_foreign_key(tree: Tree, sql: asyncpg.Connection) -> None:
    old = tree.code()
    await old.use_table()
    await tree.release("foreign-key", 1, previous=old)
    new = tree.code()
    await new.use_table(invited_by=(await new.rows())[0].id)
    await old.use_table()
    with pytest.raises(IntegrityError):
        await new.use_table(invited_by=-1)
    key = "SELECT convalidated FROM pg_constraint WHERE conname = 'fk_users_invited_by_users'"
    assert await sql.fetchval(key) is True
    await assert_consistent(tree, new)


async def test_add_a_check_constraint(tree: Tree, sql: asyncpg.Connection) -> None:
    await tree.release("nullable", 1)
    old = tree.code()
    await old.use_table(nickname="")
    # Both migrations in one deploy: the first is committed, and the second fails at the old row.
    with pytest.raises(MigrationFailedError, match="ck_users_nickname_filled"):
        await tree.release("check", 2)
    check = "SELECT convalidated FROM pg_constraint WHERE conname = 'ck_users_nickname_filled'"
    assert await sql.fetchval(check) is False
    await old.use_table(nickname="filled")
    with pytest.raises(IntegrityError):
        await old.use_table(nickname="")
    await sql.execute("UPDATE users SET nickname = NULL WHERE nickname = ''")
    await tree.upgrade()
    assert await sql.fetchval(check) is True
    await old.use_table(nickname="filled")
    new = tree.code()
    await new.use_table(nickname="filled")
    assert await new.drift() == []
    assert tree.lint().returncode == 0


def test_migration_blocks_pass_ruff(tmp_path: Path) -> None:
    """Each block is checked below the header of a migration."""
    count = 0
    for name, code in blocks():
        if name.endswith("migration"):
            count += 1
            header = HEADER.format(name=name, revision="a", down_revision="b")
            uses = header if "sa." in code else header.replace("import sqlalchemy as sa\n", "")
            (tmp_path / f"{name.replace(' ', '_')}_{count}.py").write_text(uses + code)
    assert count > 10
    for command in (["check"], ["format", "--check", "--diff"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_links_within_the_document_work() -> None:
    text = DOCUMENT.read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-") for title in headings}
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert len(links) > 8
    assert links <= anchors


def test_every_marked_block_is_parsed() -> None:
    """A misspelled marker would leave its block untested."""
    text = DOCUMENT.read_text()
    assert len(blocks()) == text.count("<!-- recipe")
    assert text.count("def upgrade") == sum(name.endswith("migration") for name, _ in blocks())
