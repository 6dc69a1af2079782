"""A steady load, in a process of its own: `python -m rehearsal.load`.

Reads one line of JSON: the address, how many requests a second, and the visits. Finds out how many
the server can answer here, and comes at the rate that was asked for or at `SHARE` of that, whatever
is less. Goes on until its standard input ends, waits for what is under way, and writes the result
as one line of JSON.

Visits begin when they are due, however long earlier ones take: a server that hesitates meets all
those who come meanwhile, as it would in life.
"""

import asyncio
import itertools
import json
import os
import random
import secrets
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any

import aiohttp

from rehearsal.project import Request, Visit

ANSWER_SECONDS = 60
WARM_UP = 50  # requests, before the load counts as steady
WARM_UP_SECONDS = 5  # where so many requests take too long
STEADY_SECONDS = 30
# What the server can do is tried with so many visitors who come again as soon as they are served.
EAGER = 8
EAGER_SECONDS = 1.0
# A switch starts two releases beside the one that serves, and on the platform each has processors
# of its own. Here they share a few with the visitors: who asks for more measures the machine.
SHARE = 1 / 2
# Visitors come from many addresses, as in life: an application may limit what one client does.
# Only on Linux does a machine have all of 127.0.0.0/8.
SOURCES = [f"127.0.1.{n}" for n in range(1, 101)] if sys.platform == "linux" else ["127.0.0.1"]


@dataclass
class Kind:
    """All requests of one method and path."""

    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        return {
            "answered": self.answered,
            "failed": self.failures.total(),
            "failures": dict(self.failures),
            "slowest": max(self.seconds, default=0.0),
        }


class Load:
    """Visitors who come at a steady rate."""

    def __init__(
        self, address: str, rate: float, visits: list[Visit], headers: Mapping[str, str]
    ) -> None:
        self.visits = visits
        self.kinds: dict[str, Kind] = {}
        self.answered = 0
        self.writes: list[tuple[str, str]] = []
        """SQL, and what its row is about, of each acknowledged write."""
        shares = [visit.share for visit in visits]
        requests = sum(v.share * len(v.requests) for v in visits) / sum(shares)
        self.requests_per_visit = requests
        self.asked = rate
        self.shares = shares
        self.warm_up = float("inf")
        self.steady = asyncio.Event()
        """Set once so many were answered that the load is what it will be."""
        self.headers = dict(headers)
        self.address = address

    async def run(self, stop: asyncio.Event) -> dict[str, Any]:
        """Visit until told to stop, and return the numbers."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            clients = itertools.cycle(
                [await stack.enter_async_context(self.client(source)) for source in SOURCES]
            )
            group = await stack.enter_async_context(asyncio.TaskGroup())
            capacity = await self.measure_capacity(clients)
            rate = min(self.asked, capacity * SHARE) or self.asked
            pause = self.requests_per_visit / rate
            self.warm_up = min(WARM_UP, rate * WARM_UP_SECONDS)
            # What was written must stay; all else is told of the load itself.
            self.kinds.clear()
            self.answered = 0
            due = begun = loop.time()
            while not stop.is_set():
                # All that are due: this loop may itself have been late.
                while due <= loop.time():
                    group.create_task(self.visit(self.next_visit(), next(clients)))
                    due += pause
                with suppress(TimeoutError):
                    async with asyncio.timeout(due - loop.time()):
                        await stop.wait()
            seconds = loop.time() - begun
        times = [value for kind in self.kinds.values() for value in kind.seconds]
        answered = self.answered
        failed = sum(kind.failures.total() for kind in self.kinds.values())
        return {
            "requests": answered + failed,
            "answered": answered,
            "failed": failed,
            "seconds": seconds,
            "rate": (answered + failed) / seconds if seconds else 0.0,
            "asked": self.asked,
            "capacity": capacity,
            "slowest": max(times, default=0.0),
            "median": statistics.median(times) if times else 0.0,
            "kinds": {name: kind.numbers() for name, kind in sorted(self.kinds.items())},
            "acknowledged": self.writes,
        }

    async def measure_capacity(self, clients: Iterator[aiohttp.ClientSession]) -> float:
        """Return how many requests a second the server can answer here, with a cold start left out.

        0 if it does not answer as it must.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + 2 * EAGER_SECONDS

        async def visit_repeatedly() -> None:
            while loop.time() < end:
                await self.visit(self.next_visit(), next(clients))

        async with asyncio.TaskGroup() as group:
            for _ in range(EAGER):
                group.create_task(visit_repeatedly())
            await asyncio.sleep(EAGER_SECONDS)
            answered, begun = self.answered, loop.time()
            # Not until the last of them is served: one may take very long.
            await asyncio.sleep(end - begun)
            return (self.answered - answered) / (loop.time() - begun)

    def next_visit(self) -> Visit:
        (visit,) = random.choices(self.visits, self.shares)  # noqa: S311
        return visit

    def client(self, source: str) -> aiohttp.ClientSession:
        """Return the client of those who come from the address `source`."""
        return aiohttp.ClientSession(
            self.address,
            # All who come while others wait, come on a connection of their own.
            connector=aiohttp.TCPConnector(limit=0, local_addr=(source, 0)),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(ANSWER_SECONDS),
        )

    async def visit(self, visit: Visit, client: aiohttp.ClientSession) -> None:
        """Send a visit's requests, until one is not answered as it must be."""
        word = secrets.token_hex(6)
        cookies: dict[str, str] = {}
        for request in visit.requests:
            if not await self.ask(client, request, word, cookies):
                return

    async def ask(
        self,
        client: aiohttp.ClientSession,
        request: Request,
        word: str,
        cookies: dict[str, str],
    ) -> bool:
        """Send one request, and note how it went."""
        loop = asyncio.get_running_loop()
        kind = self.kinds.setdefault(f"{request.method} {request.path.partition('?')[0]}", Kind())
        headers = dict(self.headers)
        if cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        form = {name: value.replace("{n}", word) for name, value in request.form.items()}
        begun = loop.time()
        try:
            async with client.request(
                request.method,
                request.path.replace("{n}", word),
                data=form or None,
                headers=headers,
                allow_redirects=False,
            ) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            kind.failures[type(error).__name__] += 1
            return False
        finally:
            kind.seconds.append(loop.time() - begun)
        # By hand, because they may be marked as for https, which is not spoken here.
        for line in answer.headers.getall("Set-Cookie", []):
            with suppress(CookieError):
                for name, morsel in SimpleCookie(line).items():
                    cookies[name] = morsel.value
        if answer.status != request.status:
            kind.failures[str(answer.status)] += 1
            return False
        kind.answered += 1
        self.answered += 1
        if self.answered >= self.warm_up:
            self.steady.set()
        if request.row:
            self.writes.append((request.row.replace("{n}", word), f"{request.path} {word}"))
        return True


class Generator:
    """The load as its starter sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.result: dict[str, Any] | None = None

    async def stop(self) -> dict[str, Any]:
        """Let the last visitors finish; return the numbers."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        output, _ = await self._process.communicate()
        self.result = json.loads(output)
        return self.result


@asynccontextmanager
async def steady(
    address: str, rate: float, visits: list[Visit], log: Path
) -> AsyncIterator[Generator]:
    """Run a load while the block runs; yield it once it is steady.

    Raises:
        RuntimeError: it did not get going.
    """
    description = {
        "address": address,
        "rate": rate,
        "visits": [visit.model_dump() for visit in visits],
    }
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rehearsal.load"),
            cwd=Path(__file__).parent.parent,
            env=dict(os.environ),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            limit=64 * 1024 * 1024,
        )
    generator = Generator(process)
    try:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("pipes were asked for")
        process.stdin.write(json.dumps(description).encode() + b"\n")
        await process.stdin.drain()
        async with asyncio.timeout(STEADY_SECONDS):
            if not await process.stdout.readline():
                raise RuntimeError(f"the load does not start; see {log}")
        yield generator
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def main() -> None:
    """Read what to do, do it until the input ends, and write the result."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    description = json.loads(await reader.readline())
    load = Load(
        description["address"],
        description["rate"],
        [Visit.model_validate(visit) for visit in description["visits"]],
        {"User-Agent": "rehearsal"},
    )
    stop = asyncio.Event()

    async def stop_at_end() -> None:
        await reader.read()
        stop.set()

    async def say_when_steady() -> None:
        await load.steady.wait()
        print("steady", flush=True)

    waiting = [asyncio.create_task(stop_at_end()), asyncio.create_task(say_when_steady())]
    result = await load.run(stop)
    for task in waiting:
        task.cancel()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
