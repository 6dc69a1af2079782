"""Measure how query times grow with the number of links: 1,000 and 1,000,000.

  python -m benchmarks.growth [--links N] [--runs N]

Starts an embedded PostgreSQL in a temporary directory, and creates one user with 1,000 links and
one with a million. Runs the queries of `app.links` for both, through a database session. The first
runs of each query are not counted.

Prints the results and, as the last line, JSON with the median times in milliseconds for both users.
The times for the large list must not exceed TARGETS_MS.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.links import queries, search
from app.links.models import Link
from benchmarks import harness
from benchmarks.filling import fill
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url

SMALL = 1000
LIMIT = 20
TARGETS_MS = {"list": 10.0, "search": 150.0}
SEARCHES = {
    "search: a word in every link": "article",
    "search: a word in 10% of the links": "python",
    "search: a rare word": "rare4711",
    "search: two words": "python flask",
    "search: a prefix": "mus",
    "search: no results": "zebra",
}

Page = Callable[[AsyncSession], Awaitable[Any]]


async def last_page_cursor(session: AsyncSession, user: int) -> int:
    """Return the cursor of the last page of a user's list."""
    oldest = await session.scalar(select(func.min(Link.id)).where(Link.user_id == user))
    return int(oldest or 0) + 100


async def search_cursor(session: AsyncSession, user: int, words: str) -> str | None:
    """Return the cursor for page 20 of a search; None if there are fewer pages."""
    cursor = None
    for _ in range(19):
        found = await search.search(session, user, words, after=cursor, limit=LIMIT)
        if len(found) < LIMIT:
            return None
        cursor = found[-1].cursor
    return cursor


async def pages(session: AsyncSession, user: int) -> dict[str, Page]:
    """Return the queries to measure, by name."""
    end = await last_page_cursor(session, user)
    cursor = await search_cursor(session, user, "article")

    def listed(**options: Any) -> Page:
        return lambda each: queries.list_links(each, user, limit=LIMIT, **options)

    def found(words: str, **options: Any) -> Page:
        return lambda each: search.search(each, user, words, limit=LIMIT, **options)

    return {
        "list: first page": listed(),
        "list: last page": listed(before=end),
        "list: unread links, last page": listed(archived=False, before=end),
        "list: one tag, first page": listed(tag="common"),
        "list: one tag, last page": listed(tag="common", before=end),
        "list: all tags": lambda each: queries.list_tags(each, user),
        **{name: found(words) for name, words in SEARCHES.items()},
        "search: page 20": found("article", after=cursor),
    }


async def timed(session: AsyncSession, page: Page, runs: int) -> float:
    """Return the median time in milliseconds."""
    taken = []
    # PostgreSQL may switch to a generic plan at the sixth execution, so skip the first six.
    for number in range(runs + 6):
        begun = time.perf_counter()
        await page(session)
        if number >= 6:
            taken.append(1000 * (time.perf_counter() - begun))
    return round(statistics.median(taken), 1)


async def run(url: str, links: int, runs: int) -> dict[str, Any]:
    begun = time.monotonic()
    users = await fill(
        url,
        {"few": SMALL, "many": links},
        lambda step: print(f"{time.monotonic() - begun:5.1f} s: {step}", flush=True),
    )
    filled = round(time.monotonic() - begun, 1)
    database = Database(parse_database_url(url), pool_size=1)
    medians: dict[str, dict[str, float]] = {}
    async with database.read() as session:
        for user in users:
            for name, page in (await pages(session, users[user])).items():
                medians.setdefault(name, {})[user] = await timed(session, page, runs)
    await database.close()
    for name, both in medians.items():
        print(f"{name:36s} {both['few']:6.1f} ms {both['many']:8.1f} ms", flush=True)
    return {
        "few": SMALL,
        "many": links,
        "filled_s": filled,
        "medians_ms": medians,
        "targets_ms": TARGETS_MS,
    }


def missed_targets(result: dict[str, Any]) -> list[str]:
    """Return a message for each target that was missed."""
    return [
        f"{name}: {target:g} ms, measured {both['many']} ms"
        for name, both in result["medians_ms"].items()
        if both["many"] > (target := TARGETS_MS[name.partition(":")[0]])
    ]


def main() -> int:
    options = harness.parser(
        "growth",
        __doc__,
        links=(1_000_000, "number of links of the large list"),
        runs=(11, "measured runs of each query"),
    ).parse_args()
    with harness.temporary_database("growth", durable=False) as (url, _):
        result = asyncio.run(run(url, options.links, options.runs))
    return harness.finish(result, missed_targets(result))


if __name__ == "__main__":
    sys.exit(main())
