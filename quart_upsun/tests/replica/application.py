"""The sample application with values that are read from a replica, on the real server."""

import sys

from quart import Quart, Response, request
from sqlalchemy import text

from quart_upsun.api.auth import TokenUser, scope_required
from quart_upsun.api.scopes import Scope
from quart_upsun.current import current_toolkit
from quart_upsun.database.log_position import recent_position
from quart_upsun.policy import cache_public, no_store, public
from quart_upsun.server import serve as server
from quart_upsun.tests.sample import Settings, create_app, load, upsun

NAME = "quart_upsun.tests.replica.application"

READ, WRITE = Scope("things:read", "Read"), Scope("things:write", "Write")

CREATE = "CREATE TABLE IF NOT EXISTS settings_of (name text PRIMARY KEY, value bigint NOT NULL)"
SELECT = "SELECT value FROM settings_of WHERE name = '{}'"
UPSERT = text(
    "INSERT INTO settings_of VALUES (:name, :value)"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)


def factory(settings: Settings) -> Quart:
    app = create_app(settings)
    app.extensions["quart_upsun"].token_authenticator = authenticate
    for path, endpoint, view, methods in (
        ("/values/<name>", "show", show, ["GET"]),
        ("/values/<name>", "change", change, ["POST"]),
        ("/public/<name>", "show_public", show_public, ["GET"]),
        ("/counted/<name>", "count", count, ["GET"]),
        ("/server", "server", which_server, ["GET"]),
        ("/api/v1/values/<name>", "api_show", api_show, ["GET"]),
        ("/api/v1/values/<name>", "api_change", api_change, ["POST"]),
    ):
        app.add_url_rule(path, endpoint, view, methods=methods)
    return app


async def authenticate(token: str) -> TokenUser | None:
    """Accept `token-<user id>`, and read the position of the user."""
    from sqlalchemy import BigInteger, bindparam, select

    user_id = int(token.removeprefix("token-"))
    query = select(recent_position(bindparam("user", type_=BigInteger)))
    async with upsun.database.read(exact=True) as session:
        position = await session.scalar(query, {"user": user_id})
    scopes = frozenset({"things:read", "things:write"})
    return TokenUser(user_id, f"user{user_id}", scopes, position or 0)


async def read_value(name: str) -> str:
    """Read with a session or a connection, as the query says."""
    database = current_toolkit().database
    if "direct" in request.args:
        async with database.direct() as connection:
            return str(await connection.fetchval(SELECT.format(name)))
    async with database.read() as session:
        return str(await session.scalar(text(SELECT.format(name))))


async def write_value(name: str) -> None:
    async with upsun.database.write() as session:
        await session.execute(UPSERT, {"name": name, "value": int(request.args["value"])})


@no_store
@public
async def show(name: str) -> str:
    return await read_value(name)


@no_store
@public
async def change(name: str) -> Response:
    """Write, and return what the same request reads then."""
    await write_value(name)
    return Response(await read_value(name))


@cache_public(60)
@public
async def show_public(name: str) -> str:
    return await read_value(name)


@cache_public(60)
@public
async def count(name: str) -> str:
    """Write, although the response may be cached."""
    await write_value(name)
    return "counted"


@no_store
@public
async def which_server() -> str:
    async with upsun.database.read() as session:
        is_replica = await session.scalar(text("SELECT pg_is_in_recovery()"))
    return "replica" if is_replica else "primary"


@no_store
@scope_required(READ)
async def api_show(name: str) -> str:
    return await read_value(name)


@no_store
@scope_required(WRITE)
async def api_change(name: str) -> Response:
    await write_value(name)
    return Response(status=204)


if __name__ == "__main__":
    sys.exit(server.main(factory, load))
