"""The debug bar: what it shows, and where it is not."""

import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from quart import Quart, Response, render_template
from sqlalchemy import select

from quart_upsun.http.headers import SECURITY_HEADERS
from quart_upsun.jobs import JobContext, Task, enqueue
from quart_upsun.platform import Environment
from quart_upsun.policy import cache_public, no_rate_limit, public
from quart_upsun.tests.sample import count_rows, create_app, upsun
from quart_upsun.tests.sample.settings import Settings


async def _nothing(job: JobContext) -> None:
    pass


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[Quart]:
    """The sample application in debug mode, with pages that use the database."""
    app = create_app(settings.model_copy(update={"flask_debug": True}))
    task = Task("debugged", _nothing)
    upsun_state = app.extensions["quart_upsun"]
    upsun_state.jobs.register(task)

    @app.get("/page")
    @cache_public(60)
    @public
    @no_rate_limit("a test")
    async def page() -> str:
        async with upsun.database.read() as session:
            await session.scalar(count_rows)
        async with upsun.database.direct() as connection:
            await connection.fetchval("SELECT 'fast path <b>'")
        return await render_template("about.html")

    @app.post("/enqueue")
    async def enqueue_job() -> Response:
        async with upsun.database.write() as session:
            await session.execute(select(1))
            await enqueue(session, task)
        return app.redirect("/page", 303)  # type: ignore[return-value]

    @app.get("/stream")
    async def stream() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"<body></body>"

        return Response(parts(), content_type="text/html")

    async with app.test_app():
        # The package of these views; the templates are loaded already.
        app.root_path = __file__.rpartition("/")[0]
        yield app


async def test_page_has_the_bar(app: Quart) -> None:
    client = app.test_client()
    await client.get("/page")  # opens the gate
    response = await client.get("/page")
    text = await response.get_data(as_text=True)
    _, _, bar = text.partition('<aside class="debug-bar" aria-label="Debug bar">')
    assert "GET /page 200" in bar
    assert "queries: 2," in bar
    assert "SELECT count(mails.id) AS count_1 FROM mails" in bar
    assert "SELECT &#39;fast path &lt;b&gt;&#39;" in bar
    assert bar.count("test_debug_bar.py:") == 2
    assert "about.html" in bar
    assert "public, max-age=0, s-maxage=60" in bar
    assert "a test" in bar
    # The policy allows neither scripts nor inline styles, and stays as it is.
    name = "Content-Security-Policy"
    assert response.headers[name] == SECURITY_HEADERS[name]
    assert "<script" not in bar
    assert "style=" not in bar
    assert response.content_length == len(await response.get_data())
    assert (await client.get("/dev/debug-bar.css")).mimetype == "text/css"


async def test_jobs_are_shown_on_the_page_after_the_redirect(app: Quart) -> None:
    client = app.test_client()
    response = await client.post("/enqueue")
    assert await response.get_data(as_text=True) != ""
    text = await (await client.get("/page")).get_data(as_text=True)
    assert "Jobs enqueued by POST /enqueue: debugged" in text
    again = await (await client.get("/page")).get_data(as_text=True)
    assert "debugged" not in again


async def test_other_responses_stay_as_they_are(app: Quart) -> None:
    client = app.test_client()
    assert await (await client.get("/stream")).get_data() == b"<body></body>"
    assert "debug-bar" not in await (await client.get("/readyz")).get_data(as_text=True)


async def test_bar_is_impossible_on_upsun(settings: Settings) -> None:
    environment = Environment(
        name="main-bvxea6i",
        type="development",
        release="1f3a",
        branch="main",
        origin="https://www.example.com",
        hosts=frozenset({"www.example.com"}),
        smtp_host="",
    )
    on_upsun = settings.model_copy(update={"flask_debug": True, "platform": environment})
    app = create_app(on_upsun)
    assert "debug_bar.style" not in app.view_functions
    response = await app.test_client().get("/about/", headers={"Host": "www.example.com"})
    assert "debug-bar" not in await response.get_data(as_text=True)
    from quart_upsun.web import debug_bar

    with pytest.raises(RuntimeError, match="must not run on Upsun"):
        debug_bar.init_app(app, on_upsun, app.extensions["quart_upsun"].database)


def test_bar_costs_nothing_when_it_is_off() -> None:
    code = (
        "import sys\n"
        "from quart_upsun.tests.sample import create_app\n"
        "create_app()\n"
        "print('quart_upsun.web.debug_bar' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"DATABASE_URL": "postgresql://a@127.0.0.1:9/a", "SECRET_KEY": "x"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False\n", done.stderr
