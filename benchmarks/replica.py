"""Measure what a read replica takes off the primary, and that nobody misses their own changes.

  python -m benchmarks.replica [--seconds S] [--tries N] [--requests N]

Starts a primary and a standby with streaming replication in a temporary directory.

1. Load: clients of the API and the pages, of whose requests 95 % read (lists of links, searches,
   single links, members) and 5 % save a link, first without and then with the replica. Reports the
   CPU time of the primary's processes per request, its replication included.
2. Own changes: with 2 s of lag (`recovery_min_apply_delay`), clients change a value and read it
   again after random pauses of up to 4 s. Each read is a try; its value must not be older than
   the client's last change. Of the tries, some are requests to two server processes, by programs
   with an access token and by browsers with a cookie; the rest call the database directly.

Prints the results and, as the last line, JSON.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
from sqlalchemy import text

from app.user import passwords
from app.user.tokens import access_tokens as tokens
from benchmarks import harness
from benchmarks.api import LINKS
from benchmarks.filling import WORDS, fill
from benchmarks.servers import OUR_COMMAND, serving
from embedded_postgres.replication import Cluster, replication, wait_for_replay
from quart_upsun.database import Database
from quart_upsun.database.log_position import SELECT_POSITION, Reads, current_reads
from quart_upsun.database.url import parse_database_url

USERS, CLIENTS = 48, 8  # searches are limited per user
LAG_SECONDS = 2
PASSWORD = "correct horse battery"
TARGET_REDUCTION = 0.6
INSERT_TOKEN = """
    INSERT INTO access_tokens (user_id, name, digest, scopes, expires_at)
    VALUES ($1, 'benchmark', $2, ARRAY['links:read', 'links:write'], now() + interval '1 day')
"""


@dataclass
class Client:
    """A user with an access token and the cookies of a browser."""

    name: str
    token: str
    link_id: int
    browser: httpx.AsyncClient

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.token}


class PrimaryLoad:
    """The CPU time of a server's processes, those that have ended included."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._begun = self._seconds()

    def seconds(self) -> float:
        return self._seconds() - self._begun

    def _seconds(self) -> float:
        postmaster, *others = self._cluster.processes()
        total = sum(postmaster.cpu_times()[:4])  # children that have ended included
        for process in others:
            try:
                total += sum(process.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
        return total


async def prepare(primary: Cluster) -> list[tuple[str, str, int]]:
    """Fill the database; return the name, an access token and a link of each user."""
    users = await fill(primary.url(), {f"user{number}": LINKS for number in range(USERS)})
    password_hash = await passwords.hash_password(PASSWORD)
    connection = await asyncpg.connect(primary.url())
    found = []
    try:
        await connection.execute("UPDATE users SET password_hash = $1", password_hash)
        for name, user_id in users.items():
            token = tokens.generate_token()
            await connection.execute(INSERT_TOKEN, user_id, tokens.hash_token(token))
            newest = "SELECT max(id) FROM links WHERE user_id = $1"
            found.append((name, token, await connection.fetchval(newest, user_id)))
    finally:
        await connection.close()
    return found


@contextmanager
def server_of(
    primary: Cluster, standby: Cluster | None, directory: Path, **variables: str
) -> Iterator[str]:
    """Run this application; yield its address."""
    if standby is not None:
        variables["DATABASE_REPLICA_URL"] = standby.url()
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), *OUR_COMMAND]
    with serving("server", command, primary.url(), directory) as server:
        time.sleep(3)  # until the replica is used
        yield f"http://127.0.0.1:{server.port}"


async def log_in(primary: Cluster, address: str, known: list[tuple[str, str, int]]) -> list[Client]:
    """Log in as each user, more often than one address may."""
    connection = await asyncpg.connect(primary.url())
    clients = []
    for name, token, link_id in known:
        await connection.execute("DELETE FROM rate_limits")
        browser = httpx.AsyncClient(base_url=address, timeout=30, headers={"Origin": address})
        response = await browser.post("/login/", data={"username": name, "password": PASSWORD})
        if response.status_code != 303:
            raise SystemExit(f"The login of {name} failed with {response.status_code}.")
        clients.append(Client(name, token, link_id, browser))
    await connection.close()
    return clients


async def act(client: Client, generator: random.Random, number: int) -> None:
    """Send one request of the load."""
    api = generator.random() < 0.5
    headers = client.headers if api else None
    kind = generator.random()
    if kind < 0.05:
        link = {"url": f"https://new.example/{client.name}/{number}"}
        response = await client.browser.post("/api/v1/links", json=link, headers=client.headers)
    elif kind < 0.4:
        before = client.link_id - generator.randrange(LINKS - 100)
        path = f"/api/v1/links?before={before}" if api else f"/links/?before={before}"
        response = await client.browser.get(path, headers=headers)
    elif kind < 0.55:
        query = f"{generator.choice(WORDS)}+{generator.choice(WORDS)}"
        path = f"/api/v1/links?q={query}" if api else f"/links/?q={query}"
        response = await client.browser.get(path, headers=headers)
    elif kind < 0.7:
        link_id = client.link_id - generator.randrange(LINKS)
        path = f"/api/v1/links/{link_id}" if api else f"/links/{link_id}/"
        response = await client.browser.get(path, headers=headers)
    elif kind < 0.8:
        path = "/api/v1/tags" if api else "/users/"
        response = await client.browser.get(path, headers=headers)
    else:
        tag = f"tag{generator.randrange(50)}"
        path = f"/api/v1/links?tag={tag}" if api else f"/links/?tag={tag}"
        response = await client.browser.get(path, headers=headers)
    if response.status_code not in {200, 201}:
        raise SystemExit(f"{response.request.url} responded with {response.status_code}.")


async def measure_load(primary: Cluster, clients: list[Client], seconds: float) -> dict[str, float]:
    generator = random.Random(1)  # noqa: S311
    count = 0

    async def run(until: float) -> None:
        nonlocal count
        while time.monotonic() < until:
            count += 1
            await act(generator.choice(clients), generator, time.monotonic_ns())

    for duration in (seconds / 4, seconds):  # the first is a warm-up
        count, load, begun = 0, PrimaryLoad(primary), time.monotonic()
        await asyncio.gather(*(run(begun + duration) for _ in range(CLIENTS)))
        took = time.monotonic() - begun
    return {
        "requests": count,
        "requests_per_second": round(count / took),
        "primary_ms_per_request": round(1000 * load.seconds() / count, 3),
    }


async def try_requests(clients: list[Client], tries: int) -> dict[str, int]:
    """Change links and read them again over HTTP; return the number of tries and stale reads."""
    counts = {"tries": 0, "stale": 0}

    async def by_token(client: Client, generator: random.Random) -> None:
        path, value = f"/api/v1/links/{client.link_id}", 0
        while counts["tries"] < tries:
            value += 1
            change = {"title": f"value {value} of a program"}
            (
                await client.browser.patch(path, json=change, headers=client.headers)
            ).raise_for_status()
            for _ in range(8):
                await asyncio.sleep(generator.choice([0, 0, generator.uniform(0, 4)]))
                found = await client.browser.get(path, headers=client.headers)
                counts["tries"] += 1
                counts["stale"] += found.json()["title"] != change["title"]

    async def by_cookie(client: Client, generator: random.Random) -> None:
        path, value = f"/links/{client.link_id - 1}/", 0
        while counts["tries"] < tries:
            value += 1
            title = f"value {value} of a browser"
            changed = await client.browser.post(path, data={"title": title})
            if changed.status_code != 303:
                raise SystemExit(f"POST {path} responded with {changed.status_code}.")
            for _ in range(8):
                await asyncio.sleep(generator.choice([0, 0, generator.uniform(0, 4)]))
                found = await client.browser.get(path)
                counts["tries"] += 1
                counts["stale"] += title not in found.text

    await asyncio.gather(
        *(
            acting(client, random.Random(number))  # noqa: S311
            for number, client in enumerate(clients)
            for acting in (by_token, by_cookie)
        )
    )
    return counts


async def try_reads(primary: Cluster, standby: Cluster, tries: int) -> dict[str, int]:
    """The same with sessions and connections of the database, without requests."""
    database = Database(
        parse_database_url(primary.url()),
        pool_size=8,
        replica_url=parse_database_url(standby.url()),
    )
    replica = database.replica
    if replica is None:
        raise RuntimeError("no replica")
    watching = asyncio.create_task(replica.watch())
    counts = {"tries": 0, "stale": 0}
    update = text("UPDATE links SET title = :title WHERE id = :id")
    select = "SELECT title FROM links WHERE id = {}"

    async def run(number: int) -> None:
        generator = random.Random(number)  # noqa: S311
        while counts["tries"] < tries:
            title = f"{number} {time.monotonic_ns()}"
            current_reads.set(None)
            async with database.write() as session:
                await session.execute(update, {"title": title, "id": number})
            async with database.direct(exact=True) as connection:
                position = await connection.fetchval(SELECT_POSITION)
            for _ in range(10):
                await asyncio.sleep(generator.choice([0, 0, generator.uniform(0, 4)]))
                current_reads.set(Reads(position))
                if generator.random() < 0.5:
                    async with database.read() as session:
                        found = await session.scalar(text(select.format(number)))
                else:
                    async with database.direct() as connection:
                        found = await connection.fetchval(select.format(number))
                counts["tries"] += 1
                counts["stale"] += found != title

    await asyncio.sleep(LAG_SECONDS + 2)
    try:
        await asyncio.gather(*(run(number) for number in range(1, 1001)))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await database.close()
    return {**counts, "on_replica": replica.served_count}


async def run(
    primary: Cluster, standby: Cluster, directory: Path, options: argparse.Namespace
) -> dict[str, Any]:
    known = await prepare(primary)
    await wait_for_replay(primary, standby)
    result: dict[str, Any] = {}
    for name, replica in (("without", None), ("with", standby)):
        with server_of(primary, replica, directory) as address:
            clients = await log_in(primary, address, known)
            result[name] = await measure_load(primary, clients, options.seconds)
            print(f"{name} the replica: {result[name]}", flush=True)
            for client in clients:
                await client.browser.aclose()
    costs = [result[name]["primary_ms_per_request"] for name in ("without", "with")]
    result["reduction"] = round(1 - costs[1] / costs[0], 3)
    await standby.reconfigure(recovery_min_apply_delay=f"{LAG_SECONDS}s")
    with server_of(primary, standby, directory, WEB_CONCURRENCY="2") as address:
        clients = await log_in(primary, address, known)
        result["requests"] = await try_requests(clients, options.requests)
        print(f"own changes, requests: {result['requests']}", flush=True)
        for client in clients:
            await client.browser.aclose()
    result["reads"] = await try_reads(primary, standby, options.tries - result["requests"]["tries"])
    print(f"own changes, reads: {result['reads']}", flush=True)
    return result


def missed_targets(result: dict[str, Any]) -> list[str]:
    """Return a message for each target that was missed."""
    missed = []
    if result["reduction"] < TARGET_REDUCTION:
        missed.append(f"{TARGET_REDUCTION:.0%} less for the primary, {result['reduction']:.0%}")
    if stale := result["requests"]["stale"] + result["reads"]["stale"]:
        missed.append(f"no stale read, counted {stale}")
    return missed


def main() -> int:
    options = harness.parser(
        "replica",
        __doc__,
        seconds=(20.0, "duration of each load"),
        tries=(100_000, "number of reads of own changes"),
        requests=(4_000, "of these, how many over HTTP"),
    ).parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="replica-")))
        primary, standby = stack.enter_context(replication(directory / "servers"))
        harness.migrate(primary.url())
        result = asyncio.run(run(primary, standby, directory, options))
    return harness.finish(result, missed_targets(result))


if __name__ == "__main__":
    sys.exit(main())
