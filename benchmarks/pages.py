"""Compare pages in this application, Flask and FastAPI: home, members and a list of 20 links.

  python -m benchmarks.pages [--rounds N] [--seconds S]

Starts an embedded PostgreSQL in a temporary directory, and each server as one process on the same
database. It has a user with 1,000 links, and more members than the page shows. The home page is
requested without a cookie, the others with that of the user. The bodies of all responses are
compared byte by byte. The servers are measured in turn, in several rounds, so that other activity
on the machine affects all of them. The load generator (benchmarks/load.py) uses 32 concurrent
connections.

The other applications are in benchmarks/side_by_side/pages/; benchmarks/servers.py runs them. They
render the templates of this application, and run the same queries. Bare Quart, a view that returns
a constant, shows the upper limit of the machine.

Prints the results and, as the last line, JSON: the results of bare Quart (`bare`), those of each
server and page (`servers`), and the targets. Requests per second, the 50th and 99th percentile of
the latency (ms) and the CPU time per request (ms) are medians of the rounds. The maximum latency
(ms), errors, and timeouts (more than 2 s) are those of all rounds. The memory (MB) is the
proportional set size after the load.
"""

import argparse
import asyncio
import difflib
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import httpx

from app.user import passwords
from benchmarks import harness
from benchmarks.filling import fill
from benchmarks.load import LoadOptions
from benchmarks.servers import (
    BASELINE_COMMAND,
    GTHREAD,
    OUR_COMMAND,
    OURS,
    Series,
    Server,
    flask_run,
    gunicorn,
    install,
    measure_in_turn,
    serving,
    uvicorn,
)

PEERS = "benchmarks.side_by_side.pages"
BARE = "bare Quart (Hypercorn)"
GEVENT, FLASK_RUN = "Flask, gunicorn gevent", "Flask, `flask run`"
LOGIN = {"username": "ada", "password": "correct horse battery"}
LINKS, MEMBERS = 1000, 40
MAX_MB = 140
INSERT_MEMBERS = """
    INSERT INTO users (username, email, password_hash)
    SELECT 'member' || n, 'member' || n || '@example.com', 'none'
    FROM generate_series(1, $1::int) AS n
"""


class Page(NamedTuple):
    """A page to measure."""

    path: str
    needs_login: bool


PAGES = {
    "home": Page("/", needs_login=False),
    "members": Page("/users/", needs_login=True),
    "list": Page("/links/", needs_login=True),
}


class Target(NamedTuple):
    """The throughput of a page of this application, at least `least` times that of `other`."""

    page: str
    least: float
    other: str


TARGETS = [
    Target("home", 0.6, BARE),
    Target("members", 0.35, BARE),
    Target("members", 1.5, GEVENT),
    Target("members", 3, FLASK_RUN),
    Target("list", 0.2, BARE),
]


class DifferentPageError(SystemExit):
    """A server's page differs from that of this application."""


def peer_commands(python: Path) -> dict[str, list[str]]:
    """Return the command of each other server."""
    flask = f"{PEERS}.flask_app:create_app"
    return {
        GEVENT: gunicorn(python, flask, "gevent"),
        "Flask, gunicorn gthread": gunicorn(python, flask, *GTHREAD),
        FLASK_RUN: flask_run(python, flask),
        "FastAPI, uvicorn": uvicorn(python, f"{PEERS}.fastapi_app:app"),
    }


def log_in(server: Server) -> str:
    """Log in, and return the `Cookie` header."""
    origin = f"http://127.0.0.1:{server.port}"
    with httpx.Client(base_url=origin, follow_redirects=True) as client:
        # Also gets the page that shows the message that the user is logged in.
        client.post("/login/", data=LOGIN, headers={"Origin": origin}).raise_for_status()
        return "; ".join(f"{name}={value}" for name, value in client.cookies.items())


def fetch(server: Server, path: str, headers: dict[str, str]) -> str:
    """Send one request; return the body of the response."""
    response = httpx.get(f"http://127.0.0.1:{server.port}{path}", headers=headers, timeout=10)
    if response.status_code != 200:
        raise SystemExit(f"{server.name} returned {response.status_code} for {path}.")
    return response.text


def compare(name: str, page: str, body: str, expected: str) -> None:
    """Compare a page with that of this application.

    Raises:
        DifferentPageError: they differ.
    """
    if body != expected:
        lines = difflib.unified_diff(
            expected.splitlines(), body.splitlines(), OURS, name, lineterm="", n=0
        )
        difference = "\n".join(list(lines)[:20])
        raise DifferentPageError(f"{name}: the {page} page is different.\n{difference}")


async def prepare(url: str) -> None:
    """Fill the database, and give the user a password."""
    users = await fill(url, {LOGIN["username"]: LINKS})
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(INSERT_MEMBERS, MEMBERS)
        await connection.execute(
            "UPDATE users SET password_hash = $2 WHERE id = $1",
            users[LOGIN["username"]],
            await passwords.hash_password(LOGIN["password"]),
        )
        await connection.execute("VACUUM ANALYZE users")
    finally:
        await connection.close()


async def run(url: str, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    others = peer_commands(install())
    await prepare(url)
    expected: dict[str, str] = {}
    with ExitStack() as stack:
        bare = stack.enter_context(
            serving(BARE, BASELINE_COMMAND, url, directory, response="Hello, World!")
        )
        baseline = Series(
            bare, LoadOptions(bare.port, "/", seconds=options.seconds, body="Hello, World!")
        )
        servers: dict[str, dict[str, Series]] = {}
        for name, command_line in {OURS: OUR_COMMAND, **others}.items():
            server = stack.enter_context(serving(name, command_line, url, directory))
            cookie = log_in(server)
            servers[name] = {}
            for page_name, page in PAGES.items():
                headers = {"Cookie": cookie} if page.needs_login else {}
                body = fetch(server, page.path, headers)
                compare(name, page_name, body, expected.setdefault(page_name, body))
                load = LoadOptions(
                    server.port, page.path, headers, seconds=options.seconds, body=body
                )
                servers[name][page_name] = Series(server, load)
        in_turn = [pages[page_name] for page_name in PAGES for pages in servers.values()]
        await measure_in_turn([baseline, *in_turn], options.rounds)
        return {
            "bare": {"name": BARE, **baseline.result(), "mb": bare.megabytes()},
            "ours": OURS,
            "servers": {
                name: {
                    "mb": next(iter(pages.values())).server.megabytes(),
                    "pages": {page: series.result() for page, series in pages.items()},
                }
                for name, pages in servers.items()
            },
        }


def check_targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the results with the targets.

    Returns:
        For each target: `target` and `measured` as text, and `ok`.
    """
    ours = result["servers"][OURS]
    checked = []
    for target in TARGETS:
        other = (
            result["bare"]
            if target.other == BARE
            else result["servers"][target.other]["pages"][target.page]
        )
        rate = ours["pages"][target.page]["requests_per_second"]
        ratio = round(rate / other["requests_per_second"], 2)
        checked.append(
            {
                "target": f"{target.page} page: at least {target.least:g} times the requests/s of"
                f" {target.other}",
                "measured": f"{ratio:.2f} times",
                "ok": ratio >= target.least,
            }
        )
    failed = sum(each["errors"] + each["timeouts"] for each in ours["pages"].values())
    return [
        *checked,
        {
            "target": f"pages: at most {MAX_MB} MB of memory after the load",
            "measured": f"{ours['mb']} MB",
            "ok": ours["mb"] <= MAX_MB,
        },
        {
            "target": "pages: no errors and no timeouts",
            "measured": str(failed),
            "ok": failed == 0,
        },
    ]


def main() -> int:
    options = harness.parser(
        "pages",
        __doc__,
        rounds=(3, "number of rounds"),
        seconds=(3.0, "duration of each measurement"),
    ).parse_args()
    with harness.temporary_database("pages") as (url, directory):
        result = asyncio.run(run(url, directory, options))
    targets = check_targets(result)
    missed = [f"{each['target']}: {each['measured']}" for each in targets if not each["ok"]]
    return harness.finish(result | {"targets": targets}, missed)


if __name__ == "__main__":
    sys.exit(main())
