"""The pages of the reading list."""

from typing import Any
from urllib.parse import unquote, urlencode

import pytest
from bs4 import BeautifulSoup, Tag
from quart import Quart, request, url_for
from quart.testing import QuartClient as Client
from sqlalchemy import insert, update

from app.links import queries
from app.links.models import Icon, Link
from app.links.selection import Selection
from app.links.views import PAGE_SIZE, SAVE_LIMIT
from quart_upsun.database import Database
from tests.features.factories import LOGIN_COOKIE, Person, new_client

HOSTILE = '"><script>alert(1)</script>'
LARGEST_ID = 2**63 - 1


async def saved(database: Database, person: Person, name: str, **options: Any) -> int:
    """Save a link without a form."""
    async with database.write() as session:
        item, _ = await queries.save_link(
            session, person.id, f"https://example.com/{name}", title=name, **options
        )
    return item.id


async def stored(database: Database, link_id: int) -> Any:
    async with database.read() as session:
        return await session.get(Link, link_id)


async def soup_of(client: Client, path: str = "/links/", status: int = 200) -> BeautifulSoup:
    response = await client.get(path)
    assert response.status_code == status, path
    return BeautifulSoup(await response.get_data(as_text=True), "html.parser")


def titles(page: Tag) -> list[str]:
    return [each.text.strip() for each in page.select(".link-title")]


def href(page: Tag, selector: str) -> str:
    found = page.select_one(selector)
    assert found is not None, selector
    return str(found["href"])


def form_values(page: Tag) -> dict[str, str]:
    """Return the current values of the edit form."""
    fields = page.select("#editForm input")
    return {str(each["name"]): str(each.get("value", "")) for each in fields}


async def test_saving_an_existing_link_redirects_to_it(
    client: Client, database: Database, ada: Person
) -> None:
    response = await client.post(
        "/links/", form={"url": " Example.com:443/a?utm_source=x ", "tags": "News, #python news"}
    )
    assert (response.status_code, response.location) == (303, "/links/")
    page = await soup_of(client)
    assert "Link saved." in page.text
    (row,) = page.select(".link")
    link = row.select_one(".link-title a")
    assert link is not None
    assert link["href"] == "https://example.com/a"
    assert link.text == "example.com/a"
    assert link["rel"] == ["noopener", "noreferrer", "nofollow", "ugc"]
    assert [each.text for each in row.select(".tags a")] == ["news", "python"]

    response = await client.post("/links/", form={"url": "https://example.com/a", "tags": "other"})
    page = await soup_of(client, response.location or "")
    assert "already saved" in page.text
    assert len(page.select(".link")) == 1
    assert "other" not in page.text


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "Enter a URL."),
        ({"url": "javascript:alert(1)"}, "must start with https:// or http://"),
        ({"url": "http://"}, "Enter a valid URL."),
        ({"url": "example.com", "tags": "a!"}, "Tags may contain"),
        ({"url": "example.com/" + "x" * 2048}, "longer than"),
    ],
)
async def test_validation_errors_appear_next_to_their_field(
    client: Client, ada: Person, form: dict[str, str], message: str
) -> None:
    response = await client.post("/links/", form=form)
    assert response.status_code == 200
    page = BeautifulSoup(await response.get_data(as_text=True), "html.parser")
    assert page.title is not None
    assert page.title.text.startswith("Error: Unread links")
    (wrong,) = page.select("#saveForm [aria-invalid]")
    assert message in page.select(f"#{str(wrong['aria-describedby']).split()[-1]}")[0].text
    assert page.select_one("#url[value]") is not None
    assert page.select(".link") == []


async def test_pagination_shows_each_link_once(
    client: Client, database: Database, ada: Person, app: Quart
) -> None:
    bob = await Person().register(app)
    for number in range(2 * PAGE_SIZE + 1):
        await saved(database, ada, f"n{number}")
        await saved(database, bob, f"b{number}")
    path: str | None = "/links/"
    seen: list[str] = []
    while path:
        page = await soup_of(client, path)
        seen += titles(page)
        await saved(database, ada, f"later{len(seen)}")  # a link is saved between two pages
        older = page.select_one("a[rel=next]")
        path = str(older["href"]) if older else None
    assert seen == [f"n{number}" for number in reversed(range(2 * PAGE_SIZE + 1))]


async def test_lists_are_filtered_by_state_tag_and_search(
    client: Client, database: Database, ada: Person
) -> None:
    await saved(database, ada, "old", tags=["python"])
    await saved(database, ada, "new", tags=["python", "sea"])
    await saved(database, ada, "other")
    page = await soup_of(client)
    archive = page.select(".link")[2].select_one("form")
    assert archive is not None
    response = await client.post(str(archive["action"]))
    assert (response.status_code, response.location) == (303, "/links/")
    for path, expected in (
        ("/links/", ["other", "new"]),
        ("/links/?state=archived", ["old"]),
        ("/links/?state=all", ["other", "new", "old"]),
        ("/links/?tag=python", ["new"]),
        ("/links/?tag=PYTHON&state=all", ["new", "old"]),
        ("/links/?tag=python&state=archived", ["old"]),
        ("/links/?tag=none", []),
        ("/links/?q=ol", ["old"]),
        ("/links/?q=pyth+ne", ["new"]),
        ("/links/?q=nothing", []),
        ("/links/?q=%00", ["other", "new"]),
    ):
        page = await soup_of(client, path)
        assert titles(page) == expected, path
        assert page.select_one(".links-empty") is not None
    page = await soup_of(client, "/links/?tag=python&state=archived")
    assert [each.text for each in page.select("nav .tags a")] == ["python", "sea"]
    unarchive = page.select_one(".link form")
    assert unarchive is not None
    response = await client.post(str(unarchive["action"]))
    assert response.location == "/links/?state=archived&tag=python"
    assert titles(await soup_of(client)) == ["other", "new", "old"]


async def test_truncated_tag_list_says_so(
    client: Client, database: Database, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_TAGS_SHOWN", 2)
    await saved(database, ada, "one", tags=["a", "b"])
    page = await soup_of(client)
    assert [each.text for each in page.select("nav .tags a")] == ["a", "b"]
    assert "Showing the first" not in page.text
    await saved(database, ada, "two", tags=["cliff"])
    page = await soup_of(client)
    assert [each.text for each in page.select("nav .tags a")] == ["a", "b"]
    assert "Showing the first 2 tags." in page.text
    assert titles(await soup_of(client, "/links/?q=cliff")) == ["two"]


async def test_page_titles_are_distinct(client: Client, ada: Person) -> None:
    paths = ("", "?state=archived", "?state=all", "?tag=sea", "?tag=sea&state=all", "?q=sea")
    found = [(await soup_of(client, f"/links/{path}")).title for path in paths]
    assert len({each.text for each in found if each}) == len(paths)


@pytest.mark.parametrize(
    "query",
    [
        *("before=x", "before=-1", f"before={2**63}", "before=%D9%A3", "before=1e3"),
        *("state=x", "tag=a+b", "tag=%00", "tag=" + "x" * 41, "tag=%20"),
        *("q=a&after=x", "q=a&after=1.nan.1", f"q=a&after=1.0.{2**63}", "q=a&after=" + "9" * 5000),
    ],
    ids=lambda query: query[:20],
)
async def test_rejects_invalid_query_parameters(client: Client, ada: Person, query: str) -> None:
    await soup_of(client, f"/links/?{query}", 400)


@pytest.mark.parametrize("before", [1, LARGEST_ID])
async def test_accepts_any_id_as_cursor(client: Client, ada: Person, before: int) -> None:
    page = await soup_of(client, f"/links/?before={before}")
    assert "No older links." in page.text


@pytest.mark.parametrize(
    "words",
    ["'", "\\", "& | ! :*", "'a' & 'b", "🎉", "x" * 10_000, "%", "<->", "\udcff"],
    ids=ascii,
)
async def test_unusual_search_input_is_not_an_error(
    client: Client, ada: Person, words: str
) -> None:
    response = await client.get("/links/", query_string={"q": words.encode("utf-8", "replace")})
    assert response.status_code == 200


async def test_search_terms_are_highlighted_and_escaped(
    client: Client, database: Database, ada: Person
) -> None:
    link = await saved(database, ada, f"Pythons {HOSTILE}")
    async with database.write() as session:
        description = f"about python \ue000 {HOSTILE}"
        await session.execute(update(Link).values(description=description))
    page = await soup_of(client, "/links/?q=pyth")
    assert page.select("main script") == []
    assert [each.text for each in page.select(".link-title mark")] == ["Pythons"]
    assert "python" in [each.text for each in page.select(".link-description mark")]
    assert HOSTILE in page.select(".link-title")[0].text
    for path in ("/links/", f"/links/{link}/"):
        page = await soup_of(client, path)
        assert page.select("main script, li script") == []
        assert HOSTILE in page.select(".link-title")[0].text


async def test_only_the_web_is_linked_to(client: Client, database: Database, ada: Person) -> None:
    """Whatever came into the table, by whatever way."""
    async with database.write() as session:
        await session.execute(insert(Link).values(user_id=ada.id, url="javascript:alert(1)"))
    page = await soup_of(client)
    assert href(page, ".link-title a") == "about:blank"
    assert page.select('[href^="javascript"]') == []


async def test_searches_go_on_in_their_order(
    client: Client, database: Database, ada: Person
) -> None:
    for number in range(PAGE_SIZE + 5):
        await saved(database, ada, f"sea {number}")
    first = await soup_of(client, "/links/?q=sea")
    await saved(database, ada, "sea of the meantime")
    second = await soup_of(client, href(first, "a[rel=next]"))
    assert [*titles(first), *titles(second)] == [f"sea {n}" for n in reversed(range(PAGE_SIZE + 5))]
    assert second.select("a[rel=next]") == []


async def test_a_link_is_edited(client: Client, database: Database, ada: Person) -> None:
    link = await saved(database, ada, "old")
    page = await soup_of(client, f"/links/{link}/")
    form = form_values(page)
    assert form == {"title": "old", "tags": "", "version": "1"}
    response = await client.post(f"/links/{link}/", form=form | {"title": "New", "tags": "b A"})
    assert response.location == f"/links/{link}/"
    changed = await stored(database, link)
    assert (changed.title, changed.tags, changed.version) == ("New", ["a", "b"], 2)

    # Another tab still shows the first version.
    response = await client.post(f"/links/{link}/", form=form | {"title": "Mine"})
    again = BeautifulSoup(await response.get_data(as_text=True), "html.parser")
    assert "has changed since" in again.select("#editForm .alert")[0].text
    assert titles(again) == ["New"]
    assert (await stored(database, link)).title == "New"
    form = form_values(again)
    assert form == {"title": "Mine", "tags": "", "version": "2"}
    assert (await client.post(f"/links/{link}/", form=form)).status_code == 303
    assert (await stored(database, link)).title == "Mine"


@pytest.mark.parametrize(
    "form", [{"title": "x" * 301}, {"tags": "?"}, {"version": "x"}, {"version": str(2**70)}]
)
async def test_invalid_edit_changes_nothing(
    client: Client, database: Database, ada: Person, form: dict[str, str]
) -> None:
    link = await saved(database, ada, "old")
    response = await client.post(f"/links/{link}/", form={"title": "new"} | form)
    assert response.status_code == 200
    page = BeautifulSoup(await response.get_data(as_text=True), "html.parser")
    assert page.title is not None
    assert page.title.text.startswith("Error: ")
    assert (await stored(database, link)).title == "old"


async def test_a_link_is_deleted(client: Client, database: Database, ada: Person) -> None:
    link = await saved(database, ada, "old")
    assert (await client.post(f"/links/{link}/delete/")).location == "/links/"
    assert await stored(database, link) is None
    await soup_of(client, f"/links/{link}/", 404)


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("", "GET"),
        *((each, "POST") for each in ("", "archive/", "unarchive/", "delete/")),
    ],
)
async def test_links_of_other_users_return_404(
    app: Quart, client: Client, database: Database, ada: Person, path: str, method: str
) -> None:
    bob = await Person().register(app)
    theirs = await saved(database, bob, "secret")
    before = await stored(database, theirs)
    for link in (theirs, theirs + 1, 0, LARGEST_ID, LARGEST_ID + 1, 10**30):
        response = await client.open(f"/links/{link}/{path}", method=method, form={"title": "x"})
        # For ids that the URL rule rejects, Werkzeug may respond with 405.
        assert response.status_code in ({404} if link <= LARGEST_ID else {404, 405}), link
        assert "secret" not in await response.get_data(as_text=True)
    after = await stored(database, theirs)
    assert (after.version, after.archived) == (before.version, before.archived)


async def test_icons_are_public_and_immutable(
    app: Quart, client: Client, database: Database, ada: Person
) -> None:
    link, digest = await saved(database, ada, "one"), bytes(range(32))
    async with database.write() as session:
        icon = {"digest": digest, "content": b"\x89PNG", "content_type": "image/png"}
        await session.execute(insert(Icon).values(**icon))
        await session.execute(update(Link).values(icon_digest=digest))
    image = (await soup_of(client, f"/links/{link}/")).select_one("img.link-icon")
    assert image is not None
    for each in (client, new_client(app)):
        response = await each.get(str(image["src"]))
        assert await response.get_data() == b"\x89PNG"
        assert response.content_type == "image/png"
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "Set-Cookie" not in response.headers
        again = await each.get(
            str(image["src"]), headers={"If-None-Match": f"W/{response.headers['ETag']}"}
        )
        assert (again.status_code, await again.get_data()) == (304, b"")
        assert again.headers["Cache-Control"] == response.headers["Cache-Control"]
    # An invalid cookie is deleted, and that response must not be cached.
    response = await new_client(app).get(
        str(image["src"]), headers={"Cookie": f"{LOGIN_COOKIE}=forged"}
    )
    assert "Set-Cookie" in response.headers
    assert response.headers["Cache-Control"] == "private, no-store"
    for digest_text in ("0" * 64, "x", "00", "0" * 63):
        response = await client.get(f"/links/icons/{digest_text}")
        assert response.status_code == 404
        assert response.headers["Cache-Control"] == "private, no-store"


async def test_saving_is_rate_limited(client: Client, ada: Person, app: Quart) -> None:
    async with app.app_context():
        while await SAVE_LIMIT.count_request(f"user {ada.id}") == 0:
            pass
    response = await client.post("/links/")
    assert response.status_code == 429
    assert 0 < int(response.headers["Retry-After"]) < 60
    bob = await Person().register(app)
    other = new_client(app)
    await bob.log_in(other)
    assert (await other.post("/links/")).status_code == 200


@pytest.mark.parametrize(
    "query", ["", "?state=archived", "?state=all&tag=%C3%A9t%C3%A9", "?q=example"]
)
async def test_urls_in_rows_are_those_of_the_routes(
    app: Quart, client: Client, database: Database, ada: Person, query: str
) -> None:
    link_id = await saved(database, ada, "a", tags=["été", "news"])
    async with database.write() as session:
        await queries.update_link(session, ada.id, link_id, archived="archived" in query)
    (row,) = (await soup_of(client, f"/links/{query}")).select(".link")
    async with app.test_request_context(f"/links/{query}"):
        selection = Selection.from_query(request.args)
        state = "unarchive" if "archived" in query else "archive"
        back = f"/links/?{urlencode(selection.parameters)}".rstrip("?")
        expected = [
            url_for("links.show", link_id=link_id),
            *(
                f"/links/?{urlencode(Selection(selection.state, tag).parameters)}"
                for tag in ("été", "news")
            ),
        ]
        action = url_for(f"links.{state}", link_id=link_id, next=back)
    found = [each["href"] for each in row.select(".link-edit, .tags a")]
    assert sorted(map(unquote, map(str, found))) == sorted(map(unquote, expected))
    (form,) = row.select("form")
    assert unquote(str(form["action"])) == unquote(action)
