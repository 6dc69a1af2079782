"""Schemathesis against the running server: no 5xx, and no undocumented responses."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url
from quart_upsun.testing.servers import Server, serving
from tests.features.factories import LOGIN_COOKIE, Person

EXAMPLES = "20"  # requests per phase and operation
# A request that matches the schema can still be rejected by rules that JSON Schema cannot express:
# an invalid URL, a reused idempotency key.
BEYOND_SCHEMA = "positive_data_acceptance"
# An idempotency key repeats the first answer, even when what it created was deleted meanwhile.
BEYOND_REPLAYS = "ensure_resource_availability"
ST = Path(sys.executable).with_name("st")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(parse_database_url(database_url), pool_size=2)
    yield database
    await database.close()


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[Server]:
    async with serving(1, "tests.features.api.resources", DATABASE_URL=database_url) as server:
        yield server
        assert server.problems() == []


@pytest.fixture
async def cookie(database: Database, server: Server) -> str:
    """The login cookie, which has all scopes."""
    person = await Person("ada").create(database)
    async with httpx.AsyncClient(base_url=server.url) as client:
        response = await client.post("/login/", data=person.login)
    assert response.status_code == 303
    return f"{LOGIN_COOKIE}={response.cookies[LOGIN_COOKIE]}"


async def test_responses_conform_to_the_openapi_document(
    server: Server, cookie: str, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(ST, "run", f"{server.url}/openapi.json", "--url", server.url),
        *("--header", f"Cookie: {cookie}", "--generation-with-security-parameters", "false"),
        *("--max-examples", EXAMPLES, "--generation-deterministic", "--no-color"),
        *("--exclude-checks", f"{BEYOND_SCHEMA},{BEYOND_REPLAYS}"),
        *("--continue-on-failure", "--warnings", "off", "--request-timeout", "20"),
        cwd=tmp_path,  # it writes files
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
