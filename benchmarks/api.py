"""Compare GET /api/v1/links?limit=20 in this application, Flask and FastAPI.

  python -m benchmarks.api [--rounds N] [--seconds S] [--alone]

Starts an embedded PostgreSQL in a temporary directory, and each server as one process on the same
database, which has a user with 1,000 links and an access token. The servers are measured in turn,
in several rounds, so that other activity on the machine affects all of them. The load generator
(benchmarks/load.py) uses 32 concurrent connections.

The other applications are in benchmarks/side_by_side/api/; benchmarks/servers.py runs them. A
baseline, a Quart view that returns a constant, shows the upper limit of the machine.

Prints the results and, as the last line, JSON. For each server it contains requests per second, the
50th and 99th percentile of the latency (ms), the maximum latency (ms), CPU time per request (ms)
and memory (MB, proportional set size), and the number of errors and timeouts. The values are
medians of the rounds; the maximum, errors and timeouts are those of all rounds.
"""

import argparse
import asyncio
import json
import sys
import urllib.request
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg

from app.user.tokens import access_tokens as tokens
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

PEERS = "benchmarks.side_by_side.api"
PATH = "/api/v1/links?limit=20"
LINKS = 1000
BASELINE = "baseline: constant response (Quart, Hypercorn)"
TARGET = 600  # requests per second
INSERT_TOKEN = """
    INSERT INTO access_tokens (user_id, name, digest, scopes, expires_at)
    VALUES ($1, 'benchmark', $2, ARRAY['links:read'], now() + interval '1 day')
"""


def peer_commands(python: Path) -> dict[str, list[str]]:
    """Return the command of each other server."""
    flask = f"{PEERS}.flask_app:create_app"
    return {
        "FastAPI, uvicorn": uvicorn(python, f"{PEERS}.fastapi_app:app"),
        "FastAPI in threads, uvicorn": uvicorn(python, f"{PEERS}.fastapi_threads_app:app"),
        "Flask, gunicorn gthread": gunicorn(python, flask, *GTHREAD),
        "Flask, `flask run`": flask_run(python, flask),
    }


def fetch(server: Server, token: str) -> tuple[str, Any]:
    """Send one request; return the body of the response, and the parsed JSON."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{PATH}", headers={"X-API-Key": token}
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        body = response.read().decode()
    data = json.loads(body)
    if len(data["items"]) != 20:
        raise SystemExit(f"{server.name} returned {len(data['items'])} links, expected 20.")
    for item in data["items"]:  # timestamps may be formatted differently
        for name in ("created_at", "updated_at", "fetched_at"):
            item[name] = datetime.fromisoformat(item[name].replace("Z", "+00:00"))
    return body, data


async def run(url: str, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    others = {BASELINE: BASELINE_COMMAND, **({} if options.alone else peer_commands(install()))}
    users = await fill(url, {"ada": LINKS})
    token = tokens.generate_token()
    connection = await asyncpg.connect(url)
    await connection.execute(INSERT_TOKEN, users["ada"], tokens.hash_token(token))
    await connection.close()
    response = expected = None
    all_series = []
    with ExitStack() as stack:
        for name, command_line in {OURS: OUR_COMMAND, **others}.items():
            server = stack.enter_context(
                serving(name, command_line, url, directory, response=response or "")
            )
            body, data = fetch(server, token)
            response, expected = response or body, expected or data
            if data != expected:
                raise SystemExit(f"{name} returned a different response.")
            load = LoadOptions(
                server.port, PATH, {"X-API-Key": token}, seconds=options.seconds, body=body
            )
            all_series.append(Series(server, load))
        await measure_in_turn(all_series, options.rounds)
        results = {
            each.server.name: {**each.result(), "mb": each.server.megabytes()}
            for each in all_series
        }
    return {"servers": results, "ours": OURS, "target": TARGET}


def missed_targets(result: dict[str, Any]) -> list[str]:
    """Return a message for each target that was missed."""
    ours = result["servers"][OURS]
    rate, errors = ours["requests_per_second"], ours["errors"]
    return [
        *([] if rate >= TARGET else [f"{TARGET} requests/s, measured {rate}"]),
        *([] if not errors else [f"no errors, counted {errors}"]),
    ]


def main() -> int:
    parser = harness.parser(
        "api",
        __doc__,
        rounds=(5, "number of rounds"),
        seconds=(4.0, "duration of each measurement"),
    )
    parser.add_argument(
        "--alone", action="store_true", help="measure only this application and the baseline"
    )
    options = parser.parse_args()
    with harness.temporary_database("api") as (url, directory):
        result = asyncio.run(run(url, directory, options))
    for name, measured in result["servers"].items():
        print(f"{name}: {measured}")
    return harness.finish(result, missed_targets(result))


if __name__ == "__main__":
    sys.exit(main())
