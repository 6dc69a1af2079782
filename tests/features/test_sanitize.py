"""Sanitizing previews: the command, the gate until it has run, and the banner."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from bs4 import BeautifulSoup
from click.testing import CliRunner, Result
from quart import Quart
from sqlalchemy import BigInteger, ForeignKey, Integer, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app import create_app
from app.settings import Settings
from app.user.passwords import verify_password
from quart_upsun import platform as upsun
from quart_upsun.database import Base, load_models
from quart_upsun.database.anonymization import EMPTIED, KEPT, ended, replaced
from quart_upsun.database.ownership import Identity
from quart_upsun.database.url import parse_database_url
from quart_upsun.sanitize import sanitizer as module
from quart_upsun.sanitize.commands import sanitize_command
from quart_upsun.sanitize.sanitizer import SanitizeError, find_rule_errors, sanitize
from quart_upsun.testing.statements import connected

PREVIEW = "feature-4tw7dqi"
HASH = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$Zm9ydHktdHdvIGJ5dGVzIG9mIG5vdGhpbmc"
# Names that collide with generated ones: in different case, circular, of later and earlier rows.
NAMES = ["User-2", "user-1", "ada.lovelace", "user-7", "grace.hopper", "user-3", "user-99"]


def environment(kind: str, databases: frozenset[tuple[str, int]]) -> upsun.Environment:
    return upsun.Environment(
        name=PREVIEW,
        type=kind,
        release="1f3a5c7e9b1d",
        branch="feature/<b>",
        origin="https://feature.example",
        hosts=frozenset(),
        smtp_host="",
        databases=databases,
    )


def settings_in(settings: Settings, kind: str | None) -> Settings:
    """Return the settings of an environment of this type with its own database."""
    url = settings.database_url
    own = frozenset({(url.host or "", url.port or 0)})
    platform = environment(kind, own) if kind else None
    return settings.model_copy(update={"platform": platform})


@pytest.fixture
def complete_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete the rules of models: a missing one fails `test_every_column_has_a_rule` only."""
    load_models("app")
    for mapper in Base.registry.mappers:
        rules = mapper.class_.__dict__.get("__sanitize__", EMPTIED)
        if not isinstance(rules, str):
            rules = dict.fromkeys(mapper.local_table.columns.keys(), KEPT) | rules
        monkeypatch.setattr(mapper.class_, "__sanitize__", rules, raising=False)


@pytest.fixture
async def people(database_url: str, complete_rules: None) -> str:
    """A database with users and collected statistics."""
    async with connected(database_url) as connection:
        await connection.executemany(
            "INSERT INTO users (username, email, pending_email, password_hash)"
            " VALUES ($1, $2, $3, $4)",
            [
                (name, f"{name}@people.example", f"new.{name}@people.example", HASH)
                for name in NAMES[:-1]
            ],
        )
        # The email address that user 1 gets when it is replaced.
        await connection.execute(
            "INSERT INTO users (username, email, password_hash, role, deactivated_at)"
            " VALUES ('user-99', 'User-1@example.invalid', $1, 'administrator', now())",
            HASH,
        )
        await connection.execute(
            "INSERT INTO users (username, password_hash) VALUES ('nobody', $1)", HASH
        )
        await connection.execute(
            "INSERT INTO audit_events (kind, client) SELECT 'login', '203.0.113.77'"
            " FROM generate_series(1, 5)"
        )
        await connection.execute(
            "INSERT INTO mails (kind, message)"
            " VALUES ('confirm', 'To: ada.lovelace@people.example')"
        )
        await connection.execute("INSERT INTO rate_limits VALUES ('login', 1, now())")
        await connection.execute("ANALYZE")
    return database_url


def identity(name: str) -> Identity:
    return Identity(name, "development", has_own_database=True)


async def run(url: str, name: str = PREVIEW) -> list[str]:
    """Sanitize the database, and return the reported lines."""
    lines: list[str] = []
    await sanitize(parse_database_url(url), identity(name), lines.append)
    return lines


async def users(url: str) -> list[tuple[object, ...]]:
    async with connected(url) as connection:
        return [
            tuple(row)
            for row in await connection.fetch(
                "SELECT id, username, email, pending_email, password_hash, session_version"
                " FROM users ORDER BY id"
            )
        ]


def anonymized(number: int, version: int = 2) -> tuple[object, ...]:
    address = f"user-{number}@example.invalid"
    pending = address if number < len(NAMES) else None
    confirmed = address if number <= len(NAMES) else None
    return number, f"user-{number}", confirmed, pending, "sanitized", version


EVERYBODY = [anonymized(number) for number in range(1, len(NAMES) + 2)]


def test_every_column_has_a_rule() -> None:
    load_models()
    assert len(Base.metadata.tables) > 1
    errors = find_rule_errors(Base)
    assert not errors, "\n".join([*errors, "See docs/adding-a-feature.md#1-the-table."])


def test_invalid_rules_are_reported() -> None:
    class Wrong(DeclarativeBase):
        metadata = MetaData()

    class Silent(Wrong):
        __tablename__ = "silent"
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True)

    class Incomplete(Wrong):
        __tablename__ = "incomplete"
        __sanitize__ = {"id": KEPT, "gone": KEPT}  # noqa: RUF012
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
        nickname: Mapped[str] = mapped_column(String(50))

    class Unfit(Wrong):
        __tablename__ = "unfit"
        __sanitize__ = {"word": KEPT, "number": replaced("1")}  # noqa: RUF012
        word: Mapped[str] = mapped_column(String(50), primary_key=True)
        number: Mapped[int] = mapped_column(Integer, unique=True)

    class Misspelt(Wrong):
        __tablename__ = "misspelt"
        __sanitize__ = "emptyed"
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True)

    class Emptied(Wrong):
        __tablename__ = "emptied"
        __sanitize__ = EMPTIED
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True)

    class Referring(Wrong):
        __tablename__ = "referring"
        __sanitize__ = {"id": KEPT, "one": KEPT, "other": ended("NULL")}  # noqa: RUF012
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
        one: Mapped[int | None] = mapped_column(ForeignKey("emptied.id"))
        other: Mapped[int | None] = mapped_column(ForeignKey("emptied.id"))

    assert find_rule_errors(Wrong) == [
        "silent: add __sanitize__ to its model, such as __sanitize__ = EMPTIED",
        "incomplete.nickname has no rule",
        "incomplete has no column gone",
        "unfit: updating rows requires a primary key of one integer",
        "unfit.number is unique and replaced, but is not a text column",
        "misspelt: 'emptyed' is not a valid rule",
        'referring.one refers to emptied, which is emptied, so its rule must be ended("NULL")',
    ]


async def test_sanitize_replaces_all_personal_data(people: str) -> None:
    (line,) = await run(people)
    assert "Updated 8 rows of users" in line
    assert await users(people) == EVERYBODY
    assert not await verify_password("sanitized", "sanitized")
    async with connected(people) as connection:
        for table in ("audit_events", "mails", "rate_limits"):
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0  # noqa: S608
        kept = await connection.fetchrow("SELECT role, deactivated_at FROM users WHERE id = 7")
        assert kept["role"] == "administrator"
        assert kept["deactivated_at"] is not None
        statistics = await connection.fetchval("SELECT string_agg(s::text, ' ') FROM pg_stats AS s")
        for word in ("ada.lovelace", "people.example", "argon2", "203.0.113.77"):
            assert word not in statistics
        # The append-only trigger is active again.
        await connection.execute("INSERT INTO audit_events (kind) VALUES ('login')")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM audit_events")

    (line,) = await run(people)
    assert "Nothing to do" in line
    assert await users(people) == EVERYBODY
    # A clone of this preview is another environment, where new users are anonymized, too.
    async with connected(people) as connection:
        await connection.execute(
            "INSERT INTO users (username, password_hash) VALUES ('charles.babbage', $1)", HASH
        )
    await run(people, "another-4tw7dqi")
    rows = await users(people)
    assert [row[1] for row in rows] == [f"user-{n}" for n in range(1, len(rows) + 1)]


async def test_interrupted_run_is_resumed(people: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_SIZE", 3)
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.0)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("users: 3 of 8"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await sanitize(parse_database_url(people), identity(PREVIEW), say)
    half = await users(people)
    assert half[:3] == EVERYBODY[:3]
    # Names that would collide with later rows are replaced; other rows are unchanged.
    assert half[4][1] == "grace.hopper"

    said = await run(people)
    assert said[0] == "Resuming the last run in users."
    assert any(line.startswith("users: 3 of 5") for line in said), said
    assert "Updated 5 rows of users" in said[-1]
    assert await users(people) == EVERYBODY  # each row once
    async with connected(people) as connection:
        assert await connection.fetchval("SELECT count(*) FROM audit_events") == 0


async def test_concurrent_runs_sanitize_once(people: str) -> None:
    runs = await asyncio.gather(*(run(people) for _ in range(3)))
    said = [line for lines in runs for line in lines]
    assert len([line for line in said if line.startswith("Sanitized")]) == 1, said
    assert len([line for line in said if "Nothing to do" in line]) == 2, said
    assert await users(people) == EVERYBODY


async def test_unknown_columns_and_tables_are_cleared(people: str) -> None:
    async with connected(people) as connection:
        await connection.execute(
            "ALTER TABLE users ADD later_name text, ADD later_plan text DEFAULT 'free',"
            " ADD later_initial text GENERATED ALWAYS AS (left(username, 1)) STORED;"
            " ALTER TABLE sanitizations ADD author text;"
            " UPDATE users SET later_name = 'The Countess', later_plan = 'paid by the Countess';"
            " CREATE TABLE later_visits (user_id bigint REFERENCES users, place text);"
            " INSERT INTO later_visits VALUES (1, 'Ockham Park')"
        )
    await run(people)
    assert await users(people) == EVERYBODY
    async with connected(people) as connection:
        rows = await connection.fetch(
            "SELECT DISTINCT later_name, later_plan, later_initial FROM users"
        )
        assert [tuple(row) for row in rows] == [(None, "free", "u")]
        assert await connection.fetchval("SELECT count(*) FROM later_visits") == 0


async def test_circular_references_are_emptied(people: str) -> None:
    """A later release has teams of users, and a trigger that records usernames."""
    async with connected(people) as connection:
        await connection.execute(
            "CREATE TABLE later_teams (id bigint PRIMARY KEY, name text);"
            "CREATE TABLE later_rooms (id bigint PRIMARY KEY, team_id bigint NOT NULL"
            " REFERENCES later_teams ON DELETE RESTRICT);"
            "CREATE TABLE later_keys (room_id bigint REFERENCES later_rooms, text text);"
            "ALTER TABLE later_teams ADD room_id bigint REFERENCES later_rooms,"
            " ADD mail_id bigint REFERENCES mails;"
            "INSERT INTO later_teams SELECT 1, 'Bluestockings', NULL, min(id) FROM mails;"
            "INSERT INTO later_rooms VALUES (1, 1);"
            "INSERT INTO later_keys VALUES (1, 'of Ada Lovelace');"
            "UPDATE later_teams SET room_id = 1;"
            "ALTER TABLE users ADD later_team_id bigint DEFAULT 1 REFERENCES later_teams"
            " ON DELETE CASCADE;"
            "CREATE TABLE later_names (name text);"
            "CREATE FUNCTION later_note() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN INSERT INTO later_names VALUES (OLD.username); RETURN NULL; END$$;"
            "CREATE TRIGGER later_note AFTER UPDATE ON users FOR EACH ROW"
            " EXECUTE FUNCTION later_note();"
            "CREATE FUNCTION later_note_team() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN INSERT INTO later_names VALUES (OLD.name); RETURN NULL; END$$;"
            "CREATE TRIGGER later_note AFTER DELETE ON later_teams FOR EACH ROW"
            " EXECUTE FUNCTION later_note_team()"
        )
    for name in (PREVIEW, "another-4tw7dqi"):
        await run(people, name)
        async with connected(people) as connection:
            assert not await connection.fetch(
                "SELECT FROM users WHERE later_team_id IS NOT NULL OR username NOT LIKE 'user-%'"
            )
            for table in ("teams", "rooms", "keys", "names"):
                # The table file must not contain deleted rows, either.
                assert await connection.fetchval(f"SELECT pg_relation_size('later_{table}')") == 0
            assert await connection.fetchval("SELECT count(*) FROM mails") == 0
    assert len(await users(people)) == len(EVERYBODY)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE users ADD later_team_id bigint NOT NULL DEFAULT 1 REFERENCES later_teams (id)",
        "ALTER TABLE users ADD FOREIGN KEY (session_version) REFERENCES later_teams (id)",
    ],
)
async def test_required_references_are_reported(people: str, change: str) -> None:
    async with connected(people) as connection:
        await connection.execute(
            "CREATE TABLE later_teams (id bigint PRIMARY KEY); INSERT INTO later_teams VALUES (1)"
        )
        await connection.execute(change)
    with pytest.raises(SanitizeError, match="Cannot empty later_teams: users has FOREIGN"):
        await run(people)
    assert (await users(people))[0][1] == NAMES[0]


async def test_unsupported_objects_are_rejected(settings: Settings, people: str) -> None:
    async with connected(people) as connection:
        await connection.execute(
            "CREATE MATERIALIZED VIEW addresses AS SELECT email FROM users;"
            "CREATE VIEW names AS SELECT username FROM users;"
            "CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER elsewhere"
            " FOREIGN DATA WRAPPER elsewhere;"
            "CREATE FOREIGN TABLE contacts (email text) SERVER elsewhere;"
            "CREATE SCHEMA archive; CREATE TABLE archive.users AS SELECT * FROM users;"
            "CREATE TABLE visits (year integer) PARTITION BY LIST (year);"
            "CREATE TABLE archive.visits_1843 PARTITION OF visits FOR VALUES IN (1843);"
            "SELECT lo_from_bytea(0, 'ada.lovelace@people.example')"
        )
        preview = settings_in(settings, "staging")
        refused = await command(preview)
        assert refused.exit_code == 1
        assert refused.stdout == ""
        assert refused.stderr == (
            "Error: Cannot sanitize foreign table public.contacts, large objects (1), materialized"
            " view public.addresses, table archive.users. Drop them in this preview, or keep their"
            " data in tables of the application's schema.\n"
        )
        assert (await users(people))[0][1] == NAMES[0]
        assert not await connection.fetchval("SELECT count(*) FROM sanitizations")

        await connection.execute(
            "DROP MATERIALIZED VIEW addresses; DROP FOREIGN TABLE contacts;"
            "DROP TABLE archive.users; SELECT lo_unlink(oid) FROM pg_largeobject_metadata;"
            # Tables of an extension, and temporary tables.
            "CREATE SCHEMA extension; CREATE TABLE extension.codes (code integer);"
            "CREATE EXTENSION IF NOT EXISTS plpgsql; ALTER EXTENSION plpgsql"
            " ADD TABLE extension.codes; CREATE TEMPORARY TABLE passing (code integer)"
        )
        assert (await command(preview)).exit_code == 0


async def command(settings: Settings, *arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, sanitize_command(settings, "app"), arguments)


async def test_command_exit_codes(
    settings: Settings, people: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, words in (
        (None, "This is not an Upsun environment"),
        ("production", "The type of this environment is production"),
        ("unknown", "The type of this environment is unknown"),
    ):
        refused = await command(settings_in(settings, kind))
        assert refused.exit_code == 1
        assert words in refused.stderr
        assert refused.stdout == ""
    assert (await users(people))[0][1] == NAMES[0]
    preview = settings_in(settings, "staging")
    assert (await command(preview, "--bad")).exit_code == 2
    assert "once per environment" in (await command(preview, "--help")).stdout

    # A failing row is reported without its values. The next run resumes.
    async with connected(people) as connection:
        await connection.execute("ALTER TABLE users ADD CHECK (username <> 'user-5')")
    failed = await command(preview)
    assert failed.exit_code == 1
    assert failed.stderr == (
        "Error: A statement failed: CheckViolationError at public.users (users_username_check)."
        " Run the command again to resume.\n"
    )
    async with connected(people) as connection:
        await connection.execute("ALTER TABLE users DROP CONSTRAINT users_username_check")
    done = await command(preview)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Updated 8 rows of users" in done.stdout

    monkeypatch.setattr(module, "CONNECT_TIMEOUT_SECONDS", 0.0)
    nowhere = parse_database_url("postgresql://ada:secret@127.0.0.1:9/none")
    failed = await command(
        preview.model_copy(update={"database_url": nowhere, "database_direct_url": None})
    )
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert "Cannot connect to the database" in failed.stderr


async def test_sanitize_requires_migrated_schema(empty_database: str, people: str) -> None:
    with pytest.raises(SanitizeError, match="alembic upgrade head"):
        await run(empty_database)
    async with connected(people) as connection:
        await connection.execute("ALTER TABLE users DROP role")
    with pytest.raises(SanitizeError, match=r"lacks users\.role\. Run"):
        await run(people)
    assert (await users(people))[0][1] == NAMES[0]


@asynccontextmanager
async def serving(settings: Settings, kind: str | None) -> AsyncIterator[Quart]:
    app = create_app(settings_in(settings, kind))
    async with app.test_app():
        yield app


async def test_preview_is_unready_until_sanitized(
    settings: Settings,
    people: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quart_upsun.database.gate.PREVIEW_CHECK_INTERVAL_SECONDS", 0.5)
    async with serving(settings, "development") as app:
        client = app.test_client()
        form = {"username": "ada.lovelace", "password": "some password"}
        for _ in range(3):
            ready = await client.get("/readyz")
            assert ready.status_code == 503
            assert await ready.get_json() == {
                "status": "unready",
                "reason": "sanitize",
                "environment": PREVIEW,
            }
            page = await client.post("/login/", form=form)
            assert page.status_code == 503
            assert int(page.headers["Retry-After"]) > 0
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/")).status_code == 200
        assert caplog.text.count("data not sanitized") == 1

        await run(people)
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/login/", form=form)).status_code == 200

        # A data sync replaces the tables with those of production, without the row of this preview.
        async with connected(people) as connection:
            await connection.execute("DELETE FROM sanitizations")
        deadline = time.monotonic() + 20
        while (await client.post("/login/", form=form)).status_code != 503:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("kind", [None, "production", "unknown"])
async def test_other_environments_need_no_sanitizing(kind: str | None, settings: Settings) -> None:
    async with serving(settings, kind) as app:
        client = app.test_client()
        assert (await client.get("/readyz")).status_code == 200
        assert "preview-banner" not in await (await client.get("/")).get_data(as_text=True)


async def test_every_page_of_a_preview_has_a_banner(settings: Settings, people: str) -> None:
    async with serving(settings, "staging") as app:
        client = app.test_client()
        login = {"username": "ada.lovelace", "password": "some password"}
        for page in (
            await client.get("/"),
            await client.get("/register/"),
            await client.get("/nowhere/"),
            await client.post("/login/", form=login),  # 503
        ):
            soup = BeautifulSoup(await page.get_data(), "html.parser")
            (banner,) = soup.select("aside.preview-banner")
            assert banner["aria-label"]
            assert " ".join(banner.get_text().split()) == (
                "Preview of feature/<b>, release 1f3a5c7."
                " Personal data is anonymized, and no email is sent."
            )
