"""How the cost of a page grows with the number of links: 1,000 beside 1,000,000.

  python -m benchmarks.growth [--links N] [--runs N]

Fills a database of the embedded PostgreSQL, in a directory that is removed at the end, with the
links of two users, one of 1,000 and one of a million, and asks for pages of both, as the
application does: through `app.links` and a session. The first runs of each are not counted.

Prints a line for people for each result, and at the end one line of JSON: the medians in
milliseconds, of the small and the large list. The large one must not take longer than PROMISED.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.links import queries, search
from app.links.models import Link
from benchmarks.filling import fill, migrate
from embedded_postgres import create_database, postgres
from quart_upsun.database import Database
from quart_upsun.database.url import parse_database_url

SMALL = 1000
LIMIT = 20
PROMISED = {"list": 10.0, "search": 150.0}  # milliseconds
SEARCHES = {
    "search: a word of every link": "article",
    "search: a word of one in ten": "python",
    "search: a rare word": "rare4711",
    "search: two words": "python flask",
    "search: the first letters": "mus",
    "search: a word of none": "zebra",
}

Page = Callable[[AsyncSession], Awaitable[Any]]


async def ends(session: AsyncSession, user: int) -> int:
    """Return where the last page of a user's list begins."""
    oldest = await session.scalar(select(func.min(Link.id)).where(Link.user_id == user))
    return int(oldest or 0) + 100


async def twentieth(session: AsyncSession, user: int, words: str) -> str | None:
    """Return the cursor of the page before the 20th of a search; None if there are not so many."""
    cursor = None
    for _ in range(19):
        found = await search.search(session, user, words, after=cursor, limit=LIMIT)
        if len(found) < LIMIT:
            return None
        cursor = found[-1].cursor
    return cursor


async def pages(session: AsyncSession, user: int) -> dict[str, Page]:
    """Return what is measured, by its name."""
    end = await ends(session, user)
    cursor = await twentieth(session, user, "article")

    def listed(**options: Any) -> Page:
        return lambda each: queries.list_links(each, user, limit=LIMIT, **options)

    def found(words: str, **options: Any) -> Page:
        return lambda each: search.search(each, user, words, limit=LIMIT, **options)

    return {
        "list: first page": listed(),
        "list: last page": listed(before=end),
        "list: unread, last page": listed(archived=False, before=end),
        "list: a tag, first page": listed(tag="common"),
        "list: a tag, last page": listed(tag="common", before=end),
        "list: the tags": lambda each: queries.list_tags(each, user),
        **{name: found(words) for name, words in SEARCHES.items()},
        "search: page 20": found("article", after=cursor),
    }


async def timed(session: AsyncSession, page: Page, runs: int) -> float:
    """Return the median in milliseconds."""
    taken = []
    # PostgreSQL makes a plan for all values at the sixth execution: that one is meant, too.
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
        lambda words: print(f"{time.monotonic() - begun:5.1f} s: {words}", flush=True),
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
        print(f"{name:30s} {both['few']:6.1f} ms {both['many']:8.1f} ms", flush=True)
    return {"few": SMALL, "many": links, "filled_s": filled, "medians_ms": medians}


def broken(result: dict[str, Any]) -> list[str]:
    """Return the promises that were not kept."""
    return [
        f"{name} in {promised:g} ms; it took {both['many']} ms"
        for name, both in result["medians_ms"].items()
        if both["many"] > (promised := PROMISED[name.partition(":")[0]])
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--links", type=int, default=1_000_000, metavar="N", help="%(default)s")
    parser.add_argument("--runs", type=int, default=11, metavar="N", help="%(default)s")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="growth-")))
        server = stack.enter_context(postgres(directory / "postgres", durable=False))
        url = asyncio.run(create_database(server, "benchmark"))
        migrate(url)
        result = asyncio.run(run(url, options.links, options.runs))
    promises = broken(result)
    for promise in promises:
        print(f"Not kept: {promise}")
    print(json.dumps(result | {"ok": not promises}))
    return 1 if promises else 0


if __name__ == "__main__":
    sys.exit(main())
