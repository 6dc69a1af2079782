"""Every recipe of docs/migrations.md, as it stands there, with the release before running."""

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
    """A connection of the test's own."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def assert_fits(tree: Tree, code: Code) -> None:
    """Hold that models and schema agree, that `make lint` is content, and that it goes back."""
    assert await code.drift() == []
    result = tree.lint()
    assert result.returncode == 0, result.stderr
    await tree.downgrade()
    assert await tree.code(MODELS.read_text()).drift() == []
    await tree.upgrade()
    assert await code.drift() == []


async def test_add_a_nullable_column(tree: Tree) -> None:
    old = tree.code()
    await old.works()
    await tree.release("nullable", 1, before=old)
    new = tree.code()
    await new.works(nickname="Ada")
    await old.works()
    assert [row.nickname for row in await new.rows()] == [None, None, "Ada", None]
    await assert_fits(tree, new)


async def test_add_a_column_with_a_default(tree: Tree) -> None:
    old = tree.code()
    await old.works()
    await tree.release("default", 1, before=old)
    new = tree.code()
    await new.works(locale="fr")
    await old.works()
    assert [row.locale for row in await new.rows()] == ["en", "en", "fr", "en"]
    await assert_fits(tree, new)


async def required(tree: Tree) -> Code:
    """Go through the releases that end with a column that must be given; return the last one."""
    zeroth = tree.code()
    await zeroth.works()
    await tree.release("nullable", 1, before=zeroth)
    first = Writing(tree.code(), nickname="given")
    await first.works()
    await zeroth.works()
    await tree.release("fill", 1, before=first)
    await tree.release("required", 2, before=first)
    second = tree.code()
    await second.works(nickname="given")
    await first.works()
    assert all(row.nickname for row in await second.rows())
    return second


class Writing(Code):
    """A release whose code gives certain columns a value in every row it adds."""

    def __init__(self, code: Code, **values: object) -> None:
        self.__dict__.update(code.__dict__)
        self._values = values

    async def works(self, **values: object) -> None:
        await super().works(**{**self._values, **values})


async def test_add_a_column_that_must_be_given(tree: Tree) -> None:
    last = await required(tree)
    with pytest.raises(IntegrityError):  # which is why it takes two releases
        await tree.running[0].works()
    await assert_fits(tree, last)


async def test_its_last_migrations_in_one_deploy(tree: Tree, sql: asyncpg.Connection) -> None:
    """One transaction, but for the block: the constraint is committed before it is validated."""
    await tree.release("nullable", 1)
    await tree.code().works()  # a row that nobody has filled
    with pytest.raises(MigrationFailedError, match="null values"):
        await tree.release("required", 2)
    state = "SELECT convalidated FROM pg_constraint WHERE conname = 'users_nickname_not_null'"
    assert await sql.fetchval(state) is False
    assert await sql.fetchval("SELECT version_num FROM alembic_version") == "step2"
    await sql.execute("UPDATE users SET nickname = username")
    await tree.upgrade()
    assert await sql.fetchval(state) is True


async def test_fill_a_column(tree: Tree, sql: asyncpg.Connection) -> None:
    """Each batch is committed, and what was interrupted goes on where it was."""
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
    await old.works()
    await transaction.rollback()
    await holder.close()

    # All batches together may take longer than a statement usually may.
    await sql.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$"
    )
    await sql.execute(
        "CREATE TRIGGER slow BEFORE UPDATE ON users FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    )
    tree.configure(statement_timeout="500ms")
    await tree.upgrade()
    await sql.execute("DROP TRIGGER slow ON users")
    assert await sql.fetchval(filled) == 2500, "what is filled is left alone"
    assert tree.lint().returncode == 0


async def test_fill_a_column_of_an_empty_table(tree: Tree) -> None:
    await tree.release("nullable", 1)
    await tree.release("fill", 1)


async def test_rename_in_python(tree: Tree) -> None:
    await tree.release("nullable", 1)
    old = tree.code()
    await tree.release("rename-in-python", 1)
    new = tree.code()
    await new.works(display_name="Ada")
    await old.works(nickname="Bob")
    assert [row.display_name for row in await new.rows()] == ["Ada", "Bob"]
    assert await new.drift() == []


async def test_rename_a_column(tree: Tree) -> None:
    zeroth = Writing(await required(tree), nickname="zeroth")
    await tree.release("rename", 1, before=zeroth)
    first = Writing(tree.code(), nickname="first", display_name="first")
    await first.works()
    await zeroth.works()

    words = {"username": "nickname", "nickname": "display_name"}
    await tree.release("fill", 1, before=first, **words)
    diff = recipe("required 2 model")[0]
    assert [reworded(diff, words)] == recipe("rename 2 model")
    await tree.release("required", 2, before=first, **words)
    second = Writing(tree.code(), nickname="second", display_name="second")
    await second.works()
    await first.works()
    assert all(row.display_name == row.nickname for row in await second.rows())

    await tree.release("drop", 1, before=second)
    third = Writing(tree.code(), display_name="third")
    await third.works()
    await second.works()
    assert all(row.display_name for row in await second.rows())

    await tree.release("drop", 2, before=third)
    fourth = Writing(tree.code(), display_name="fourth")
    await fourth.works()
    await third.works()
    await assert_fits(tree, fourth)


async def test_drop_a_column(tree: Tree) -> None:
    zeroth = Writing(await required(tree), nickname="zeroth")
    await tree.release("drop", 1, before=zeroth)
    first = tree.code()
    await first.works()
    await zeroth.works()
    assert (await zeroth.rows())[-2].nickname == "", "what the release before finds"
    assert await first.drift() == [], "the column must not be dropped yet"

    await tree.release("drop", 2, before=first)
    second = tree.code()
    await second.works()
    await first.works()
    with pytest.raises(DBAPIError, match="nickname"):  # which is why it takes two releases
        await zeroth.works()
    await assert_fits(tree, second)


async def test_change_a_type(tree: Tree, sql: asyncpg.Connection) -> None:
    await tree.release("nullable", 1)
    old = tree.code()
    await old.works(nickname="short")
    table = "SELECT pg_relation_filenode('users')"
    before = await sql.fetchval(table)
    await tree.release("wider", 1, before=old)
    new = tree.code()
    await new.works(nickname="n" * 80)
    await old.works()
    assert await sql.fetchval(table) == before, "rows were rewritten"
    assert max(len(row.nickname or "") for row in await old.rows()) == 80
    await assert_fits(tree, new)

    # What the document says of indexes on expressions.
    index = "SELECT pg_relation_filenode('uq_users_username')"
    before = await sql.fetchval(index)
    await sql.execute("ALTER TABLE users ALTER COLUMN username TYPE varchar(50)")
    assert await sql.fetchval(index) != before


async def until(sql: asyncpg.Connection, query: str) -> asyncpg.Record:
    """Ask until there is an answer."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if row := await sql.fetchrow(query):
            return row
        await asyncio.sleep(0.02)
    pytest.fail(f"nothing came of {query}")


INDEX = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('ix_users_created_at')"


async def test_build_an_index_while_others_write(tree: Tree, sql: asyncpg.Connection) -> None:
    old = tree.code()
    await old.works()
    tree.configure(lock_timeout="100ms", statement_timeout="200ms")
    writer = await asyncpg.connect(tree.url)
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("UPDATE users SET session_version = session_version + 1")

    releasing = asyncio.create_task(tree.release("index", 1))
    # It waits for the open transaction, for longer than either time-out allows elsewhere.
    building = await until(
        sql,
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%'"
        " AND datname = current_database() AND wait_event_type = 'Lock'"
        " AND clock_timestamp() - query_start > '600ms'",
    )
    # Others write meanwhile: the table is locked for none of them.
    await sql.execute("SET lock_timeout = '50ms'")
    await sql.execute(
        "INSERT INTO users (username, email, password_hash) VALUES ('meanwhile', 'm@e.org', 'x')"
    )
    await old.works()
    # The commit before the build has not ended our turn: a second deploy waits for it.
    locks = await sql.fetch(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        advisory_locks.MIGRATE,
    )
    assert [lock["pid"] for lock in locks] == [building["pid"]]
    second = await tree.start("upgrade", "head")
    assert second.stdout is not None
    said = b""
    while b"another migration is running" not in said:
        line = await asyncio.wait_for(second.stdout.readline(), SECONDS)
        assert line, said.decode()
        said += line
    assert not releasing.done()

    await transaction.commit()
    await writer.close()
    await asyncio.wait_for(releasing, SECONDS)
    output, _ = await asyncio.wait_for(second.communicate(), SECONDS)
    assert second.returncode == 0, output.decode()
    assert b"Running upgrade" not in said + output
    assert await sql.fetchval(INDEX) is True
    new = tree.code()
    await new.works()
    await old.works()
    await assert_fits(tree, new)


async def test_time_outs_are_back_after_the_block(tree: Tree, sql: asyncpg.Connection) -> None:
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
    await tree.upgrade()  # all of them in one session
    assert tuple(await sql.fetchrow("SELECT lock, statement FROM found")) == ("1234ms", "45678ms")


async def test_a_build_that_failed_is_healed(tree: Tree, sql: asyncpg.Connection) -> None:
    await tree.code().works()
    writer = await asyncpg.connect(tree.url)
    transaction = writer.transaction()
    await transaction.start()
    await writer.execute("UPDATE users SET session_version = session_version + 1")
    releasing = asyncio.create_task(tree.release("index", 1))
    building = await until(
        sql,
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%'"
        " AND datname = current_database() AND wait_event_type = 'Lock'",
    )
    await sql.execute("SELECT pg_terminate_backend($1)", building["pid"])  # a deploy is killed
    with pytest.raises(MigrationFailedError):
        await asyncio.wait_for(releasing, SECONDS)
    assert await sql.fetchval(INDEX) is False
    assert await sql.fetchval("SELECT version_num FROM alembic_version") == head()
    await transaction.commit()
    await writer.close()

    await tree.running[0].works()
    await tree.upgrade()
    assert await sql.fetchval(INDEX) is True
    assert await tree.code().drift() == []


async def test_an_index_that_was_built_before_the_push_stays(
    tree: Tree, sql: asyncpg.Connection
) -> None:
    await sql.execute("CREATE INDEX ix_users_created_at ON users (created_at)")
    before = await sql.fetchval("SELECT 'ix_users_created_at'::regclass::oid")
    await tree.release("index", 1)
    assert await sql.fetchval("SELECT 'ix_users_created_at'::regclass::oid") == before


async def test_add_a_foreign_key(tree: Tree, sql: asyncpg.Connection) -> None:
    old = tree.code()
    await old.works()
    await tree.release("foreign-key", 1, before=old)
    new = tree.code()
    await new.works(invited_by=(await new.rows())[0].id)
    await old.works()
    with pytest.raises(IntegrityError):
        await new.works(invited_by=-1)
    key = "SELECT convalidated FROM pg_constraint WHERE conname = 'fk_users_invited_by_users'"
    assert await sql.fetchval(key) is True
    await assert_fits(tree, new)


async def test_add_a_check(tree: Tree, sql: asyncpg.Connection) -> None:
    await tree.release("nullable", 1)
    old = tree.code()
    await old.works(nickname="")
    # Both migrations in one deploy. The old row fails the second; the first is committed.
    with pytest.raises(MigrationFailedError, match="ck_users_nickname_filled"):
        await tree.release("check", 2)
    check = "SELECT convalidated FROM pg_constraint WHERE conname = 'ck_users_nickname_filled'"
    assert await sql.fetchval(check) is False
    await old.works(nickname="filled")
    with pytest.raises(IntegrityError):
        await old.works(nickname="")
    await sql.execute("UPDATE users SET nickname = NULL WHERE nickname = ''")
    await tree.upgrade()
    assert await sql.fetchval(check) is True
    await old.works(nickname="filled")
    new = tree.code()
    await new.works(nickname="filled")
    assert await new.drift() == []
    assert tree.lint().returncode == 0


def test_every_block_is_in_the_form_of_this_project(tmp_path: Path) -> None:
    """A block that is pasted below the header passes ruff."""
    count = 0
    for name, code in blocks():
        if name.endswith("migration"):
            count += 1
            header = HEADER.format(name=name, revision="a", down_revision="b")
            uses = header if "sa." in code else header.replace("import sqlalchemy as sa\n", "")
            (tmp_path / f"{name.replace(' ', '_')}_{count}.py").write_text(uses + code)
    assert count > 10
    for verb in (["check"], ["format", "--check", "--diff"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *verb, "--config", str(ROOT / "pyproject.toml"), "."],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_links_within_the_document_lead_somewhere() -> None:
    text = DOCUMENT.read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-") for title in headings}
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert len(links) > 8
    assert links <= anchors


def test_every_marked_block_is_found() -> None:
    """A marker with a slip would otherwise leave its block without a test."""
    text = DOCUMENT.read_text()
    assert len(blocks()) == text.count("<!-- recipe")
    assert text.count("def upgrade") == sum(name.endswith("migration") for name, _ in blocks())
