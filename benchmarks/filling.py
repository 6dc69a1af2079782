"""Fill a database with a large number of links.

With triggers and indexes, a million inserts take many minutes. Here the tables are filled without
them, on two connections, and the indexes are created afterwards. One statement fills `link_tags` as
its trigger would, and the INSERT computes the search vector of each link.
"""

import asyncio
from collections.abc import Callable, Mapping

import asyncpg

CONNECTIONS = 2
SETTINGS = """
    -- Disables triggers and foreign keys.
    SET session_replication_role = replica;
    SET maintenance_work_mem = '512MB';
    SET synchronous_commit = off
"""
WORDS = [
    *("async", "web", "python", "database", "quart", "flask", "postgres", "queue", "live", "page"),
    *(
        "server",
        "news",
        "music",
        "art",
        "science",
        "travel",
        "food",
        "cooking",
        "garden",
        "history",
    ),
]
# `article` is in every title, and each word of `WORDS` in one of ten titles. A word such as `rare7`
# is in one of RARE descriptions. Half of the links have the tag `common`, one in 50 the tag `tag7`.
RARE = 100_000
USER = """
    INSERT INTO users (username, email, password_hash)
    VALUES ($1::text, $1::text || '@example.com', 'none') RETURNING id
"""
LINKS = f"""
    INSERT INTO links (
        user_id, url, title, title_given, description, tags, archived, fetched_at, attempted_at,
        search
    )
    SELECT *, now(), now(), setweight(to_tsvector('simple', title), 'A')
        || setweight(to_tsvector('simple', array_to_string(tags, ' ')), 'B')
        || setweight(to_tsvector('simple', description), 'C')
        || setweight(to_tsvector('simple', regexp_replace(url, '[^[:alnum:]]+', ' ', 'g')), 'D')
        || array_to_tsvector(ARRAY['@' || user_id])
    FROM (SELECT $1::bigint, 'https://site' || n % 5000 || '.example/articles/' || n,
        words[1 + n % 20] || ' ' || words[1 + n / 20 % 20] || ' article ' || n, true,
        'About ' || words[1 + n / 7 % 20] || ' and rare' || n::bigint * 7919 % {RARE},
        CASE WHEN n % 2 = 0 THEN ARRAY['tag' || n % 50] ELSE ARRAY['common', 'tag' || n % 50] END,
        n % 3 = 0
        FROM generate_series($2::int, $3::int) AS n, (SELECT $4::text[]) AS known (words)
    ) AS link (user_id, url, title, title_given, description, tags, archived)
"""  # noqa: S608 interpolates a constant
TAGS = """
    INSERT INTO link_tags (link_id, tag, user_id, archived)
    SELECT id, tag, user_id, archived FROM links, unnest(tags) AS tag ORDER BY id
"""
INDEXES = """
    SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
    FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
    WHERE relname IN ('links', 'link_tags')
    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
"""


async def fill(
    url: str, links: Mapping[str, int], on_step: Callable[[str], None] = lambda _: None
) -> dict[str, int]:
    """Fill a migrated, empty database.

    Args:
        url: the URL of the database, with a superuser.
        links: user name -> number of links.
        on_step: called with the name of each step.

    Returns:
        User name -> user id.
    """
    connection = await _connect(url)
    try:
        users = {name: await connection.fetchval(USER, name) for name in links}
        indexes = await connection.fetch(INDEXES)
        for index in indexes:
            await connection.execute(f"DROP INDEX {index['name']}")
        for name, count in links.items():
            on_step(f"{count:,} links")
            await _fill_one(url, users[name], count)
        on_step("tags")
        await connection.execute(TAGS)
        for index in indexes:
            on_step(index["name"])
            await connection.execute(index["definition"])
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
    return users


async def _connect(url: str) -> asyncpg.Connection:
    connection = await asyncpg.connect(url)
    await connection.execute(SETTINGS)
    return connection


async def _fill_one(url: str, user_id: int, count: int) -> None:
    async def insert(first: int, last: int) -> None:
        connection = await _connect(url)
        try:
            await connection.execute(LINKS, user_id, first, last, WORDS)
        finally:
            await connection.close()

    part = -(-count // CONNECTIONS)
    async with asyncio.TaskGroup() as group:
        for first in range(1, count + 1, part):
            group.create_task(insert(first, min(first + part - 1, count)))
