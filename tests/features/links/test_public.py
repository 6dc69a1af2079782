"""Public lists, as a page and as an Atom feed."""

from datetime import datetime
from xml.etree import ElementTree

import pytest
from bs4 import BeautifulSoup
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import text, update

from app.links.models import Link
from app.links.public_views import PAGE_SIZE
from quart_upsun.database import Database
from tests.features.factories import Person, new_client
from tests.features.links.test_views import saved, soup_of, titles

ATOM = "{http://www.w3.org/2005/Atom}"
SHARED = "public, max-age=0, s-maxage=300"
HOSTILE = '<b>"&]]>\x0b\x1b\ufffe\ud83d\ude00'.encode("utf-16", "surrogatepass").decode("utf-16")


@pytest.fixture
async def page(client: Client, ada: Person) -> str:
    """The path of a public list of Ada."""
    assert (await client.post("/lists/sea/publish/")).location == "/links/?tag=sea"
    return f"/lists/{ada.username}/sea/"


@pytest.fixture
def stranger(app: Quart) -> Client:
    return new_client(app)


async def load_feed(stranger: Client, page: str) -> ElementTree.Element:
    response = await stranger.get(f"{page}feed.atom")
    assert response.status_code == 200
    assert response.content_type == "application/atom+xml; charset=utf-8"
    return ElementTree.fromstring(await response.get_data(as_text=False))  # noqa: S314 our own


async def test_public_list_shows_the_links_of_its_tag(
    app: Quart, stranger: Client, client: Client, database: Database, ada: Person, page: str
) -> None:
    bob = await Person().register(app)
    await saved(database, bob, "bob's", tags=["sea"])
    await saved(database, ada, "mountain", tags=["mountain"])
    for number in range(PAGE_SIZE + 1):
        await saved(database, ada, f"sea {number}", tags=["sea", "secret"])
    found = await soup_of(stranger, page)
    assert titles(found) == [f"sea {number}" for number in range(PAGE_SIZE, 0, -1)]
    assert "secret" not in found.text
    older = found.select("a[rel=next]")[0]
    await saved(database, ada, "sea of the meantime", tags=["sea"])
    found = await soup_of(stranger, str(older["href"]))
    assert titles(found) == ["sea 0"]
    assert found.select("a[rel=next]") == []
    assert [each["rel"] for each in found.select(".link a")] == [
        ["noopener", "noreferrer", "nofollow", "ugc"]
    ]
    (alternate,) = found.select("link[rel=alternate]")
    assert (alternate["type"], alternate["href"]) == ("application/atom+xml", f"{page}feed.atom")
    assert titles(await soup_of(stranger, page.upper().replace("/LISTS", "/lists"))) != []
    await soup_of(stranger, f"{page}?before=x", 400)


async def test_public_lists_are_cacheable_for_anonymous_visitors(
    stranger: Client, client: Client, page: str
) -> None:
    for path in (page, f"{page}feed.atom"):
        response = await stranger.get(path)
        assert response.headers["Cache-Control"] == SHARED
        assert "Set-Cookie" not in response.headers
        assert (await client.get(path)).headers["Cache-Control"] == "private, no-store"
    assert "X-Robots-Tag" not in response.headers


async def test_private_list_is_indistinguishable_from_a_missing_one(
    app: Quart, stranger: Client, client: Client, database: Database, ada: Person, page: str
) -> None:
    """For every reason that a list is not public."""

    async def answers() -> set[tuple[int, str, bytes]]:
        found = set()
        for each in (page, f"{page}feed.atom"):
            response = await stranger.get(each)
            body = await response.get_data(as_text=False)
            found.add((response.status_code, response.headers["Cache-Control"], body))
        return found

    response = await stranger.get("/lists/nobody/sea/")
    missing = {(404, "private, no-store", await response.get_data(as_text=False))}
    for name in (ada.username, "a", "%00", "x" * 300, "%F0%9F%8E%89"):
        for tag in ("mountain", "%00", "a+b", "a%20b", "x" * 300, "%F0%9F%8E%89"):
            response = await stranger.get(f"/lists/{name}/{tag}/")
            assert {(404, "private, no-store", await response.get_data(as_text=False))} == missing

    assert await answers() != missing
    assert (await client.post("/lists/sea/withdraw/")).status_code == 303
    assert await answers() == missing
    await client.post("/lists/SEA/publish/")
    assert await answers() != missing
    async with database.write() as session:
        await session.execute(text("UPDATE users SET deactivated_at = now()"))
    assert await answers() == missing


async def test_publishing_requires_a_confirmed_email_address(
    app: Quart, client: Client, database: Database, ada: Person, page: str
) -> None:
    found = await soup_of(client, "/links/?tag=sea")
    assert [each["href"] for each in found.select("#public-link")] == [page]
    bob, other = await Person().register(app, confirmed=False), new_client(app)
    await bob.log_in(other)
    found = await soup_of(other, "/links/?tag=sea")
    assert "Confirm your email address" in found.text
    assert found.select("form[action$='/publish/']") == []
    assert (await other.post("/lists/sea/publish/")).status_code == 403
    assert (await other.post("/lists/sea/withdraw/")).status_code == 303  # his own list
    await soup_of(other, f"/lists/{bob.username}/sea/", 404)
    await soup_of(other, page)
    for tag in ("a+b", "%00", "a%20b", "x" * 41):
        assert (await client.post(f"/lists/{tag}/publish/")).status_code == 404, tag


async def test_feed_is_valid_atom(
    stranger: Client, database: Database, ada: Person, page: str
) -> None:
    empty = await load_feed(stranger, page)
    assert empty.findall(f"{ATOM}entry") == []
    first = await saved(database, ada, "one", tags=["sea"])
    second = await saved(database, ada, "two", tags=["sea", "größe"])
    async with database.write() as session:
        await session.execute(
            update(Link)
            .where(Link.id == second)
            .values(title=HOSTILE, description=HOSTILE, updated_at=Link.created_at)
        )
    feed = await load_feed(stranger, page)
    assert feed.tag == f"{ATOM}feed"
    assert feed.findtext(f"{ATOM}id") == empty.findtext(f"{ATOM}id")
    assert feed.findtext(f"{ATOM}author/{ATOM}name") == ada.username
    origin = "http://127.0.0.1:8000"
    assert {each.get("rel"): each.get("href") for each in feed.findall(f"{ATOM}link")} == {
        "self": f"{origin}{page}feed.atom",
        "alternate": f"{origin}{page}",
    }
    newest, oldest = feed.findall(f"{ATOM}entry")
    shown = '<b>"&]]>😀'
    assert newest.findtext(f"{ATOM}title") == newest.findtext(f"{ATOM}summary") == shown
    assert oldest.findtext(f"{ATOM}title") == "one"
    links = [each.get("href") for each in newest.findall(f"{ATOM}link")]
    assert links == ["https://example.com/two"]
    names = {each.findtext(f"{ATOM}id") or "" for each in (feed, newest, oldest)}
    assert len(names) == 3
    assert all(name.startswith("tag:127.0.0.1,2") for name in names)
    for each in (feed, newest, oldest):
        for name in ("updated", "published"):
            if time := each.findtext(f"{ATOM}{name}"):
                assert datetime.fromisoformat(time).utcoffset() is not None
    assert oldest.findtext(f"{ATOM}id", "").endswith(f":link/{first}")


async def test_feed_supports_conditional_requests(
    stranger: Client, database: Database, ada: Person, page: str
) -> None:
    path = f"{page}feed.atom"
    tag = (await stranger.get(path)).headers["ETag"]
    again = await stranger.get(path, headers={"If-None-Match": tag})
    assert (again.status_code, await again.get_data()) == (304, b"")
    assert again.headers["Cache-Control"] == SHARED  # caches may keep it
    for name, value, status in (
        ("If-None-Match", f"W/{tag}", 304),
        ("If-None-Match", "*", 304),
        ("If-None-Match", "unquoted", 200),
        ("If-Match", "*", 200),
        ("If-Match", f'"other", {tag}', 200),
        ("If-Match", f"W/{tag}", 412),
        ("If-Match", "unquoted", 400),
    ):
        assert (await stranger.get(path, headers={name: value})).status_code == status, value
    await saved(database, ada, "one", tags=["sea"])
    again = await stranger.get(path, headers={"If-None-Match": tag})
    assert again.status_code == 200


async def test_fetched_titles_and_descriptions_are_escaped(
    stranger: Client, database: Database, ada: Person, page: str
) -> None:
    await saved(database, ada, "one", tags=["sea"])
    async with database.write() as session:
        await session.execute(update(Link).values(title=HOSTILE, description=HOSTILE))
    body = await (await stranger.get(page)).get_data(as_text=True)
    found = BeautifulSoup(body, "html.parser")
    assert found.select("main b") == []
    assert "]]>" in titles(found)[0]
