"""Measure lists and searches against the number of links of a user: 10,000 to 1,000,000.

  python -m benchmarks.searches [--links N] [--runs N]

Starts an embedded PostgreSQL in a temporary directory with three users, who have a hundredth, a
tenth and all of the links. Runs queries of benchmarks/growth.py for each through a database
session.

Prints the results and, as the last line, JSON with the median times in milliseconds of each query
by the number of links, and the size of the table of links with its indexes per link.
"""

import asyncio
import sys
from typing import Any

from sqlalchemy import text

from benchmarks import growth, harness
from benchmarks.filling import fill
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url

QUERIES = (
    "list: first page",
    "list: last page",
    "search: a word in every link",
    "search: a rare word",
    "search: two words",
)


async def run(url: str, links: int, runs: int) -> dict[str, Any]:
    sizes = {f"user{part}": links // part for part in (100, 10, 1)}
    users = await fill(url, sizes, lambda step: print(step, flush=True))
    database = Database(parse_database_url(url), pool_size=1)
    medians: dict[str, dict[str, float]] = {name: {} for name in QUERIES}
    async with database.read() as session:
        for user, size in sizes.items():
            pages = await growth.pages(session, users[user])
            for name in QUERIES:
                medians[name][str(size)] = await growth.timed(session, pages[name], runs)
        total = await session.scalar(
            text("SELECT pg_total_relation_size('links') + pg_total_relation_size('link_tags')")
        )
    await database.close()
    for name, times in medians.items():
        print(f"{name}: {times}", flush=True)
    return {
        "links": links,
        "medians_ms": medians,
        "bytes_per_link": round(total / sum(sizes.values())),
    }


def main() -> int:
    options = harness.parser(
        "searches",
        __doc__,
        links=(1_000_000, "number of links of the largest list"),
        runs=(11, "measured runs of each query"),
    ).parse_args()
    with harness.temporary_database("searches", durable=False) as (url, _):
        result = asyncio.run(run(url, options.links, options.runs))
    return harness.finish(result, [])


if __name__ == "__main__":
    sys.exit(main())
