"""Measure what one server process does: requests per second of each kind, memory, connections.

  python -m benchmarks.process [--rounds N] [--seconds S]

Starts an embedded PostgreSQL in a temporary directory and the production server with one process.
The load generator (benchmarks/load.py) uses 32 concurrent connections. The kinds of requests:

  home      the home page for an anonymous visitor: no query
  members   the members page for a user: two queries
  list      a list of 20 links for a user: four queries
  api       GET /api/v1/links?limit=20 with an access token: two queries
  login     POST /login/ with a password: argon2 takes most of the time
  write     POST /api/v1/links: saves a link, publishes an event and enqueues a job

Each login and each write is that of one of 40 users; logins use only four connections. The server
counts each request as that of a new client, so that no rate limit is reached, but the limits cost
what they do in production.

Then servers with connection pools of different sizes answer the requests that query most: list and
write.

Prints the results and, as the last line, JSON. For each kind it contains requests per second, the
latency (ms), CPU time of the process per request (`cpu_ms`) and of PostgreSQL (`database_ms`), and
errors and timeouts. `idle_mb` and `loaded_mb` are the memory of the process (proportional set
size) before and after the load, and `connections` are its database connections during the load.
`pools` has the requests per second and the 99th percentile of the latency of `list` and `write` by
the size of the pool.
"""

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import asyncpg

from app import create_app
from app.settings import load_settings
from app.user import passwords
from app.user.tokens import access_tokens as tokens
from benchmarks import api, harness, pages
from benchmarks.load import LoadOptions
from benchmarks.servers import OURS, Series, Server, serving
from quart_upsun.security.limits import Limit
from quart_upsun.server import serve as production_server

SERVE = "--serve"
COMMAND = [sys.executable, "-m", "benchmarks.process", SERVE]
KINDS = ("home", "members", "list", "api", "login", "write")
POOLS = (1, 2, 4, 8)
POOL_KINDS = ("list", "write")
URLS = 5000  # distinct links to save in a round
INSERT_TOKENS = """
    INSERT INTO access_tokens (user_id, name, digest, scopes, expires_at)
    SELECT user_id, 'benchmark', digest, ARRAY['links:read', 'links:write'],
        now() + interval '1 day'
    FROM unnest($1::bigint[], $2::bytea[]) AS made (user_id, digest)
"""


class Member(NamedTuple):
    """A user who logs in and saves links."""

    name: str
    token: str


class Kind(NamedTuple):
    """A kind of request, and what each round has used of PostgreSQL."""

    series: Series
    database_ms: list[float]
    """CPU time of PostgreSQL per request in each round, in milliseconds."""

    async def measure(self, database: harness.DatabaseServer, *, counts: bool) -> None:
        """Measure one round; see `Series.measure`."""
        used = database.cpu_seconds()
        await self.series.measure(counts=counts)
        if counts:
            measured = self.series.rounds[-1]
            requests = measured.rate * (measured.seconds + self.series.options.warm_up)
            self.database_ms.append(1000 * (database.cpu_seconds() - used) / requests)

    def result(self) -> dict[str, float]:
        return {
            **self.series.result(),
            "database_ms": round(statistics.median(self.database_ms), 3),
        }


def lift_limits() -> None:
    """Count each request as that of a new client."""
    numbers = count()
    count_request = Limit.count_request

    async def counted(self: Limit, subject: str) -> int:
        return await count_request(self, f"{subject} {next(numbers)}")

    Limit.count_request = counted  # type: ignore[method-assign]


async def prepare_members(url: str) -> list[Member]:
    """Give each member a password and an access token."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "UPDATE users SET password_hash = $1",
            await passwords.hash_password(pages.LOGIN["password"]),
        )
        users = await connection.fetch("SELECT id, username FROM users ORDER BY id")
        members = [Member(user["username"], tokens.generate_token()) for user in users]
        await connection.execute(
            INSERT_TOKENS,
            [user["id"] for user in users],
            [tokens.hash_token(member.token) for member in members],
        )
    finally:
        await connection.close()
    return members


def load_options(
    server: Server, members: Sequence[Member], cookie: str, seconds: float
) -> dict[str, LoadOptions]:
    """Return the load of each kind."""
    login: list[tuple[dict[str, str], str]] = [
        ({}, urlencode({"username": each.name, "password": pages.LOGIN["password"]}))
        for each in members
    ]
    form = {
        "Content-Type": "application/x-www-form-urlencoded",
        "Origin": f"http://127.0.0.1:{server.port}",
    }
    gets = {
        "home": ("/", {}),
        "members": ("/users/", {"Cookie": cookie}),
        "list": ("/links/", {"Cookie": cookie}),
        "api": (api.PATH, {"X-API-Key": members[0].token}),
    }
    return {
        **{
            kind: LoadOptions(
                server.port,
                path,
                headers,
                seconds=seconds,
                body=pages.fetch(server, path, headers),
            )
            for kind, (path, headers) in gets.items()
        },
        "login": LoadOptions(
            server.port,
            "/login/",
            form,
            connections=4,  # more would only wait for the two threads that hash
            seconds=seconds,
            body=None,
            status=303,
            method="POST",
            variants=login,
        ),
        "write": LoadOptions(
            server.port,
            "/api/v1/links",
            {"Content-Type": "application/json"},
            seconds=seconds,
            body=None,
            status=201,
            method="POST",
            variants=writes(members, "none"),
        ),
    }


def writes(members: Sequence[Member], prefix: str) -> list[tuple[dict[str, str], str]]:
    """Return the requests of a round, each of which saves another link."""
    writers = members[1:]  # not the user whose list is measured
    return [
        (
            {"X-API-Key": writers[each % len(writers)].token},
            json.dumps({"url": f"https://example.com/{prefix}/{each}", "title": f"Page {each}"}),
        )
        for each in range(URLS)
    ]


@asynccontextmanager
async def counted_connections(url: str) -> AsyncIterator[list[int]]:
    """Count the connections of the server's pool five times per second; yield the counts."""
    counts: list[int] = []
    connection = await asyncpg.connect(url)

    async def watch() -> None:
        while True:
            counts.append(
                await connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'quart-upsun'"
                )
            )
            await asyncio.sleep(0.2)

    watching = asyncio.create_task(watch())
    try:
        yield counts
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await connection.close()


async def run(url: str, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    await pages.prepare(url)
    members = await prepare_members(url)
    database = harness.DatabaseServer(directory)
    with serving(OURS, COMMAND, url, directory) as server:
        idle = server.megabytes()
        loads = load_options(server, members, pages.log_in(server), options.seconds)
        kinds = {name: Kind(Series(server, load), []) for name, load in loads.items()}
        async with counted_connections(url) as connections:
            for number in range(options.rounds + 1):
                print(f"round {number}" if number else "warm-up", flush=True)
                kinds["write"].series.options = replace(
                    kinds["write"].series.options, variants=writes(members, str(number))
                )
                for kind in kinds.values():
                    await kind.measure(database, counts=number > 0)
        result = {
            "kinds": {name: kind.result() for name, kind in kinds.items()},
            "idle_mb": idle,
            "loaded_mb": server.megabytes(),
            "connections": max(connections),
        }
    return result | {"pools": await measure_pools(url, directory, members, options)}


async def measure_pools(
    url: str, directory: Path, members: Sequence[Member], options: argparse.Namespace
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure with pools of different sizes, in turn; return the results by size and kind."""
    measured: dict[int, dict[str, Series]] = {}
    with ExitStack() as stack:
        for size in POOLS:
            server = stack.enter_context(
                serving(f"pool of {size}", COMMAND, url, directory, pool_size=size)
            )
            loads = load_options(server, members, pages.log_in(server), options.seconds)
            measured[size] = {kind: Series(server, loads[kind]) for kind in POOL_KINDS}
        for number in range(options.rounds + 1):
            print(f"pools, round {number}" if number else "pools, warm-up", flush=True)
            for size, kinds in measured.items():
                saved = writes(members, f"pool{size}-{number}")
                kinds["write"].options = replace(kinds["write"].options, variants=saved)
                for series in kinds.values():
                    await series.measure(counts=number > 0)
        results = {
            size: {k: each.result() for k, each in m.items()} for size, m in measured.items()
        }
    names = ("requests_per_second", "p99_ms", "errors")
    return {
        str(size): {kind: {name: each[name] for name in names} for kind, each in kinds.items()}
        for size, kinds in results.items()
    }


def missed_targets(result: dict[str, Any]) -> list[str]:
    """Return a message for each kind with errors."""
    return [
        f"{name}: no errors, counted {each['errors']}"
        for name, each in (
            *result["kinds"].items(),
            *(
                (f"{kind} with a pool of {size}", each)
                for size, kinds in result["pools"].items()
                for kind, each in kinds.items()
            ),
        )
        if each["errors"]
    ]


def main() -> int:
    if SERVE in sys.argv:
        lift_limits()
        return production_server.main(create_app, load_settings)
    options = harness.parser(
        "process",
        __doc__,
        rounds=(3, "number of rounds"),
        seconds=(3.0, "duration of each measurement"),
    ).parse_args()
    with harness.temporary_database("process") as (url, directory):
        result = asyncio.run(run(url, directory, options))
    for name, measured in result["kinds"].items():
        print(f"{name}: {measured}")
    return harness.finish(result, missed_targets(result))


if __name__ == "__main__":
    sys.exit(main())
