"""The compared Flask and FastAPI applications, and the comparison."""

import asyncio
import re
from contextlib import closing, suppress
from dataclasses import replace
from itertools import count
from typing import Any
from urllib.parse import urlencode

import pytest
from jinja2 import Environment, FileSystemLoader, select_autoescape
from quart import Quart
from quart.testing import QuartClient as Client

from app.links import queries
from app.settings import ROOT, Settings
from app.site import get_site
from app.user import sessions
from benchmarks import chart, pages, report
from benchmarks.load import LoadOptions, Measured, NoResponseError, measure
from benchmarks.servers import OURS
from benchmarks.side_by_side.pages import site, tables
from quart_upsun.database import Database
from quart_upsun.testing.statements import Statements
from tests.features.factories import Person

PEERS = ROOT / "benchmarks" / "side_by_side"
PATHS = {
    "public.home": "/",
    "user.login": "/login/",
    "user.members": "/users/",
    "links.index": "/links/",
    **site.OTHER_PATHS,
}
MEASURED = {
    "requests_per_second": 1000,
    "p50_ms": 1.5,
    "p99_ms": 12.5,
    "longest_ms": 30,
    "cpu_ms": 0.9,
    "errors": 0,
    "timeouts": 0,
}


def test_packages_are_pinned_by_hash() -> None:
    text = (PEERS / "requirements.txt").read_text()
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text
    requirements = re.findall(r"^[a-z].*$", text, re.MULTILINE)
    assert all("==" in line and line.endswith("\\") for line in requirements)
    required = re.findall(r"^[a-z0-9-]+", (PEERS / "requirements.in").read_text(), re.MULTILINE)
    assert len(required) > 10
    assert {line.partition("==")[0] for line in requirements} >= set(required)


@pytest.fixture
async def ada(app: Quart, client: Client) -> Person:
    """A user with more links than the page shows, who is logged in with `client`."""
    person = await Person("ada").register(app)
    async with app.extensions["quart_upsun"].database.write() as session:
        for number in range(tables.PAGE_SIZE + 5):
            url = f"https://example.com/{number}?a=1&b=2"
            link, _ = await queries.save_link(
                session,
                person.id,
                url,
                title=f"“{number}” < & >" if number % 2 else "",
                tags=[f"tag{number}", "c++"],
            )
            if number % 3 == 0:
                await queries.update_link(session, person.id, link.id, description="<b>bold</b>")
            if number % 5 == 0:
                await queries.update_link(session, person.id, link.id, archived=True)
    await person.log_in(client)
    await client.get("/users/")  # shows the message that the user is logged in
    return person


def url_for(endpoint: str, **values: Any) -> str:
    path = PATHS[endpoint]
    return f"{path}?{urlencode(values)}" if values else path


async def login_of(database: Database, person: Person) -> str:
    """Return the content of the login cookie of the compared applications."""
    async with database.read() as session:
        (current,) = await sessions.list_sessions(session, person.id)
    return f"{person.id}.1.{current.id}"


async def contexts(database: Database, login: str) -> dict[str, dict[str, Any]]:
    """Run the queries of the compared applications; return the context of each page."""
    async with database.read() as session:
        user = await session.scalar(tables.find_user(login))
        assert user is not None
        members = (await session.execute(tables.newest_members())).all()
        newest_event_id = await session.scalar(tables.newest_event(user.id))
        links = (await session.scalars(tables.unread_links(user.id))).all()
        tags = (await session.scalars(tables.all_tags(user.id))).all()
    return {
        "home": {"current_user": None},
        "members": {"current_user": user, "members": members},
        "list": {"current_user": user, **site.list_context(newest_event_id, links, tags)},
    }


async def test_compared_applications_render_the_same_pages(
    app: Quart, client: Client, ada: Person, settings: Settings
) -> None:
    templates = Environment(
        loader=FileSystemLoader(site.TEMPLATES),
        autoescape=select_autoescape(),
        **site.JINJA_OPTIONS,
    )
    templates.filters.update(site.FILTERS)
    templates.globals.update(
        site.GLOBALS,
        site_name=settings.site_name,
        url_for=url_for,
        get_flashed_messages=lambda with_categories: [],
    )
    # The compared pages have the menu of this application without features of your own.
    menu = get_site(app).menu
    menu[:] = [entry for entry in menu if entry.endpoint in PATHS]
    anonymous = app.test_client()
    names = {"home": "public/home.html", "members": "user/members.html", "list": "links/index.html"}
    database = app.extensions["quart_upsun"].database
    found = await contexts(database, await login_of(database, ada))
    for page, context in found.items():
        path = pages.PAGES[page].path
        visitor = client if pages.PAGES[page].needs_login else anonymous
        response = await visitor.get(path)
        assert response.status_code == 200
        rendered = templates.get_template(names[page]).render(
            context, request={"path": path}, login_bar=context["current_user"] is None
        )
        pages.compare("the compared applications", page, rendered, await response.get_data(True))


async def test_compared_applications_run_the_same_queries(
    app: Quart, client: Client, ada: Person
) -> None:
    database = app.extensions["quart_upsun"].database
    login = await login_of(database, ada)
    statements = Statements(app)
    for page in ("members", "list"):
        await client.get(pages.PAGES[page].path)
    ours, statements.seen = statements.seen, []
    await contexts(database, login)
    assert {normalize(each) for each in statements.seen} == {normalize(each) for each in ours}


def normalize(statement: str) -> str:
    """Return a statement without its parameters, whose casts and order may differ."""
    return re.sub(r"\$\d+(::\w+)?", "?", " ".join(statement.split())).replace(" ;", "")


RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def load(*responses: bytes | None, wait_seconds: float = 10) -> Measured:
    """Measure a server that sends these responses in turn. None closes the connection."""
    numbers = count()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                response = responses[next(numbers) % len(responses)]
                if response is None:
                    break
                writer.write(response)

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        options = LoadOptions(
            port, "/", connections=2, warm_up=0, seconds=0.4, timeout=wait_seconds
        )
        return await measure(replace(options, body="ok"))


async def test_load_generator_counts_responses() -> None:
    measured = await load(RESPONSE)
    assert measured.requests > 10
    assert (measured.errors, measured.timeouts, measured.first_error) == (0, 0, "")


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (None, "connection lost: None"),
        (RESPONSE.replace(b"ok", b"no"), "unexpected response body"),
        (RESPONSE.replace(b"200 OK", b"500 Error"), "HTTP/1.1 500 Error"),
    ],
)
async def test_load_generator_counts_errors_and_continues(
    response: bytes | None, error: str
) -> None:
    measured = await load(RESPONSE, response)
    assert measured.requests > 10
    assert measured.errors > 5
    assert measured.first_error.startswith(error)


async def test_load_generator_counts_requests_that_wait() -> None:
    # Each connection gets one response, and then none.
    measured = await load(RESPONSE, RESPONSE, *[b""] * 100, wait_seconds=0.2)
    assert measured.timeouts == 2
    assert measured.errors == 0
    assert measured.longest > 200


async def test_load_generator_sends_variants_in_turn() -> None:
    received: list[bytes] = []

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                received.append(head + await reader.readexactly(3))
                writer.write(
                    b"HTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\n%d" % (len(received) % 9)
                )

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        options = LoadOptions(port, "/save", {"X-Kind": "test"}, 1, 0, 0.4, body=None, status=201)
        variants = [({"X-Number": "1"}, "one"), ({"X-Number": "2"}, "two")]
        measured = await measure(replace(options, method="POST", variants=variants))
    assert (measured.errors, measured.first_error) == (0, "")
    assert measured.requests > 10
    for number, request in enumerate(received):
        assert request.startswith(b"POST /save HTTP/1.1\r\n")
        assert b"\r\nX-Kind: test\r\n" in request
        assert b"\r\nContent-Length: 3\r\n" in request
        assert request.endswith((b"X-Number: 1\r\n\r\none", b"X-Number: 2\r\n\r\ntwo")[number % 2])


async def test_load_generator_needs_a_response(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NoResponseError):
        await load(RESPONSE.replace(b"ok", b"no"))
    assert "GET /: no response. unexpected response body" in capfd.readouterr().err


def test_different_page_is_reported_with_its_first_difference() -> None:
    pages.compare("Flask", "home", "<p>one</p>\n", "<p>one</p>\n")
    with pytest.raises(pages.DifferentPageError, match=r"Flask: the home page(.|\n)*\+<p>two</p>"):
        pages.compare("Flask", "home", "<p>two</p>\n", "<p>one</p>\n")


def results(**rates: int) -> dict[str, Any]:
    """Return results with 1,000 requests/s, except for those of this application."""
    ours = {page: MEASURED | {"requests_per_second": rates[page]} for page in pages.PAGES}
    names = (OURS, *pages.peer_commands(ROOT))
    servers = {name: {"mb": 100, "pages": dict.fromkeys(pages.PAGES, MEASURED)} for name in names}
    servers[OURS] = {"mb": 100, "pages": ours}
    bare = {"name": pages.BARE, "mb": 30, **MEASURED}
    return {"bare": bare, "ours": OURS, "servers": servers}


def missed(result: dict[str, Any]) -> list[str]:
    return [each["target"] for each in pages.check_targets(result) if not each["ok"]]


def test_targets_of_pages_are_checked() -> None:
    assert missed(results(home=600, members=3000, list=200)) == []
    slow = missed(results(home=590, members=340, list=190))
    assert [each.partition(" times")[0] for each in slow] == [
        "home page: at least 0.6",
        "members page: at least 0.35",
        "members page: at least 1.5",
        "members page: at least 3",
        "list page: at least 0.2",
    ]


def test_memory_errors_and_timeouts_of_pages_are_checked() -> None:
    result = results(home=3000, members=3000, list=3000)
    result["servers"][OURS]["mb"] = pages.MAX_MB + 1
    result["servers"][OURS]["pages"]["list"]["timeouts"] = 1
    assert missed(result) == [
        "pages: at most 140 MB of memory after the load",
        "pages: no errors and no timeouts",
    ]


def test_report_of_pages_shows_missed_targets() -> None:
    result = results(home=590, members=3000, list=200)
    result["targets"] = pages.check_targets(result)
    text = report.section({"pages": result})
    assert f"| home | {OURS} | 590 | 0.59 | 1.5 ms | 12.5 ms |" in text
    lines = [line for line in text.splitlines() if "**missed**" in line]
    assert len(lines) == 1
    assert lines[0].startswith("| home page: at least 0.6 times the requests/s of bare Quart")
    charts = report.charts({"pages": result})
    for file, svg in charts.items():
        assert f"{report.IMAGES}/{file}" in text
        assert (ROOT / "docs" / report.IMAGES / file).exists()
        assert "590/s · p99 12 ms" in svg
        labels = re.findall(r'class="label \w+"[^>]*>([^<]+)<', svg)
        assert labels[:2] == ["bare Quart", "this application"]
        assert max(map(len, labels)) * 8 <= chart.LABEL_WIDTH  # pixels of an average character
