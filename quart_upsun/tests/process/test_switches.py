"""Maintenance and read-only mode on two servers under load: no response that nobody meant."""

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx

from quart_upsun.switches.watcher import POLL_SECONDS
from quart_upsun.testing.servers import Server, eventually
from quart_upsun.tests.process.application import serving

CLIENTS = 4  # per server
FOLLOW_SECONDS = POLL_SECONDS + 3  # on a busy machine

SWITCH = """
import sys
from quart_upsun.database.url import parse_database_url
from quart_upsun.commands.switches import switch_group
switch_group(parse_database_url(sys.argv[1]), sys.argv[2])(sys.argv[3:])
"""


async def switch(url: str, name: str, *arguments: str) -> None:
    """Run the command in a process of its own, as on the command line of an instance."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SWITCH, url, name, *arguments),
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


class Load:
    """Clients that read and write all the time. A new phase begins with an empty count."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, int]] = Counter()
        self.unexplained: list[str] = []
        self.messages: set[str] = {""}

    async def run(self, server: Server) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            while True:
                for method, path in (
                    ("GET", "/rows/"),
                    ("GET", "/api/v1/rows"),
                    ("POST", "/rows/"),
                    ("GET", "/livez"),
                    ("GET", "/readyz"),
                ):
                    response = await client.request(method, path)
                    self.found[f"{method} {path}", response.status_code] += 1
                    if response.status_code == 503 and not any(
                        message and message in response.text for message in self.messages
                    ):
                        self.unexplained.append(f"{method} {path}: {response.text[:300]}")

    async def wait_for(self, condition: Callable[[set[tuple[str, int]]], bool]) -> float:
        """Wait until all responses of 20 requests of each kind meet a condition."""
        begun = time.monotonic()
        while True:
            self.found.clear()
            await eventually(
                lambda: min(self.counts().values(), default=0) >= 20 and len(self.counts()) == 5,
                "enough requests",
            )
            if condition(set(self.found)):
                return time.monotonic() - begun
            assert time.monotonic() - begun < FOLLOW_SECONDS + 10, self.found

    def counts(self) -> Counter[str]:
        kinds: Counter[str] = Counter()
        for (kind, _), count in self.found.items():
            kinds[kind] += count
        return kinds


@asynccontextmanager
async def loaded(*servers: Server) -> AsyncIterator[Load]:
    load = Load()
    tasks = [asyncio.create_task(load.run(server)) for server in servers for _ in range(CLIENTS)]
    try:
        yield load
        for task in tasks:
            assert not task.done() or task.cancelled(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def only(pages: int, writes: int) -> Callable[[set[tuple[str, int]]], bool]:
    """Return whether all responses have these statuses; health checks always have 200."""
    expected = {
        ("GET /rows/", pages),
        ("GET /api/v1/rows", pages),
        ("POST /rows/", writes),
        ("GET /livez", 200),
        ("GET /readyz", 200),
    }
    return lambda found: found == expected


async def test_two_servers_follow_under_load(database_url: str) -> None:
    async with (
        serving(2, DATABASE_URL=database_url) as first,
        serving(1, DATABASE_URL=database_url) as second,
        loaded(first, second) as load,
    ):
        await load.wait_for(only(200, 303))
        load.messages = {"Back at noon."}
        await switch(database_url, "maintenance", "on", "--message", "Back at noon.")
        await load.wait_for(only(503, 503))
        await switch(database_url, "maintenance", "off")
        await load.wait_for(only(200, 303))
        load.messages = {"No changes today."}
        await switch(database_url, "read-only", "on", "--message", "No changes today.")
        await load.wait_for(only(200, 503))
        # A process that starts meanwhile knows at its first request.
        async with serving(1, DATABASE_URL=database_url) as third:
            async with httpx.AsyncClient(base_url=third.url) as client:
                refused = await client.post("/rows/")
            assert refused.status_code == 503
            assert "No changes today." in refused.text
            await third.stop_cleanly()
        await switch(database_url, "read-only", "off")
        await load.wait_for(only(200, 303))
        assert load.unexplained == []
        assert first.problems() == second.problems() == []
