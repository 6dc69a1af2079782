"""Three instances of this application behind the router: what must work across them."""

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from http.cookies import SimpleCookie

import asyncpg
import httpx
import pytest

from rehearsal import lifecycle
from rehearsal.report import Console, Report
from rehearsal.scene import Options
from rehearsal.tests.sample import summary
from tests.deploy.releases import Releases, assert_no_problems, database, log_of

# All tests share the images.
pytestmark = [pytest.mark.xdist_group("builds"), pytest.mark.requires("bwrap", "nginx")]

ENVIRONMENT = "three"
SECONDS = 90  # more than a minute, for the schedule
JOBS = 200
LOGIN_ATTEMPTS = 10  # per account and client; see app/user/views.py
PASSWORD = "correct horse battery"
LOGS = ("app", "app-2", "app-3", "app-worker")

ENQUEUE = """
    INSERT INTO pgqueuer (priority, status, entrypoint, payload)
    SELECT 0, 'queued', 'rehearsed new', '{}' FROM generate_series(1, $1)
"""
LEFT = """
    SELECT count(*) FROM pgqueuer WHERE entrypoint = 'rehearsed new'
"""


@dataclass
class Visitor:
    """A visitor who sends each request to another instance, as the router may do."""

    instances: list[str]
    host: str
    address: str
    cookies: dict[str, str] = field(default_factory=dict)
    sent: int = 0

    async def send(self, method: str, path: str, **form: str) -> httpx.Response:
        """Send a request to the next instance."""
        self.sent += 1
        base = self.instances[self.sent % len(self.instances)]
        async with self.client(base) as client:
            response = await client.request(method, path, data=form or None)
        for line in response.headers.get_list("Set-Cookie"):
            self.cookies |= {name: each.value for name, each in SimpleCookie(line).items()}
        return response

    def client(self, base: str) -> httpx.AsyncClient:
        """Return a client with the headers that the router adds."""
        headers = {
            "Host": self.host,
            "X-Client-IP": self.address,
            "X-Forwarded-Proto": "https",
            "Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()),
        }
        return httpx.AsyncClient(base_url=base, headers=headers, timeout=SECONDS, trust_env=False)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.2)


async def test_what_three_instances_share(releases: Releases) -> None:
    checked: list[str] = []

    async def check(report: Report) -> None:
        assert_no_problems(report)
        assert len(report.instances) == 3
        (front,) = [stage.detail for stage in report.stages if stage.name == "front"]
        host = front.partition(" for https://")[2].rstrip("/")

        def visitor(address: str) -> Visitor:
            return Visitor(report.instances, host, address)

        await check_account_and_events(visitor("203.0.113.1"))
        await check_registration(visitor("203.0.113.2"))
        await check_limit(visitor("203.0.113.3"))
        await check_jobs(releases)
        await check_schedule(releases)
        checked.append(host)

    report = await lifecycle.rehearse(
        Options(
            repository=releases.repository,
            state=releases.state,
            revision=releases.second,
            environment=ENVIRONMENT,
            instances=3,
            keep=True,
            variables={"RUN_JOBS": "true"},  # in all server processes, beside the worker
        ),
        Console(quiet=True),
        check,
    )
    assert checked, summary(report)
    # Each instance has served the pages, the assets and a share of the load.
    assert {"probe", "probe 2", "probe 3", "shared state"} <= {each.name for each in report.stages}
    assert report.load is not None
    assert set(report.load["instances"]) == {"app", "app-2", "app-3"}
    # The pool of each process and its other connections, and as many again for a rolling deploy.
    assert report.costs is not None
    assert report.costs.demand is not None, summary(report)
    assert report.costs.demand.web >= 2 * (8 + 2)
    used = {each.name: each.connections for each in report.costs.containers}
    assert all(each.processes for each in used.values()), used
    # The worker is not multiplied.
    assert [name for name in used if name.endswith("worker")] == ["app-worker"]


async def check_account_and_events(ada: Visitor) -> None:
    """An account of one instance logs in on the next, and sees live what it saves on a third."""
    name = f"ada-{secrets.token_hex(4)}"
    email = f"{name}@example.com"
    registered = await ada.send(
        "POST", "/register/", username=name, email=email, password=PASSWORD, confirm=PASSWORD
    )
    assert registered.status_code == 303, registered.text
    logged_in = await ada.send("POST", "/login/", username=name, password=PASSWORD)
    assert logged_in.status_code == 303, logged_in.text
    assert (await ada.send("GET", "/users/")).status_code == 200
    # A stream of each instance, and a link that is saved on one of them.
    url = f"https://example.com/{name}"
    saved = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        listening = [asyncio.Event() for _ in ada.instances]
        for base, ready in zip(ada.instances, listening, strict=True):
            group.create_task(receive(ada, base, ready, saved))
        async with asyncio.timeout(SECONDS):
            for ready in listening:
                await ready.wait()
        saved.set()
        assert (await ada.send("POST", "/links/", url=url)).status_code == 303


async def receive(visitor: Visitor, base: str, ready: asyncio.Event, saved: asyncio.Event) -> None:
    """Open a stream of events; wait for one that was published after `saved`."""
    async with (
        asyncio.timeout(SECONDS),
        visitor.client(base) as client,
        client.stream("GET", "/links/events/") as response,
    ):
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line == "event: hello":
                ready.set()
            elif line.startswith("event: link") and saved.is_set():
                return
    pytest.fail(f"the stream of {base} ended without an event")


async def check_registration(visitor: Visitor) -> None:
    """A username that is registered on all instances at the same time is registered once."""
    name = f"same-{secrets.token_hex(4)}"
    responses = await asyncio.gather(
        *(
            visitor.send(
                "POST",
                "/register/",
                username=name,
                email=f"{name}-{number}@example.com",
                password=PASSWORD,
                confirm=PASSWORD,
            )
            for number in range(3)
        )
    )
    statuses = sorted(response.status_code for response in responses)
    assert statuses == [200, 200, 303]


async def check_limit(visitor: Visitor) -> None:
    """Login attempts on different instances count towards one limit."""
    name = f"nobody-{secrets.token_hex(4)}"
    statuses = [
        (await visitor.send("POST", "/login/", username=name, password="wrong")).status_code
        for _ in range(LOGIN_ATTEMPTS + 1)
    ]
    assert statuses == [*[200] * LOGIN_ATTEMPTS, 429]


def logged(releases: Releases, event: str) -> dict[str, list[datetime]]:
    """Return when each container has logged an event."""
    times: dict[str, list[datetime]] = {}
    for name in LOGS:
        lines = log_of(releases, ENVIRONMENT, name).splitlines()
        found = [json.loads(line) for line in lines if f'"{event}"' in line]
        times[name] = [datetime.fromisoformat(each["timestamp"]) for each in found]
    return times


async def check_schedule(releases: Releases) -> None:
    """What is due every minute runs once a minute, in any of the containers."""

    def runs() -> list[datetime]:
        return sorted(itertools.chain(*logged(releases, "scheduled job done").values()))

    async def has_run() -> bool:
        return bool(runs())

    await until(has_run, "the scheduled job was not done")
    await asyncio.sleep(2)  # in which the other containers would run it, too
    apart = [later - earlier for earlier, later in itertools.pairwise(runs())]
    assert all(each.total_seconds() > 30 for each in apart), runs()


async def check_jobs(releases: Releases) -> None:
    """Each job runs once, in any of the containers."""
    with database(releases, ENVIRONMENT) as url:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(ENQUEUE, JOBS)
            await until(lambda: none_left(connection), "the jobs were not done")
        finally:
            await connection.close()
    counts = {name: len(times) for name, times in logged(releases, "new job done").items()}
    assert sum(counts.values()) == JOBS, counts


async def none_left(connection: "asyncpg.Connection[asyncpg.Record]") -> bool:
    return not await connection.fetchval(LEFT)
