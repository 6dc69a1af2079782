"""Saving, changing, listing and searching links."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from quart import Quart
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.links import queries, search
from app.links.hooks import metadata_requested
from app.links.models import Link
from app.links.queries import LinkItem, VersionConflictError
from app.links.search import MARK_END, MARK_START, SearchResult, highlight
from quart_upsun.database import Database
from quart_upsun.database.connection import connect
from quart_upsun.database.statements import Statement
from tests.features.factories import Person
from tests.features.links.announcements import Announcement

LIMIT = 7


@pytest.fixture
async def ada(app: Quart) -> int:
    return (await Person().register(app)).id


@pytest.fixture
async def bob(app: Quart) -> int:
    return (await Person().register(app)).id


@pytest.fixture
def requested() -> Iterator[list[int]]:
    """Ids of links in `metadata_requested` signals."""
    found: list[int] = []

    async def receive(_: object, *, link_ids: list[int], **__: Any) -> None:
        found.extend(link_ids)

    with metadata_requested.connected_to(receive):
        yield found


async def saved(database: Database, user: int, name: str, **options: Any) -> LinkItem:
    async with database.write() as session:
        url = f"https://example.com/{name}"
        item, _ = await queries.save_link(session, user, url, **({"title": name} | options))
    return item


async def found(database: Database, user: int, words: str, **options: Any) -> list[SearchResult]:
    async with database.read() as session:
        return await search.search(session, user, words, **({"limit": 100} | options))


async def test_link_is_saved_once_per_user(
    database: Database,
    ada: int,
    bob: int,
    requested: list[int],
    announced: list[Announcement],
) -> None:
    first = await saved(database, ada, "one", tags=["sea"])
    again = await saved(database, ada, "one", title="Another", tags=["other"])
    assert again == first
    theirs = await saved(database, bob, "one", title="Bob's")
    assert theirs.id != first.id
    assert [each.user_id for each in announced] == [ada, bob]
    assert requested == [first.id, theirs.id]


async def test_concurrent_saves_create_one_link(database: Database, ada: int) -> None:
    async def save() -> bool:
        async with database.write() as session:
            _, is_new = await queries.save_link(session, ada, "https://example.com/")
        return is_new

    assert sorted(await asyncio.gather(*(save() for _ in range(8)))) == [False] * 7 + [True]


async def test_save_survives_a_concurrent_deletion(
    database: Database, ada: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link exists at the INSERT, and is deleted before the SELECT."""
    old = await saved(database, ada, "one")
    execute = AsyncSession.execute
    deleted: list[bool] = []

    async def delete_in_between(
        self: AsyncSession, statement: Any, *args: Any, **options: Any
    ) -> Any:
        result = await execute(self, statement, *args, **options)
        if not deleted:
            deleted.append(True)
            async with database.write() as session:
                await queries.delete_link(session, ada, old.id)
        return result

    monkeypatch.setattr(AsyncSession, "execute", delete_in_between)
    new = await saved(database, ada, "one")
    assert new.id > old.id


CHANGES: dict[str, Callable[[AsyncSession, int, int], Awaitable[Any]]] = {
    "get": queries.get_link,
    "change": lambda session, user, link: queries.update_link(session, user, link, title="Mine"),
    "change of a version": lambda session, user, link: queries.update_link(
        session, user, link, version=99, title="Mine"
    ),
    "remove": queries.delete_link,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
async def test_links_of_other_users_are_not_accessible(
    database: Database,
    ada: int,
    bob: int,
    requested: list[int],
    announced: list[Announcement],
    change: Callable[[AsyncSession, int, int], Awaitable[Any]],
) -> None:
    mine = await saved(database, ada, "mine", tags=["sea"])
    for link in (mine.id, mine.id + 1):
        async with database.write() as session:
            assert not await change(session, bob, link)
    async with database.read() as session:
        assert await queries.get_link(session, ada, mine.id) == mine
    assert requested == [mine.id]
    assert [each.user_id for each in announced] == [ada]


async def test_lists_tags_and_search_are_scoped_to_the_user(
    database: Database, ada: int, bob: int
) -> None:
    await saved(database, ada, f"u{bob} secret", tags=["sea", f"u{bob}"])
    async with database.read() as session:
        assert await queries.list_links(session, bob, limit=10) == []
        assert await queries.list_links(session, bob, tag="sea", limit=10) == []
        assert await queries.list_tags(session, bob) == []
    for words in ("secret", f"u{bob}", f"u{ada}", f"u{bob} secret", "u", "sea", "example"):
        assert await found(database, bob, words) == [], words


async def test_update_with_outdated_version_is_rejected(
    database: Database, ada: int, announced: list[Announcement]
) -> None:
    link = await saved(database, ada, "one")

    async def change(version: int) -> LinkItem | None:
        async with database.write() as session:
            return await queries.update_link(
                session, ada, link.id, version=version, title=f"{version}"
            )

    changed = await change(1)
    assert changed is not None
    assert (changed.version, changed.title) == (2, "1")
    assert changed.updated_at > link.updated_at
    results = await asyncio.gather(change(2), change(2), change(2), return_exceptions=True)
    assert sum(isinstance(each, VersionConflictError) for each in results) == 2
    announced.clear()
    async with database.write() as session:
        assert await queries.delete_link(session, ada, link.id)
    assert len(announced) == 1


@pytest.mark.parametrize("name", ["title", "description"])
async def test_unchanged_text_does_not_count_as_entered_by_the_owner(
    database: Database, ada: int, name: str
) -> None:
    async def given(text: str) -> bool:
        async with database.write() as session:
            values: dict[str, Any] = {name: text}
            await queries.update_link(session, ada, link.id, **values)
            return bool(await session.scalar(select(getattr(Link, f"{name}_given"))))

    link = await saved(database, ada, "one", title="")
    async with database.write() as session:
        await session.execute(update(Link).values({name: "The page's"}))
    assert not await given("The page's")  # as when a form changes only the tags
    assert await given("Mine")
    assert await given("Mine")
    assert not await given("")


@pytest.mark.parametrize("tag", [None, "sea"])
@pytest.mark.parametrize("archived", [None, False, True])
async def test_pagination_is_stable_under_concurrent_changes(
    database: Database, ada: int, bob: int, tag: str | None, archived: bool | None
) -> None:
    """While links are saved and deleted."""
    expected: list[int] = []
    for number in range(5 * LIMIT):
        item = await saved(database, ada, f"{number}", tags=["sea"] if number % 3 else ["hill"])
        await saved(database, bob, f"{number}", tags=["sea"])
        async with database.write() as session:
            if number % 2:
                await queries.update_link(session, ada, item.id, archived=True)
        belongs = (tag is None or number % 3 != 0) and archived in {None, number % 2 == 1}
        if belongs:
            expected.append(item.id)
    expected.reverse()
    seen: list[int] = []
    before = None
    while True:
        async with database.read() as session:
            rows = await queries.list_links(
                session, ada, archived=archived, tag=tag, before=before, limit=LIMIT
            )
        if not rows:
            break
        seen += [item.id for item in rows]
        before = rows[-1].id
        await saved(database, ada, f"later {before}", tags=["sea"])
        async with database.write() as session:
            await queries.delete_link(session, ada, before)
    assert seen == expected


@pytest.mark.parametrize(
    "statement",
    [
        *(queries._list_statement(*each) for each in itertools.product([False, True], repeat=2)),
        Statement(search.SEARCH_STATEMENT, tuple),
    ],
)
async def test_lists_do_not_walk_the_links_of_others(
    database: Database, ada: int, bob: int, statement: Statement[Any]
) -> None:
    """On a site with few users, each of them may have most links, as far as PostgreSQL knows."""
    many = """
        INSERT INTO links (user_id, url, tags)
        SELECT :user, 'https://example.com/' || number, ARRAY['common']
        FROM generate_series(1, :count) AS number
    """
    async with database.write() as session:
        for user, count in ((ada, 30), (bob, 3000)):
            await session.execute(text(many), {"user": user, "count": count})
    connection = await connect(database.direct_url, name="test")
    await connection.execute("ANALYZE links, link_tags; SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE listing AS {statement._text}")
    values = ", ".join(["NULL"] * len(statement._order))
    rows = await connection.fetch(f"EXPLAIN EXECUTE listing({values})")
    await connection.close()
    plan = "\n".join(row[0] for row in rows)
    assert "Backward using pk_link" not in plan, plan
    assert "Backward using ix_link" in plan, plan


async def test_tags_are_updated_with_links(database: Database, ada: int) -> None:
    async def tags() -> list[str]:
        async with database.read() as session:
            return await queries.list_tags(session, ada)

    assert await tags() == []
    link = await saved(database, ada, "one", tags=["b", "a"])
    await saved(database, ada, "two", tags=["b", "größe"])
    assert await tags() == ["a", "b", "größe"]
    async with database.write() as session:
        await queries.update_link(session, ada, link.id, tags=["c"])
    assert await tags() == ["b", "c", "größe"]
    async with database.write() as session:
        await queries.delete_link(session, ada, link.id)
    assert await tags() == ["b", "größe"]


async def test_search_results_are_ranked(database: Database, ada: int) -> None:
    await saved(database, ada, "1", title="Sea")
    await saved(database, ada, "2", title="Hill", tags=["sea"])
    lake = await saved(database, ada, "3", title="Lake")
    async with database.write() as session:
        await queries.update_link(session, ada, lake.id, description="not the sea")
    await saved(database, ada, "4", title="Nothing")
    assert [each.item.title for each in await found(database, ada, "sea")] == [
        *("Sea", "Hill", "Lake")
    ]
    assert [each.item.title for each in await found(database, ada, "sea hill")] == ["Hill"]
    assert [each.item.title for each in await found(database, ada, "HI")] == ["Hill"]
    assert [each.item.title for each in await found(database, ada, "example 3")] == ["Lake"]


async def test_search_terms_are_highlighted(database: Database, ada: int) -> None:
    await saved(database, ada, "1", title="The <b>sea</b> & seagulls, undersea")
    async with database.write() as session:
        await session.execute(
            update(Link).values(description=f"A {MARK_START}sea{MARK_END}{MARK_END}")
        )
    (each,) = await found(database, ada, "sea")
    assert highlight(each.title) == (
        "The &lt;b&gt;<mark>sea</mark>&lt;/b&gt; &amp; <mark>seagulls</mark>, undersea"
    )
    assert highlight(each.description) == "A <mark>sea</mark>"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("a < b", "a &lt; b"),
        (f"{MARK_END}a{MARK_START}b", "ab"),
        (f"{MARK_START}{MARK_START}a{MARK_END}{MARK_END}", "<mark>a</mark>"),
    ],
)
def test_highlights_are_balanced(text: str, shown: str) -> None:
    assert highlight(text) == shown


async def test_search_pagination_is_stable(database: Database, ada: int) -> None:
    for number in range(3 * LIMIT + 2):
        title = "sea " * (number % 3) + "sea"
        await saved(database, ada, f"{number}", title=title)
    expected = [each.item.id for each in await found(database, ada, "sea")]
    assert len(expected) == 3 * LIMIT + 2
    seen: list[int] = []
    after = None
    while rows := await found(database, ada, "sea", after=after, limit=LIMIT):
        seen += [each.item.id for each in rows]
        after = rows[-1].cursor
        await saved(database, ada, f"later {after}", title="sea sea sea sea")
    assert seen == expected


@pytest.mark.parametrize(
    "words",
    [
        *(
            "",
            " ",
            "u",  # the owner is a lexeme
            "_",
            "___",
            "'",
            '"',
            "\\",
            "\\'",
            "& | ! :*",
            "'a':*A | 'b'",
            "<->",
            "(",
            "!sea",
        ),
        *(
            "\x00",
            "\x00nothing",
            "🎉",
            "👩‍👩‍👧",
            "nothing'",
            "nothing\\",
            "%",
            "\ue000",
            "²",
            "\u0345",
        ),
        *("x" * 10_000, "é" * 10_000, "nothing " * 2_000, "_" * 10_000, "a_" * 5_000),
    ],
    ids=lambda words: ascii(words[:12]),
)
async def test_unusual_search_input_finds_nothing(database: Database, ada: int, words: str) -> None:
    await saved(database, ada, "hill")
    assert await found(database, ada, words) == []


@pytest.mark.parametrize("words", ["sea'", "'sea", "sea & !", "sea:*", "(sea)", "SEA_"])
async def test_punctuation_separates_words(database: Database, ada: int, words: str) -> None:
    await saved(database, ada, "1", title="s sea")
    assert len(await found(database, ada, words)) == 1


@pytest.mark.parametrize(
    "cursor",
    [
        *(
            "",
            "x",
            "1",
            "1.2",
            "1.x.2",
            "1.nan.2",
            "1.inf.2",
            "-1.1.1",
            "1.-1.1",
            "1.1.-1",
            "0.1.1",
        ),
        *(f"{2**63}.1.1", f"1.1.{2**63}", "1.1e9.1", "9" * 5000, "1." + "9" * 5000 + ".1", "\x00"),
    ],
    ids=lambda cursor: ascii(cursor[:12]),
)
async def test_rejects_invalid_search_cursor(database: Database, ada: int, cursor: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        await found(database, ada, "sea", after=cursor)
    with pytest.raises(ValueError, match=r"."):
        await found(database, ada, "", after=cursor)


async def test_link_limit_per_account(
    app: Quart, database: Database, ada: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_LINKS", 2)
    await saved(database, ada, "1")
    await saved(database, ada, "2")
    assert (await saved(database, ada, "2")).title == "2"  # already saved
    with pytest.raises(queries.TooManyLinksError):
        await saved(database, ada, "3")
    async with database.read() as session:
        assert len(await queries.list_links(session, ada, limit=10)) == 2
