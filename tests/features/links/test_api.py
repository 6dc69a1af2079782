"""The JSON API of the reading list, with access tokens."""

import asyncio
from json import loads
from typing import Any, NamedTuple

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import text, update
from werkzeug.datastructures import Headers

from app.links.api import READ, WRITE
from app.links.models import Link
from quart_upsun.database import Database
from tests.features.api.resources import token_of
from tests.features.factories import Person

LINKS = "/api/v1/links"
EXAMPLE = "https://example.com/a"


class ApiResponse(NamedTuple):
    """A parsed response."""

    status: int
    headers: Headers
    body: Any


class Program:
    """An API client with a token."""

    def __init__(self, client: Client, token: str) -> None:
        self.client, self.token = client, token

    async def __call__(
        self, method: str, path: str, json: Any = None, **headers: str
    ) -> ApiResponse:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self.client.open(
            path, method=method, json=json, headers={"X-API-Key": self.token, **names}
        )
        text = await response.get_data(as_text=True)
        is_json = (response.content_type or "").partition(";")[0].endswith("json")
        return ApiResponse(
            response.status_code,
            response.headers,
            loads(text) if is_json else text,
        )

    async def save(self, url: str = EXAMPLE, **values: Any) -> ApiResponse:
        return await self("POST", LINKS, {"url": url, **values})


@pytest.fixture
async def ada(app: Quart, client: Client) -> Program:
    person = await Person("ada").register(app)
    return Program(client, await token_of(app, person, READ, WRITE))


@pytest.fixture
async def bob(app: Quart, client: Client) -> Program:
    person = await Person("bob").register(app)
    return Program(client, await token_of(app, person, READ, WRITE))


async def test_saving_an_existing_link_returns_it_unchanged(ada: Program) -> None:
    saved = await ada.save("HTTPS://Example.com:443/a", title="  An   example ", tags=["b", "a"])
    assert saved.status == 201
    link = saved.body
    assert (link["url"], link["title"], link["tags"]) == (EXAMPLE, "An example", ["a", "b"])
    assert (link["archived"], link["version"], link["fetched_at"]) == (False, 1, None)
    assert saved.headers["Location"] == f"{LINKS}/{link['id']}"
    assert saved.headers["ETag"] == '"1"'
    assert (await ada("GET", saved.headers["Location"])).body == link

    again = await ada.save(EXAMPLE, title="Another", tags=["c"])
    assert (again.status, again.body) == (200, link)


async def test_retry_with_idempotency_key_saves_once(ada: Program) -> None:
    body = {"url": EXAMPLE}
    first = await ada("POST", LINKS, body, Idempotency_Key="k1")
    second = await ada("POST", LINKS, body, Idempotency_Key="k1")
    assert (first.status, second.status, first.body) == (201, 201, second.body)
    assert second.headers["Idempotency-Replayed"] == "true"
    other = await ada("POST", LINKS, {"url": EXAMPLE + "b"}, Idempotency_Key="k1")
    assert other.status == 422


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({}, "#/url"),
        ({"url": "no address"}, "#/url"),
        ({"url": "ftp://example.com/"}, "#/url"),
        ({"url": "https://example.com/" + "a" * 5000}, "#/url"),
        ({"url": EXAMPLE, "tags": ["two words"]}, "#/tags/0"),
        ({"url": EXAMPLE, "tags": ["a", "a\x00b"]}, "#/tags/1"),
        ({"url": EXAMPLE, "tags": "a"}, "#/tags"),
        ({"url": EXAMPLE, "title": 7}, "#/title"),
        ({"url": EXAMPLE, "owner": 7}, "#/owner"),
    ],
)
async def test_validation_errors_point_to_the_invalid_field(
    ada: Program, body: dict[str, Any], place: str
) -> None:
    answer = await ada("POST", LINKS, body)
    assert answer.status == 422, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert [error["pointer"] for error in answer.body["errors"]] == [place]
    assert (await ada("GET", LINKS)).body["items"] == []


async def test_list_pagination_reaches_every_link(ada: Program) -> None:
    for number in range(5):
        await ada.save(f"{EXAMPLE}{number}", tags=["odd" if number % 2 else "even"])
    seen, path = [], f"{LINKS}?limit=2"
    while path:
        page = await ada("GET", path)
        assert page.status == 200
        seen += [link["url"] for link in page.body["items"]]
        path = page.body["next"]
        assert page.headers.get("Link") == (f'<{path}>; rel="next"' if path else None)
    assert seen == [f"{EXAMPLE}{number}" for number in range(4, -1, -1)]
    odd = await ada("GET", f"{LINKS}?tag=odd")
    assert [link["url"][-1] for link in odd.body["items"]] == ["3", "1"]


async def test_search_pagination_reaches_every_result(ada: Program) -> None:
    for number in range(5):
        await ada.save(f"{EXAMPLE}{number}", title=f"Sour dough {number}")
    await ada.save(f"{EXAMPLE}/other", title="Rye")
    seen, path = set(), f"{LINKS}?q=sour+dou&limit=2"
    while path:
        page = await ada("GET", path)
        seen |= {link["title"] for link in page.body["items"]}
        path = page.body["next"]
    assert seen == {f"Sour dough {number}" for number in range(5)}
    assert (await ada("GET", f"{LINKS}?q=sour&after=nonsense")).status == 422


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "state=new", "before=0", f"before={10**20}"],
)
async def test_rejects_invalid_query_parameters(ada: Program, query: str) -> None:
    answer = await ada("GET", f"{LINKS}?{query}")
    assert answer.status == 422
    assert [error["parameter"] for error in answer.body["errors"]] == [query.partition("=")[0]]


async def test_if_match_prevents_lost_updates(ada: Program) -> None:
    where = (await ada.save()).headers["Location"]
    changed = await ada("PATCH", where, {"archived": True, "tags": ["x"]}, If_Match='"1"')
    assert changed.status == 200
    assert (changed.body["archived"], changed.body["tags"]) == (True, ["x"])
    assert changed.headers["ETag"] == '"2"'
    for method, body in (("PATCH", {"title": "Old"}), ("DELETE", None)):
        assert (await ada(method, where, body, If_Match='"1"')).status == 412
    assert (await ada("GET", where, If_None_Match='"2"')).status == 304
    assert (await ada("GET", where, If_None_Match='"1"')).status == 200
    states = {
        state: len((await ada("GET", f"{LINKS}?state={state}")).body["items"])
        for state in ("unread", "archived", "all")
    }
    assert states == {"unread": 0, "archived": 1, "all": 1}
    assert (await ada("DELETE", where, If_Match='"2"')).status == 204
    assert (await ada("GET", where)).status == 404
    assert (await ada("DELETE", where)).status == 404


@pytest.mark.parametrize(
    ("header", "value", "read", "changed"),
    [
        ("If-Match", '"2"', 200, 200),
        ("If-Match", "*", 200, 200),
        # Any tag of the list matches, in any position.
        *(("If-Match", f'"2", "{number}"', 200, 200) for number in range(90, 99)),
        *(("If-Match", f'"{number}" , ,"2"', 200, 200) for number in range(90, 99)),
        ("If-Match", '"1"', 412, 412),
        ("If-Match", '"1", "3"', 412, 412),
        # A weak tag never matches `If-Match`.
        ("If-Match", 'W/"2"', 412, 412),
        ("If-Match", '"1", W/"2"', 412, 412),
        ("If-Match", '"x"', 412, 412),
        ("If-Match", '""', 412, 412),
        ("If-Match", "2", 400, 400),
        ("If-Match", '"2', 400, 400),
        ("If-Match", '"1" "2"', 400, 400),
        ("If-Match", '*, "2"', 400, 400),
        ("If-Match", "", 400, 400),
        ("If-Match", ",", 400, 400),
        ("If-None-Match", '"2"', 304, 412),
        ("If-None-Match", 'W/"2"', 304, 412),
        ("If-None-Match", '"1", W/"2"', 304, 412),
        ("If-None-Match", "*", 304, 412),
        ("If-None-Match", '"1", W/"1"', 200, 200),
        # Malformed: a full response is always correct, but a change may not be.
        ("If-None-Match", "2", 200, 400),
    ],
)
async def test_preconditions(
    ada: Program, header: str, value: str, read: int, changed: int
) -> None:
    where = (await ada.save()).headers["Location"]
    await ada("PATCH", where, {"archived": True})
    headers = {header: value}
    for method in ("GET", "HEAD"):
        answer = await ada(method, where, **headers)
        assert answer.status == read
        if read in {200, 304}:
            assert answer.headers["ETag"] == '"2"'
    for body in ({}, {"title": "New"}):
        answer = await ada("PATCH", where, body, **headers)
        assert answer.status == changed, body
        if changed == 200:
            # Recreate the link, so that the next request finds version 2.
            await ada("DELETE", where)
            where = (await ada.save(f"{EXAMPLE}/{len(body)}")).headers["Location"]
            await ada("PATCH", where, {"archived": True})
    assert (await ada("DELETE", where, **headers)).status == (204 if changed == 200 else changed)
    if changed != 200:
        kept = (await ada("GET", where)).body
        assert (kept["title"], kept["version"]) == ("", 2)


async def test_repeated_precondition_headers_are_combined(client: Client, ada: Program) -> None:
    where = (await ada.save()).headers["Location"]
    for header, status in (("If-Match", 200), ("If-None-Match", 304)):
        headers = Headers([("X-API-Key", ada.token), (header, '"9"'), (header, '"1"')])
        assert (await client.get(where, headers=headers)).status_code == status


async def test_preconditions_on_a_missing_link_return_404(ada: Program) -> None:
    for header in ("If-Match", "If-None-Match"):
        for method in ("GET", "PATCH", "DELETE"):
            body: Any = {} if method == "PATCH" else None
            assert (await ada(method, f"{LINKS}/1", body, **{header: "*"})).status == 404


async def test_if_match_waits_for_a_concurrent_update(app: Quart, ada: Program) -> None:
    """The precondition is evaluated after the concurrent change has been committed."""
    database: Database = app.extensions["quart_upsun"].database
    where = (await ada.save()).headers["Location"]
    id = int(where.rpartition("/")[2])
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    async with database.write() as session:
        await session.execute(update(Link).where(Link.id == id).values(version=2, title="First"))
        second = asyncio.create_task(ada("PATCH", where, {"title": "Second"}, If_Match='"1", "9"'))
        async with database.read() as other:
            while not await other.scalar(waiting):
                assert not second.done()
    assert (await second).status == 412
    assert (await ada("GET", where)).body["title"] == "First"


async def test_rejects_null_in_updates(ada: Program) -> None:
    where = (await ada.save(title="Old", tags=["a"])).headers["Location"]
    for name in ("title", "description", "tags", "archived"):
        answer = await ada("PATCH", where, {"title": "New", name: None})
        assert answer.status == 422
        assert [error["pointer"] for error in answer.body["errors"]] == [f"#/{name}"]
    assert (await ada("PATCH", where, {})).body == (await ada("GET", where)).body
    answer = await ada("PATCH", where, {"title": "", "tags": [], "description": ""})
    assert (answer.status, answer.body["title"], answer.body["tags"]) == (200, "", [])


async def test_openapi_document_excludes_null_in_updates(client: Client) -> None:
    document = await (await client.get("/openapi.json")).get_json()
    content = document["paths"][f"{LINKS}/{{id}}"]["patch"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    assert "null" in schema["description"]
    assert not schema.get("required")
    for name, each in schema["properties"].items():
        assert each["type"] != "null", name
        assert not {"default", "anyOf"} & each.keys(), name


@pytest.mark.parametrize("query", ["", "&q=sour", "&tag=t", "&state=unread"])
async def test_a_full_last_page_has_no_next(ada: Program, query: str) -> None:
    for number in range(4):
        await ada.save(f"{EXAMPLE}{number}", title="Sour dough", tags=["t"])
    for limit, pages in ((4, 1), (2, 2), (1, 4), (3, 2)):
        path, seen, sizes = f"{LINKS}?limit={limit}{query}", set(), []
        while path:
            page = await ada("GET", path)
            sizes.append(len(page.body["items"]))
            seen |= {link["id"] for link in page.body["items"]}
            path = page.body["next"]
            assert ("Link" in page.headers) == (path is not None)
        assert (len(sizes), len(seen)) == (pages, 4), limit
        assert 0 not in sizes


async def test_all_tags_can_be_listed(app: Quart, ada: Program, bob: Program) -> None:
    names = sorted(f"tag{number}" for number in range(401))
    await bob.save(tags=["theirs"])
    for start in range(0, len(names), 20):
        saved = await ada.save(f"{EXAMPLE}/{start}", tags=names[start : start + 20])
        assert saved.status == 201
    seen, sizes, path = [], [], "/api/v1/tags"
    while path:
        page = await ada("GET", path)
        seen += page.body["items"]
        sizes.append(len(page.body["items"]))
        path = page.body["next"]
        assert page.headers.get("Link") == (f'<{path}>; rel="next"' if path else None)
    assert (seen, sizes) == (names, [200, 200, 1])
    exact = await ada("GET", f"/api/v1/tags?limit=1&after={names[-2]}")
    assert exact.body == {"items": [names[-1]], "next": None}
    for query in ("limit=0", "limit=201", "after=%00", "after=" + "x" * 41):
        assert (await ada("GET", f"/api/v1/tags?{query}")).status == 422, query


async def test_links_of_other_users_return_404(ada: Program, bob: Program) -> None:
    where = (await ada.save(tags=["secret"])).headers["Location"]
    for method, body in (("GET", None), ("PATCH", {"title": "Mine"}), ("DELETE", None)):
        assert (await bob(method, where, body)).status == 404
    assert (await bob("GET", LINKS)).body == {"items": [], "next": None}
    assert (await bob("GET", "/api/v1/tags")).body == {"items": [], "next": None}
    assert (await ada("GET", "/api/v1/tags")).body == {"items": ["secret"], "next": None}


async def test_read_only_token_cannot_change_links(app: Quart, client: Client) -> None:
    person = await Person("ada").register(app)
    reader = Program(client, await token_of(app, person, READ))
    assert (await reader("GET", LINKS)).status == 200
    for method, path in (
        ("POST", LINKS),
        ("PATCH", f"{LINKS}/1"),
        ("DELETE", f"{LINKS}/1"),
    ):
        answer = await reader(method, path)
        assert (answer.status, answer.body["scope"]) == (403, "links:write")
