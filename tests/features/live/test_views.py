"""The event stream of the reading list, and single rows for its script."""

from bs4 import BeautifulSoup
from quart import Quart
from quart.testing import QuartClient as Client

from quart_upsun.database import Database
from quart_upsun.live.events import newest_event
from tests.features.factories import Person
from tests.features.links.test_views import HOSTILE, LARGEST_ID, saved, soup_of


async def test_changes_are_published_to_their_owner_only(
    app: Quart, database: Database, ada: Person
) -> None:
    bob = await Person().register(app)
    await saved(database, ada, "one")
    async with database.read() as session:
        assert await newest_event(session, ada.id) > 0
        assert await newest_event(session, bob.id) == 0


async def test_row_rejects_invalid_filters(client: Client, ada: Person) -> None:
    for query in ("before=x", f"before={2**63}", "state=x", "tag=a+b", "tag=%00"):
        await soup_of(client, f"/links/1/row/?{query}", 400)


async def test_row_is_escaped(client: Client, database: Database, ada: Person) -> None:
    link = await saved(database, ada, f"Pythons {HOSTILE}")
    page = await soup_of(client, f"/links/{link}/row/")
    assert page.select("script") == []
    assert HOSTILE in page.select(".link-title")[0].text


async def test_row_of_a_missing_or_foreign_link_has_no_content(
    app: Quart, client: Client, database: Database, ada: Person
) -> None:
    theirs = await saved(database, await Person().register(app), "secret")
    for link in (theirs, theirs + 1, 0, LARGEST_ID):
        response = await client.get(f"/links/{link}/row/")
        assert (response.status_code, await response.get_data()) == (204, b"")
    assert (await client.get(f"/links/{LARGEST_ID + 1}/row/")).status_code == 404


async def test_row_is_returned_only_for_matching_filters(
    client: Client, database: Database, ada: Person
) -> None:
    link = await saved(database, ada, "row", tags=["sea"])
    for query, status in (
        ("", 200),
        ("state=all", 200),
        ("state=archived", 204),
        ("tag=sea", 200),
        ("tag=mountain", 204),
        ("q=whatever", 200),
    ):
        response = await client.get(f"/links/{link}/row/?{query}")
        assert response.status_code == status, query
        assert response.headers["Cache-Control"] == "private, no-store"
        row = BeautifulSoup(await response.get_data(as_text=True), "html.parser")
        if status == 200:
            page = await soup_of(client, f"/links/?{query}".replace("whatever", "row"))
            (shown,) = page.select(".link")
            assert row.select("li")[0]["id"] == shown["id"] == f"link-{link}"
            if query != "q=whatever":
                assert str(row.select("li")[0]) == str(shown)


async def test_page_listens_from_the_newest_event(
    client: Client, database: Database, ada: Person
) -> None:
    async def place() -> int:
        page = await soup_of(client)
        return int(str(page.select("#links")[0]["data-after"]))

    assert await place() == 0
    await saved(database, ada, "one")
    first = await place()
    assert first > 0
    await saved(database, ada, "two")
    assert await place() > first


async def test_event_stream_is_private(client: Client, ada: Person) -> None:
    response = await client.head("/links/events/")
    assert response.content_type == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "private, no-store"
