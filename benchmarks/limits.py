"""Measure the table of the rate limits against the number of clients, and with hot clients.

  python -m benchmarks.limits [--seconds S]

Starts an embedded PostgreSQL in a temporary directory, and counts requests with the function that
all limits use, `Limit.count_request`, on eight connections. A limit keeps at most one row for each
hash of a client, so its part of the table stops growing at 2**18 rows.

Prints the results and, as the last line, JSON. `distinct` has an entry for each number of clients,
each request being that of a random one whose row exists; `hot` has one for each number of clients
that send all requests. The entries:

- counts_per_second: counted requests
- p99_ms: latency
- database_ms: CPU time of PostgreSQL per counted request
- rows, table_mb: rows of the table, its size and that of its indexes (`distinct` only)
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from quart import Quart
from sqlalchemy import text

from app import create_app
from app.settings import Settings
from benchmarks import harness
from benchmarks.load import quantile
from quart_upsun.database.url import parse_database_url
from quart_upsun.logging import configure_logging
from quart_upsun.security.limits import BUCKETS, Limit

CLIENTS = (1_000, 10_000, 100_000, 1_000_000)
HOT_CLIENTS = (1, 10)
CONNECTIONS = 8
LIMIT = Limit("benchmark", 1_000_000, 3600)  # is never reached
FILL = """
    INSERT INTO rate_limits (name, bucket, used_until)
    SELECT :name, bucket, now() + interval '30 minutes'
    FROM unnest(CAST(:buckets AS integer[])) AS bucket
"""


async def count_requests(subject: Callable[[], str], seconds: float) -> list[float]:
    """Count requests on all connections; return the seconds each took."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def work() -> None:
        while (begun := time.perf_counter()) < end:
            if await LIMIT.count_request(subject()):
                raise SystemExit("A request was over the limit.")
            taken.append(time.perf_counter() - begun)

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return taken


def random_client(clients: int) -> str:
    return f"client {random.randrange(clients)}"  # noqa: S311


def bucket_of(subject: str) -> object:
    """Return the row of a client."""
    return LIMIT._parameters(subject)["bucket"]


async def measure(
    server: harness.DatabaseServer, subject: Callable[[], str], seconds: float
) -> dict[str, float]:
    await count_requests(subject, 0.5)
    used = server.cpu_seconds()
    taken = await count_requests(subject, seconds)
    return {
        "counts_per_second": round(len(taken) / seconds),
        "p99_ms": quantile(taken, 0.99),
        "database_ms": round(1000 * (server.cpu_seconds() - used) / len(taken), 3),
    }


async def run(app: Quart, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    database, server = app.extensions["quart_upsun"].database, harness.DatabaseServer(directory)
    result: dict[str, Any] = {"buckets": BUCKETS, "distinct": {}, "hot": {}}

    async def show(kind: str, number: int, measured: dict[str, float]) -> None:
        result[kind][str(number)] = measured
        print(f"{kind}, {number}: {measured}", flush=True)

    async with app.app_context():
        for clients in CLIENTS:
            buckets = {bucket_of(f"client {number}") for number in range(clients)}
            async with database.write() as session:
                await session.execute(text("TRUNCATE rate_limits"))
                await session.execute(text(FILL), {"name": LIMIT.name, "buckets": [*buckets]})
            async with database.read() as session:
                await session.execute(text("VACUUM ANALYZE rate_limits"))
                size = await session.scalar(text("SELECT pg_total_relation_size('rate_limits')"))
            measured = await measure(server, partial(random_client, clients), options.seconds)
            table = {"rows": len(buckets), "table_mb": round(size / 1e6, 1)}
            await show("distinct", clients, measured | table)
        for clients in HOT_CLIENTS:
            measured = await measure(server, partial(random_client, clients), options.seconds)
            await show("hot", clients, measured)
    await database.close()
    return result


def main() -> int:
    options = harness.parser(
        "limits", __doc__, seconds=(3.0, "duration of each measurement")
    ).parse_args()
    with harness.temporary_database("limits") as (url, directory):
        settings = Settings(
            database_url=parse_database_url(url),
            secret_key=SecretStr("for a benchmark"),
            database_pool_size=CONNECTIONS,
        )
        configure_logging("warning")
        result = asyncio.run(run(create_app(settings), directory, options))
    return harness.finish(result, [])


if __name__ == "__main__":
    sys.exit(main())
