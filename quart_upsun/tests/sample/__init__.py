"""A sample application for the toolkit's tests: pages and an API that use one table.

It has no users table. The access token `token-7` authenticates the user with the id 7.
"""

from quart import Quart, Response, jsonify, redirect, render_template, request
from sqlalchemy import func, insert, select

from quart_upsun import QuartUpsun, api
from quart_upsun.api.auth import TokenUser
from quart_upsun.mail.models import Mail
from quart_upsun.tests.sample.settings import Settings, load

__all__ = ["Settings", "add_row", "count_rows", "create_app", "load"]

upsun = QuartUpsun()

add_row = insert(Mail).values(message="")
"""Insert a row into the table that the database tests use."""

count_rows = select(func.count(Mail.id))


def create_app(settings: Settings | None = None) -> Quart:
    app = Quart(__name__, static_folder=None)
    state = upsun.init_app(app, settings or load())
    state.token_authenticator = authenticate
    api.init_app(app)
    app.add_url_rule("/", view_func=home)
    app.add_url_rule("/about/", view_func=about)
    app.add_url_rule("/rows/", view_func=rows)
    app.add_url_rule("/rows/", "add", view_func=add, methods=["POST"])
    app.add_url_rule("/api/v1/rows", "api_rows", view_func=api_rows)
    return app


async def authenticate(token: str) -> TokenUser | None:
    """Accept every token of the form `token-<user id>`."""
    number = token.removeprefix("token-")
    if number == token or not number.isdecimal():
        return None
    scopes = frozenset({"things:read", "things:write"})
    return TokenUser(int(number), f"user{number}", scopes)


async def home() -> str:
    return await render_template("home.html")


async def about() -> str:
    return await render_template("about.html")


async def rows() -> str:
    """Return the number of rows, read with an ORM session."""
    async with upsun.database.read() as session:
        return str(await session.scalar(count_rows))


async def add() -> Response:
    """Insert a row of the kind given in the form."""
    kind = (await request.form).get("kind", "")
    async with upsun.database.write() as session:
        await session.execute(add_row, {"kind": kind})
    return redirect("/rows/", 303)  # type: ignore[return-value]


async def api_rows() -> Response:
    """Return the number of rows, read with asyncpg."""
    async with upsun.database.direct() as connection:
        return jsonify(await connection.fetchval("SELECT count(*) FROM mails"))
