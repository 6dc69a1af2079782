"""Measure what a connection pooler costs: GET /api/v1/links?limit=20 with and without PgBouncer.

  python -m benchmarks.pooler [--rounds N] [--seconds S]

Starts an embedded PostgreSQL and a PgBouncer in transaction mode, and two servers as one process
each on the same database, one of them through the PgBouncer. They are measured in turn, in several
rounds, so that other activity on the machine affects both. The load generator
(benchmarks/load.py) uses 32 concurrent connections.

Needs the Debian package `pgbouncer`. A version that can prepare statements does so.

Prints the results and, as the last line, JSON: those of benchmarks.api for each server, the median
and the range of the ratio of both rates in a round, and the version of PgBouncer.
"""

import argparse
import asyncio
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg

from app.user.tokens import access_tokens as tokens
from benchmarks import harness
from benchmarks.api import INSERT_TOKEN, LINKS, PATH, fetch
from benchmarks.filling import fill
from benchmarks.load import LoadOptions
from benchmarks.servers import OUR_COMMAND, Series, measure_in_turn, serving
from quart_upsun.testing.pgbouncer import PREPARES, pgbouncer, version
from quart_upsun.testing.programs import find

DIRECT, POOLED = "directly", "through PgBouncer"
MIN_RATIO = 0.9


async def run(url: str, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    program = find("pgbouncer")
    if program is None:
        raise SystemExit("pgbouncer is not installed (Debian package: pgbouncer).")
    number = version(program)
    users = await fill(url, {"ada": LINKS})
    token = tokens.generate_token()
    connection = await asyncpg.connect(url)
    await connection.execute(INSERT_TOKEN, users["ada"], tokens.hash_token(token))
    await connection.close()
    settings = {"max_prepared_statements": 200} if number >= PREPARES else {}
    all_series = []
    with ExitStack() as stack:
        pooler = stack.enter_context(pgbouncer(url, directory, **settings))
        for name, address in {DIRECT: url, POOLED: pooler.url(url)}.items():
            command = ["env", f"DATABASE_DIRECT_URL={url}", *OUR_COMMAND]
            server = stack.enter_context(serving(name, command, address, directory))
            body, _ = fetch(server, token)
            load = LoadOptions(
                server.port, PATH, {"X-API-Key": token}, seconds=options.seconds, body=body
            )
            all_series.append(Series(server, load))
        await measure_in_turn(all_series, options.rounds)
        direct, pooled = all_series
        ratios = [
            with_pooler.rate / without.rate
            for without, with_pooler in zip(direct.rounds, pooled.rounds, strict=True)
        ]
        return {
            "servers": {each.server.name: each.result() for each in all_series},
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
            "pgbouncer": ".".join(map(str, number)),
        }


def missed_targets(result: dict[str, Any]) -> list[str]:
    """Return a message for each target that was missed."""
    errors = sum(each["errors"] for each in result["servers"].values())
    ratio = result["ratio"]
    return [
        *([] if ratio >= MIN_RATIO else [f"{MIN_RATIO} of the rate, measured {ratio}"]),
        *([] if not errors else [f"no errors, counted {errors}"]),
    ]


def main() -> int:
    parser = harness.parser(
        "pooler",
        __doc__,
        rounds=(5, "number of rounds"),
        seconds=(4.0, "duration of each measurement"),
    )
    options = parser.parse_args()
    with harness.temporary_database("pooler") as (url, directory):
        result = asyncio.run(run(url, directory, options))
    for name, measured in result["servers"].items():
        print(f"{name}: {measured}")
    return harness.finish(result, missed_targets(result))


if __name__ == "__main__":
    sys.exit(main())
