"""`quart adopt` on a database that Flask-Migrate has made for a Flask application."""

import asyncio
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from quart import Quart
from sqlalchemy import make_url

from app import create_app
from app.settings import ROOT, Settings
from app.user import passwords, unconfirmed_accounts
from app.user.models import UNUSABLE_HASH, Role
from quart_upsun.database.url import parse_database_url
from quart_upsun.jobs.queue import enqueue
from quart_upsun.testing import runner_of
from quart_upsun.testing.statements import connected
from tests.features.factories import Person, new_client
from tests.flask_application import FlaskApplication
from tests.from_flask.conftest import PASSWORD, Command

COOKIE = """
from autoapp import app

client = app.test_client()
with client.session_transaction() as session:
    session["_user_id"] = "{user_id}"
page = client.get("{path}")
print(page.status_code, page.text)
"""


async def rows(url: str, query: str, *arguments: Any) -> list[dict[str, Any]]:
    async with connected(url) as connection:
        return [dict(row) for row in await connection.fetch(query, *arguments)]


async def test_report_changes_nothing(run: Command) -> None:
    async with connected(run.url) as connection:
        before = await connection.fetch("SELECT schemaname, tablename FROM pg_tables")
        report = run.done("quart", "adopt")
        assert await connection.fetch("SELECT schemaname, tablename FROM pg_tables") == before
    assert "Users: 7 in the table users, 6 of them active, 2 administrators." in report
    assert "Passwords: 7 bcrypt." in report
    assert "3: Zoë Doe → Zoe-Doe (not a valid username)" in report
    assert "4: ADA → ADA-4 (user 1 has this name, apart from upper and lower case)" in report
    assert "5: x → x-5 (not a valid username)" in report
    assert "4: ADA@example.com → (none) (user 1 has this address)" in report
    assert "5: not an address → (none) (not a valid email address)" in report
    assert "Roles that this application does not have: editor (1)." in report
    assert "Nothing was changed." in report
    assert "$2b$" not in report
    found = json.loads(run.done("quart", "adopt", "--json"))
    assert (found["adopted"], found["users"], found["active"]) == (False, 7, 6)
    assert found["administrators"] == ["ada", "cleo"]
    assert found["moved"] == ["alembic_version", "orders", "roles", "users"]
    assert [change["id"] for change in found["renamed"]] == [3, 4, 5]


async def test_users_come_over(adopted: Command) -> None:
    users = await rows(adopted.url, "SELECT * FROM users ORDER BY id")
    assert [user["id"] for user in users] == list(range(1, 8))
    names = ["ada", "bert", "Zoe-Doe", "ADA-4", "x-5", "cleo", "dora"]
    assert [user["username"] for user in users] == names
    emails = ["ada@example.com", "bert@example.com", "Zoe@example.com", None, None]
    assert [user["email"] for user in users] == [*emails, "cleo@example.com", "dora@example.com"]
    assert [user["id"] for user in users if user["role"] == Role.ADMINISTRATOR] == [1, 6]
    assert [user["id"] for user in users if user["deactivated_at"] is not None] == [2]
    assert users[0]["created_at"] == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert all(user["password_hash"].startswith("$2b$04$") for user in users)


async def test_migrations_and_deploys_go_on(adopted: Command, shop: FlaskApplication) -> None:
    adopted.done("alembic", "upgrade", "head")
    assert "No new upgrade operations" in adopted.done("alembic", "check")
    again = adopted.done("quart", "adopt", "--yes")
    assert "Nothing to do. Accounts with a password hash of the old application: 7." in again
    assert json.loads(adopted.done("quart", "adopt", "--json")) == {
        "adopted": True,
        "old_hashes": 7,
    }
    assert adopted.done("quart", "database", "owner").split()[1] == "tests"
    # Both applications know the state of their migrations.
    assert "(head)" in shop.db("current")
    assert "No new upgrade operations" in shop.db("check")
    shop.db("upgrade")


async def test_old_password_works_and_its_hash_is_replaced(adopted_app: Quart) -> None:
    client = new_client(adopted_app)
    await Person("zoe-doe", password=PASSWORD).log_in(client)
    assert (await client.get("/users/")).status_code == 200
    database = adopted_app.extensions["quart_upsun"].settings.database_url
    url = database.set(drivername="postgresql").render_as_string(hide_password=False)
    [user] = await rows(url, "SELECT password_hash FROM users WHERE id = 3")
    assert not passwords.needs_rehash(user["password_hash"])
    # The old hash does not stay behind.
    [old] = await rows(url, "SELECT password, username FROM flask.users WHERE id = 3")
    assert (old["password"], old["username"]) == (b"!", "Zoe-Doe")
    page = await new_client(adopted_app).post(
        "/login/", form={"username": "bert", "password": PASSWORD}
    )
    assert "This account is deactivated." in await page.get_data(as_text=True)


async def test_flask_application_goes_on(
    adopted: Command, adopted_app: Quart, shop: FlaskApplication
) -> None:
    """It sees its tables, and accounts that are created and changed in this application."""
    page = shop.run("-c", COOKIE.format(user_id=4, path="/orders/"))
    assert page.startswith("200")
    assert "A book" in page
    assert "Logged in as ADA-4" in page

    eve = await Person("eve").register(adopted_app)
    assert eve.id == 8
    page = shop.run("-c", COOKIE.format(user_id=8, path="/orders/"))
    assert "Logged in as eve" in page
    await rows(adopted.url, "INSERT INTO flask.orders (user_id, title) VALUES (8, 'Another')")

    changes = (
        "UPDATE users SET username = 'evelyn', email = 'Evelyn@example.com' WHERE id = 8",
        "UPDATE users SET role = 'administrator', deactivated_at = now() WHERE id = 8",
    )
    for change in changes:
        await rows(adopted.url, change)
    query = "SELECT username, email, active, is_admin, password FROM flask.users WHERE id = $1"
    [user] = await rows(adopted.url, query, 8)
    assert list(user.values()) == ["evelyn", "Evelyn@example.com", False, True, b"!"]

    # Her order stays, and nothing tells about her.
    await rows(adopted.url, "DELETE FROM users WHERE id = 8")
    [user] = await rows(adopted.url, query, 8)
    assert list(user.values())[:2] == ["deleted-8", "user-8@example.invalid"]
    # Nothing refers to Bert.
    await rows(adopted.url, "DELETE FROM users WHERE id = 2")
    assert await rows(adopted.url, query, 2) == []


async def test_personal_data_of_a_deleted_user_is_deleted(adopted: Command) -> None:
    await rows(adopted.url, "INSERT INTO flask.orders (user_id, title) VALUES (1, 'A letter')")
    await rows(adopted.url, "DELETE FROM users WHERE id = 1")
    [user] = await rows(adopted.url, "SELECT * FROM flask.users WHERE id = 1")
    assert user["username"] == "deleted-1"
    assert (user["first_name"], user["last_name"], user["password"]) == (None, None, b"!")
    assert (user["active"], user["is_admin"]) == (False, False)


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO users (username, email, created_at) VALUES ('eve', 'e@example.com', now())",
        "UPDATE users SET active = false WHERE id = 1",
        "UPDATE users SET password = '!' WHERE id = 1",
        "DELETE FROM users WHERE id = 2",
    ],
)
async def test_flask_application_cannot_change_accounts(adopted: Command, change: str) -> None:
    """Two applications with their own idea of an account would soon disagree."""
    async with connected(adopted.url) as connection:
        await connection.execute("SET search_path TO flask")
        await connection.execute("UPDATE users SET first_name = 'Augusta' WHERE id = 1")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="by the new application"):
            await connection.execute(change)


async def test_addresses_that_differ_by_case_do_not_block_registration(adopted: Command) -> None:
    """The old table keeps an address that this application has given up."""
    await rows(adopted.url, "DELETE FROM users WHERE id = 1")
    await rows(
        adopted.url,
        "INSERT INTO users (username, email, password_hash) VALUES ('eve', 'ADA@example.com', '!')",
    )
    [user] = await rows(adopted.url, "SELECT username, email FROM flask.users WHERE id = 8")
    assert list(user.values()) == ["deleted-8", "user-8@example.invalid"]


async def test_dropping_the_old_schema_leaves_this_application(adopted_app: Quart) -> None:
    url = adopted_app.extensions["quart_upsun"].settings.database_url
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    await rows(plain, "DROP SCHEMA flask CASCADE")
    await Person("eve").register(adopted_app)


async def test_adopted_accounts_are_not_deleted_as_unconfirmed(
    adopted: Command, adopted_app: Quart
) -> None:
    await rows(adopted.url, "UPDATE users SET created_at = '2020-01-01'")
    runner = runner_of(adopted_app, unconfirmed_accounts.DELETE_UNCONFIRMED_ACCOUNTS)
    async with adopted_app.extensions["quart_upsun"].database.write() as session:
        await enqueue(session, unconfirmed_accounts.DELETE_UNCONFIRMED_ACCOUNTS.task)
    await runner.run_due()
    assert len(await rows(adopted.url, "SELECT id FROM users")) == 7
    await rows(
        adopted.url,
        "INSERT INTO users (username, password_hash, created_at) VALUES ('eve', '!', '2020-01-01')",
    )
    async with adopted_app.extensions["quart_upsun"].database.write() as session:
        await enqueue(session, unconfirmed_accounts.DELETE_UNCONFIRMED_ACCOUNTS.task)
    await runner.run_due()
    assert len(await rows(adopted.url, "SELECT id FROM users")) == 7


async def test_caller_chooses_names_and_addresses(run: Command, tmp_path: Path) -> None:
    changes = tmp_path / "changes.csv"
    changes.write_text("id,username,email\n4,countess,\n5,,x@example.com\n")
    words = ("--rename", "Zoë Doe=zoe", "--changes", str(changes), "--admin-role", "editor")
    run.done("quart", "adopt", "--yes", *words)
    users = await rows(run.url, "SELECT id, username, email, role FROM users ORDER BY id")
    assert [user["username"] for user in users[2:5]] == ["zoe", "countess", "x-5"]
    assert users[4]["email"] == "x@example.com"
    assert [user["id"] for user in users if user["role"] == Role.ADMINISTRATOR] == [1, 7]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rename", "nobody=eve"], "There is no user called nobody."),
        (["--rename", "ada=a b"], "'a b' cannot be a username."),
        (["--rename", "ada"], "must have the form OLD=NEW"),
        (["--rename", "ada=eve", "--rename", "bert=EVE"], "Two users cannot both be called EVE."),
        (["--table", "people"], "The database has no table people."),
        (["--table", "orders"], "orders has no column of usernames and none of email addresses."),
        (["--column", "username=nick"], "users has no column nick."),
        (["--column", "username=active"], "users.active has the type boolean"),
        (["--column", "shoe=size"], "'shoe' is not one of username"),
        (["--changes", "/nonexistent.csv"], "Cannot read /nonexistent.csv"),
    ],
)
async def test_wrong_options_change_nothing(run: Command, words: list[str], message: str) -> None:
    assert message in run.refused("quart", "adopt", "--yes", *words)
    assert len(await rows(run.url, "SELECT id FROM public.users")) == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"username\nada\n", "must be \u201cid,username,email\u201d"),
        (b"id,username\nada,eve\n", "line 2: the id must be a number"),
        (b"id,username\n99,eve\n", "There is no user with the id 99."),
        (b"id,email\n1,nowhere\n", "'nowhere' is not a valid email address."),
        (b"id,email\n1,\xff\n", "Cannot read"),
    ],
)
async def test_wrong_file_of_changes(
    run: Command, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "changes.csv"
    path.write_bytes(content)
    assert message in run.refused("quart", "adopt", "--changes", str(path))


async def test_hashes_of_all_kinds(run: Command) -> None:
    """Those that nobody can verify are not kept."""
    stored = {
        1: "scrypt:32768:8:1$salt$" + "0" * 128,
        2: "pbkdf2:sha256:600000$salt$00ff",
        3: "5f4dcc3b5aa765d61d8327deb882cf99",
        4: None,
        5: "$2b$31$" + "x" * 53,
    }
    async with connected(run.url) as connection:
        for user_id, value in stored.items():
            await connection.execute(
                "UPDATE users SET password = $2 WHERE id = $1",
                user_id,
                value.encode() if value else None,
            )
    report = run.done("quart", "adopt", "--yes")
    assert "Passwords: 1 scrypt, 1 PBKDF2, 2 of an unknown kind, 1 missing, 2 bcrypt." in report
    assert "3: Zoe-Doe (unknown kind of password hash)" in report
    assert "4: ADA-4 (no password, and no email address)" in report
    assert "5f4dcc3b" not in report
    users = await rows(run.url, "SELECT password_hash FROM users ORDER BY id")
    found = [user["password_hash"] for user in users]
    assert found[:5] == [stored[1], stored[2], *[UNUSABLE_HASH] * 3]


async def test_long_passwords_of_flask_bcrypt(run: Command) -> None:
    run.done("quart", "adopt", "--yes", "--long-passwords")
    users = await rows(run.url, "SELECT password_hash FROM users")
    assert all(user["password_hash"].startswith("bcrypt_sha256$$2b$") for user in users)


async def test_new_ids_begin_after_those_of_deleted_users(run: Command) -> None:
    """A row of another table may still have the id of a deleted user."""
    await rows(run.url, "SELECT setval('users_id_seq', 100)")
    run.done("quart", "adopt", "--yes")
    [user] = await rows(
        run.url,
        "INSERT INTO users (username, password_hash) VALUES ('eve', '!') RETURNING id",
    )
    assert user["id"] == 101


class Running:
    """`quart adopt --yes`, while a table is locked."""

    def __init__(self, run: Command) -> None:
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("quart")), "adopt", "--yes"],
            cwd=ROOT,
            env=run.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def wait_until_locked_out(self) -> None:
        assert self.process.stderr is not None
        line = await asyncio.to_thread(self.process.stderr.readline)
        assert line == "A table is locked; attempt 1 of 5 failed.\n"


async def test_interrupted_or_locked_out_run_changes_nothing(run: Command) -> None:
    async with connected(run.url) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT count(*) FROM orders")
        running = Running(run)
        await running.wait_until_locked_out()
        running.process.send_signal(signal.SIGKILL)
        running.process.communicate()
        assert await connection.fetchval("SELECT to_regnamespace('flask')") is None

        running = Running(run)
        await running.wait_until_locked_out()
        await transaction.rollback()
        output, errors = await asyncio.to_thread(running.process.communicate)
    assert running.process.returncode == 0, errors
    assert "Done." in output


async def test_two_runs_at_once(run: Command) -> None:
    processes = [Running(run).process for _ in range(2)]
    outputs = [(await asyncio.to_thread(process.communicate))[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("Nothing to do." in output for output in outputs) == [False, True]


async def test_migration_is_refused_before_adoption(run: Command) -> None:
    message = run.refused("alembic", "upgrade", "head")
    assert "has the tables of another application (revision " in message
    assert "`quart adopt`" in message
    await rows(run.url, "DROP TABLE alembic_version")
    assert "has the tables of another application." in run.refused("alembic", "upgrade", "head")
    run.done("quart", "adopt", "--yes")


async def test_requests_get_503_before_adoption(shop: FlaskApplication, settings: Settings) -> None:
    """The revision of Flask-Migrate is not mistaken for one of a newer release."""
    url = parse_database_url(shop.url)
    app = create_app(settings.model_copy(update={"database_url": url}))
    async with app.test_app():
        client = new_client(app)
        assert (await client.get("/readyz")).status_code == 503
        response = await client.post("/login/", form={"username": "ada", "password": PASSWORD})
        assert response.status_code == 503


async def test_database_that_cannot_be_adopted(empty_database: str) -> None:
    run = Command(empty_database)
    assert "no table \u201cusers\u201d or \u201cuser\u201d" in run.refused("quart", "adopt")
    assert "It has no tables." in run.refused("quart", "adopt")
    await rows(empty_database, "CREATE TABLE users (id uuid PRIMARY KEY, username text)")
    assert "The primary key of users must be an integer" in run.refused("quart", "adopt")
    await rows(empty_database, 'CREATE TABLE "user" (id integer PRIMARY KEY, username text)')
    assert "Choose one with --table." in run.refused("quart", "adopt")
    await rows(empty_database, "CREATE SCHEMA flask")
    words = ("quart", "adopt", "--table", "user")
    assert "The schema flask exists" in run.refused(*words)
    await rows(empty_database, "DROP SCHEMA flask")
    await rows(empty_database, 'ALTER TABLE "user" ADD place point NOT NULL')
    assert "The column user.place has no default" in run.refused(*words)
    await rows(empty_database, 'ALTER TABLE "user" ALTER place DROP NOT NULL')
    run.done(*words, "--yes")
    run.environment["DATABASE_URL"] = (
        make_url(empty_database).set(port=1).render_as_string(hide_password=False)
    )
    assert "Cannot connect to the database" in run.refused("quart", "adopt")


# A shape as of Flask-Security, in an application that calls things by other names.
SECURITY = """
    CREATE TYPE kind AS ENUM ('person', 'robot');
    CREATE TABLE role (id serial PRIMARY KEY, name varchar(80) UNIQUE);
    CREATE TABLE "user" (
        id bigserial PRIMARY KEY,
        email varchar(30) NOT NULL UNIQUE,
        password_hash varchar(255),
        is_active integer,
        fs_uniquifier varchar(20) NOT NULL UNIQUE,
        confirmed_at timestamp,
        kind kind NOT NULL DEFAULT 'person',
        bio text NOT NULL
    );
    CREATE TABLE roles_users (
        user_id bigint REFERENCES "user" (id),
        role_id integer REFERENCES role (id)
    );
    CREATE TABLE access_tokens (id serial PRIMARY KEY);
    CREATE VIEW people AS SELECT email FROM "user";
    CREATE FUNCTION shout(what text) RETURNS text LANGUAGE sql AS 'SELECT upper(what)';
    INSERT INTO role (name) VALUES ('Admin'), ('editor');
    INSERT INTO "user" (email, password_hash, is_active, fs_uniquifier, confirmed_at, bio) VALUES
        ('ada@example.com', NULL, 1, 'a', now(), ''),
        ('ada@example.org', NULL, 1, 'b', NULL, ''),
        ('bert@example.com', NULL, 0, 'c', now(), '');
    INSERT INTO roles_users VALUES (1, 1), (2, 2);
"""


async def test_database_of_another_shape(empty_database: str) -> None:
    await rows_of_script(empty_database, SECURITY)
    run = Command(empty_database)
    report = run.done("quart", "adopt", "--yes")
    assert "Email addresses that are not confirmed, and stay so: 1." in report
    assert "editor (1)" in report
    found = await rows(
        empty_database,
        "SELECT pronamespace::regnamespace::text, typnamespace::regnamespace::text"
        " FROM pg_proc, pg_type WHERE proname = 'shout' AND typname = 'kind'",
    )
    assert [tuple(each.values()) for each in found] == [("flask", "flask")]
    assert "No new upgrade operations" in run.done("alembic", "check")
    users = await rows(
        empty_database,
        "SELECT username, email, pending_email, role, deactivated_at IS NULL AS active"
        " FROM users ORDER BY id",
    )
    assert [tuple(user.values()) for user in users] == [
        ("ada", "ada@example.com", None, "administrator", True),
        ("ada-2", None, "ada@example.org", "member", True),
        ("bert", "bert@example.com", None, "member", False),
    ]
    # New accounts reach the old table, whatever its other columns require.
    long = f"{'x' * 30}@example.com"
    await rows(
        empty_database,
        "INSERT INTO users (username, email, password_hash) VALUES ('eve', $1, '!')",
        long,
    )
    [user] = await rows(empty_database, 'SELECT * FROM flask."user" WHERE id = 4')
    assert user["email"] == "user-4@example.invalid"
    assert (user["is_active"], len(user["fs_uniquifier"]), user["bio"]) == (1, 20, "")
    [people] = await rows(empty_database, "SELECT count(*) FROM flask.people")
    assert people["count"] == 4


async def rows_of_script(url: str, script: str) -> None:
    async with connected(url) as connection:
        await connection.execute(script)


async def test_empty_users_table(empty_database: str) -> None:
    await rows(empty_database, "CREATE TABLE users (id serial PRIMARY KEY, username text)")
    run = Command(empty_database)
    assert "Users: 0 in the table users" in run.done("quart", "adopt", "--yes")
    [user] = await rows(
        empty_database,
        "INSERT INTO users (username, password_hash) VALUES ('eve', '!') RETURNING id",
    )
    assert user["id"] == 1


async def test_preview_empties_the_old_tables(adopted: Command) -> None:
    """`quart sanitize` does not know what the old tables say about people."""
    adopted.environment |= {
        "PLATFORM_APPLICATION_NAME": "app",
        "PLATFORM_ENVIRONMENT": "preview-abc123",
        "PLATFORM_ENVIRONMENT_TYPE": "development",
        "PLATFORM_PROJECT_ENTROPY": "x" * 40,
    }
    await rows(
        adopted.url,
        "UPDATE database_owner SET environment = 'preview-abc123', type = 'development'",
    )
    del adopted.environment["DATABASE_ENVIRONMENT"]
    assert "flask.orders" in adopted.done("quart", "sanitize")
    for table in ("flask.users", "flask.orders", "flask.roles"):
        assert await rows(adopted.url, f"TABLE {table}") == []
    assert await rows(adopted.url, "SELECT version_num FROM flask.alembic_version") != []
    users = await rows(adopted.url, "SELECT username FROM users ORDER BY id")
    assert users[0]["username"] == "user-1"
