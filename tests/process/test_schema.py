"""A release starts before its migration: it waits, says so, and serves as soon as it is through."""

import asyncio
import os
import subprocess
import sys

import httpx
import pytest

from app.settings import ROOT
from tests.features.factories import Person
from tests.process.servers import Server, migrate, serving


async def log_in(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/login/", data={"username": "nobody", "password": "not right"})


@pytest.mark.parametrize("processes", [1, 2])
async def test_an_empty_database(processes: int, empty_database: str) -> None:
    async with (
        serving(processes, DATABASE_URL=empty_database) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        pids = server.pids()
        await refuses_what_needs_the_database(server, client)
        assert 1 <= len(server.events("schema behind")) <= processes

        await migrate(empty_database)
        await asyncio.sleep(0.3)  # for as long the gate may repeat what it has heard last
        ready = await asyncio.gather(*(client.get("/readyz") for _ in range(20)))
        assert {answer.status_code for answer in ready} == {200}, server.output
        # More than there are connections in all pools, so that each of them is used.
        pages = await asyncio.gather(*(log_in(client) for _ in range(20)))
        assert {page.status_code for page in pages} == {200}, server.output
        person = Person("newcomer")
        assert (await client.post("/register/", data=person.registration)).status_code == 303
        form = {"username": person.username, "password": person.password}
        assert (await client.post("/login/", data=form)).status_code == 303
        members = await asyncio.gather(*(client.get("/users/") for _ in range(20)))
        assert {page.status_code for page in members} == {200}, server.output

        assert server.pids() == pids
        await server.stops()


async def refuses_what_needs_the_database(server: Server, client: httpx.AsyncClient) -> None:
    assert (await client.get("/livez")).status_code == 200
    assert (await client.get("/")).status_code == 200
    readiness = await client.get("/readyz")
    assert readiness.status_code == 503
    reason = readiness.json()
    assert (reason["reason"], reason["database"]) == ("schema", None)
    assert reason["needed"] == head()
    for page in await asyncio.gather(*(log_in(client) for _ in range(10))):
        assert page.status_code == 503
        assert int(page.headers["Retry-After"]) > 0
        assert page.elapsed.total_seconds() < 1
        assert "not available" in page.text
    assert server.problems() == []


def head() -> str:
    """Return the newest revision, as Alembic names it."""
    result = subprocess.run(
        [sys.executable, "-m", "alembic", "heads"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()[0]
