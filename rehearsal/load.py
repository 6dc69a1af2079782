"""A load generator in its own process: `python -m rehearsal.load`.

It reads one line of JSON: the address, the rate in requests per second, and the visits. It measures
how many requests per second the server can answer on this machine, and then sends requests at the
given rate or at `SHARE` of the measured one, whichever is lower. When its standard input ends, it
waits for the requests in flight and prints the result as one line of JSON.

Visits start on schedule, however long earlier ones take: a slow server receives all requests that
arrive in the meantime, as in production.
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
from typing import Any, NamedTuple

import aiohttp

from rehearsal.project import Request, Visit

ANSWER_SECONDS = 60
WARM_UP_REQUESTS = 50  # requests until the load counts as steady
WARM_UP_SECONDS = 5  # an upper limit for the duration of the warm-up
STEADY_SECONDS = 30
SLOT_SECONDS = 0.25  # of the timeline
# The capacity is measured with this many clients that send their next request at once.
CAPACITY_CLIENTS = 8
CAPACITY_SECONDS = 1.0
# During a switch up to two more releases start. On the platform each has its own CPU; here they
# share this machine's with the load generator, and a higher load would only measure the machine.
SHARE = 1 / 2
# Many client addresses, because an application may have rate limits per client.
# Only Linux accepts all addresses in 127.0.0.0/8.
SOURCES = [f"127.0.1.{n}" for n in range(1, 101)] if sys.platform == "linux" else ["127.0.0.1"]


@dataclass
class Kind:
    """The results of one method and path."""

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


class Failure(NamedTuple):
    """A failed request."""

    begun: float
    """On the clock of the event loop, which all processes share."""
    ended: float
    kind: str
    """Its method and path."""
    why: str
    """The status of the response, or the name of the exception."""


class Load:
    """Send visits at a steady rate."""

    def __init__(
        self, address: str, rate: float, visits: list[Visit], headers: Mapping[str, str]
    ) -> None:
        self.visits = visits
        self.kinds: dict[str, Kind] = {}
        self.answered = 0
        self.timeline: dict[int, list[float]] = {}
        """The numbers of answered and failed requests and the slowest one, by time."""
        self.failures: list[Failure] = []
        self.writes: list[tuple[str, str]] = []
        """The SQL query and a description of each acknowledged write."""
        shares = [visit.share for visit in visits]
        requests = sum(v.share * len(v.requests) for v in visits) / sum(shares)
        self.requests_per_visit = requests
        self.asked = rate
        self.shares = shares
        self.warm_up = float("inf")
        self.steady = asyncio.Event()
        """Set after the warm-up."""
        self.headers = dict(headers)
        self.address = address

    async def run(self, stop: asyncio.Event) -> dict[str, Any]:
        """Send visits until `stop` is set; return the results."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            clients = itertools.cycle(
                [await stack.enter_async_context(self.client(source)) for source in SOURCES]
            )
            group = await stack.enter_async_context(asyncio.TaskGroup())
            capacity = await self.measure_capacity(clients)
            rate = min(self.asked, capacity * SHARE) or self.asked
            pause = self.requests_per_visit / rate
            self.warm_up = min(WARM_UP_REQUESTS, rate * WARM_UP_SECONDS)
            # Exclude the capacity measurement from the results, except for its writes.
            self.kinds.clear()
            self.timeline.clear()
            self.failures.clear()
            self.answered = 0
            due = begun = loop.time()
            while not stop.is_set():
                # Start all visits that are due, because this loop may be late.
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
            "failures": self.failures,
            "timeline": [
                [slot * SLOT_SECONDS, *numbers] for slot, numbers in sorted(self.timeline.items())
            ],
        }

    async def measure_capacity(self, clients: Iterator[aiohttp.ClientSession]) -> float:
        """Return how many requests per second the server can answer, after a warm-up.

        The result is 0 if no request gets the expected response.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + 2 * CAPACITY_SECONDS

        async def visit_repeatedly() -> None:
            while loop.time() < end:
                await self.visit(self.next_visit(), next(clients))

        async with asyncio.TaskGroup() as group:
            for _ in range(CAPACITY_CLIENTS):
                group.create_task(visit_repeatedly())
            await asyncio.sleep(CAPACITY_SECONDS)
            answered, begun = self.answered, loop.time()
            # Do not wait for the last request, which may take very long.
            await asyncio.sleep(end - begun)
            return (self.answered - answered) / (loop.time() - begun)

    def next_visit(self) -> Visit:
        (visit,) = random.choices(self.visits, self.shares)  # noqa: S311
        return visit

    def client(self, source: str) -> aiohttp.ClientSession:
        """Return a client that sends requests from the address `source`."""
        return aiohttp.ClientSession(
            self.address,
            # Unlimited, so that no request waits for another one's connection.
            connector=aiohttp.TCPConnector(limit=0, local_addr=(source, 0)),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(ANSWER_SECONDS),
        )

    @staticmethod
    def word() -> str:
        """Return the random word of a visit."""
        return secrets.token_hex(6)

    async def visit(self, visit: Visit, client: aiohttp.ClientSession) -> None:
        """Send the requests of a visit, until one fails."""
        word = self.word()
        cookies: dict[str, str] = {}
        for request in visit.requests:
            if not await self.send(client, request, word, cookies):
                return

    async def send(
        self,
        client: aiohttp.ClientSession,
        request: Request,
        word: str,
        cookies: dict[str, str],
    ) -> bool:
        """Send one request and record the result; return whether it succeeded."""
        loop = asyncio.get_running_loop()
        name = f"{request.method} {request.path.partition('?')[0]}"
        kind = self.kinds.setdefault(name, Kind())
        headers = dict(self.headers)
        if cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        form = {name: value.replace("{n}", word) for name, value in request.form.items()}
        begun = loop.time()
        # By the time of the request, on the clock that all processes share. A request counts as
        # failed until it is answered.
        slot = self.timeline.setdefault(int(begun / SLOT_SECONDS), [0, 0, 0.0])
        slot[1] += 1

        def fail(why: str) -> None:
            kind.failures[why] += 1
            if self.kinds.get(name) is kind:  # not from before the results were cleared
                self.failures.append(Failure(begun, loop.time(), name, why))

        try:
            async with client.request(
                request.method,
                request.path.replace("{n}", word),
                data=form or None,
                headers=headers,
                allow_redirects=False,
            ) as response:
                await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            fail(type(error).__name__)
            return False
        finally:
            seconds = loop.time() - begun
            kind.seconds.append(seconds)
            slot[2] = max(slot[2], seconds)
        # Not with a cookie jar, which would not send Secure cookies over plain HTTP.
        for line in response.headers.getall("Set-Cookie", []):
            with suppress(CookieError):
                for cookie, morsel in SimpleCookie(line).items():
                    cookies[cookie] = morsel.value
        if response.status != request.status:
            fail(str(response.status))
            return False
        kind.answered += 1
        self.answered += 1
        slot[0] += 1
        slot[1] -= 1
        if self.answered >= self.warm_up:
            self.steady.set()
        if request.row:
            self.writes.append((request.row.replace("{n}", word), f"{request.path} {word}"))
        return True


class Generator:
    """A running load generator process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.result: dict[str, Any] | None = None

    async def stop(self) -> dict[str, Any]:
        """Wait for the requests in flight; return the results."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        output, _ = await self._process.communicate()
        self.result = json.loads(output)
        return self.result


@asynccontextmanager
async def steady(
    address: str, rate: float, visits: list[Visit], log: Path
) -> AsyncIterator[Generator]:
    """Generate load during the block, which starts after the warm-up.

    Raises:
        RuntimeError: the load generator did not start.
        TimeoutError: the warm-up took longer than `STEADY_SECONDS`.
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
            raise RuntimeError("the load generator has no pipes")
        process.stdin.write(json.dumps(description).encode() + b"\n")
        await process.stdin.drain()
        async with asyncio.timeout(STEADY_SECONDS):
            if not await process.stdout.readline():
                raise RuntimeError(f"the load generator did not start; see {log}")
        yield generator
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def main() -> None:
    """Read the description from stdin, generate load until stdin ends, and print the results."""
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

    async def report_steady() -> None:
        await load.steady.wait()
        print("steady", flush=True)

    waiting = [asyncio.create_task(stop_at_end()), asyncio.create_task(report_steady())]
    result = await load.run(stop)
    for task in waiting:
        task.cancel()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
