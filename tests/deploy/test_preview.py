"""Previews of this application contain a copy of production's data, anonymized."""

import subprocess
from typing import Any

import asyncpg
import httpx
import pytest

from app.user.passwords import HASHER
from embedded_postgres import program
from rehearsal import lifecycle
from rehearsal.report import Console, Report
from rehearsal.scene import Options
from rehearsal.tests.sample import rehearse
from tests.deploy.releases import (
    ENQUEUE,
    LEFT,
    Releases,
    assert_no_problems,
    database,
    log_of,
    query,
)

# All tests in this directory share the images.
pytestmark = [pytest.mark.xdist_group("builds"), pytest.mark.requires("bwrap", "nginx")]

PEOPLE = ["ada.lovelace", "User-3", "grace.hopper", "mary_somerville", "user-1"]
CLIENTS = ["203.0.113.77", "2001:db8:a11c:e::7"]


def traces() -> list[str]:
    """Return the personal data that a preview must not contain."""
    names = [name for name in PEOPLE if not name.lower().startswith("user-")]
    return [*names, "people.example", "private.example", "$argon2id$", "User-3", *CLIENTS]


async def populate(url: str) -> None:
    connection = await asyncpg.connect(url)
    for name in PEOPLE:
        await connection.execute(
            "INSERT INTO users (username, email, pending_email, password_hash)"
            " VALUES ($1, $2, $3, $4)",
            name,
            f"{name}@people.example",
            f"{name}@private.example",
            HASHER.hash(f"the password of {name}"),
        )
    await connection.execute(
        "INSERT INTO audit_events (kind, user_id, client) SELECT 'login', id, client"
        " FROM users, unnest($1::text[]) AS client, generate_series(1, 5)",
        CLIENTS,
    )
    await connection.execute(
        "INSERT INTO mails (kind, message)"
        " SELECT 'confirm', 'To: ' || pending_email || ', ' || email FROM users"
    )
    await connection.execute(ENQUEUE)
    await connection.execute("ANALYZE")
    await connection.close()


def dump(url: str) -> str:
    """Return a dump of a database as text."""
    command = [program("pg_dump"), url]
    complete = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # These lines, for psql, contain a random word.
    random = ("\\restrict ", "\\unrestrict ")
    return "\n".join(line for line in complete.splitlines() if not line.startswith(random))


async def statistics(url: str) -> str:
    """Return PostgreSQL's planner statistics, which contain values and are not in a dump."""
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("SELECT string_agg(s::text, ' ') FROM pg_stats AS s"))
    finally:
        await connection.close()


async def preview_of(releases: Releases, name: str) -> tuple[Report, dict[str, httpx.Response]]:
    """Rehearse a preview; return the report, and responses by path."""
    pages: dict[str, httpx.Response] = {}

    async def look(report: Report) -> None:
        async with httpx.AsyncClient(base_url=report.address) as client:
            for path in ("/", "/register/", "/nowhere/", "/users/", "/readyz"):
                pages[path] = await client.get(path)
            login = {"username": "user-2", "password": "the password of User-3"}
            pages["login"] = await client.post("/login/", data=login)

    options = Options(
        repository=releases.repository,
        state=releases.state,
        revision=releases.first,
        environment=name,
        environment_type="development",
        clone_of="production-with-people",
        keep=True,
    )
    return await lifecycle.rehearse(options, Console(quiet=True), look), pages


async def test_preview_contains_no_personal_data(releases: Releases) -> None:
    source, name = "production-with-people", "feature-x"
    production: dict[str, Any] = {"revision": releases.first, "environment": source}
    assert_no_problems(await rehearse(releases.repository, releases.state, **production))
    with database(releases, source) as original:
        await populate(original)
        before = dump(original)
        assert [trace for trace in traces() if trace not in before] == []
        assert "ada.lovelace" in await statistics(original)
    report, pages = await preview_of(releases, name)
    assert_no_problems(report)
    with database(releases, name) as copy:
        found = dump(copy) + await statistics(copy)
    with database(releases, source) as original:
        assert dump(original) == before
    assert [trace for trace in traces() if trace in found] == []
    logs = releases.state / "environments" / name / "logs"
    written = "\n".join(log.read_text(errors="replace") for log in logs.glob("*.log"))
    assert [trace for trace in traces() if trace in written] == []
    # The worker was running from the start, and has waited.
    assert "data not sanitized" in log_of(releases, name, "app-worker")
    assert "slow job" not in written
    assert await query(releases, name, LEFT) == []
    assert len(await query(releases, source, LEFT)) == 2
    # The deploy hook anonymized the data, and post_deploy had nothing to do.
    assert written.count("Sanitized feature-x-rehears") == 1
    assert written.count("feature-x-rehears was sanitized") == 1

    users = await query(releases, name, "SELECT id, username, email FROM users ORDER BY id")
    assert [tuple(user) for user in users] == [
        (number, f"user-{number}", f"user-{number}@example.invalid")
        for number in range(1, len(PEOPLE) + 1)
    ]
    assert {path: page.status_code for path, page in pages.items()} == {
        "/": 200,
        "/register/": 200,
        "/nowhere/": 404,
        "/users/": 303,
        "/readyz": 200,
        "login": 200,  # rejected, with the form again
    }
    for path in ("/", "/register/", "/nowhere/", "login"):
        assert "Preview of <strong>feature-x</strong>" in pages[path].text, path
        assert "no email is sent" in pages[path].text, path
