"""A small resource for tests of what all resources share, and tokens for it.

`python -m tests.features.api.resources` serves it.
"""

import sys
from typing import Annotated

from pydantic import BaseModel, Field
from quart import Blueprint, Quart, Response, abort
from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from werkzeug.exceptions import TooManyRequests

from app import create_app, server
from app.api import tokens
from app.api.auth import by_caller, caller, scoped
from app.api.idempotency import idempotent
from app.api.operations import Text, answer, answers, asks, refuses, takes
from app.api.problems import Problem
from app.api.scopes import Scope
from app.database import Unavailable
from app.http import private
from app.security.audit import unaudited
from app.security.limits import Limit, limited
from app.security.models import AuditEvent
from app.settings import Settings
from app.user import accounts
from tests.features.factories import Person

READ = Scope("things:read", "See things")
WRITE = Scope("things:write", "Make things")
CHANGES = Limit("things", 30, 60)


class Thing(BaseModel, extra="forbid"):
    """Something."""

    name: Annotated[Text, Field(min_length=1, max_length=20)]
    sizes: list[int] = []


class Which(BaseModel):
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    kind: Text | None = None


def things(limit: Limit) -> Blueprint:
    blueprint = Blueprint("things", __name__, url_prefix="/api/v1/things")

    @blueprint.post("")
    @private
    @scoped(WRITE)
    @limited(limit, by_caller)
    @unaudited("nobody's")
    @takes(Thing)
    @answers(201, Thing, headers={"Location": "Where it is"})
    @refuses(409, "There is one already.")
    @idempotent
    async def make(session: AsyncSession, data: Thing) -> Response:
        """Make a thing."""
        await session.execute(insert(AuditEvent).values(kind="thing made", user_id=caller().id))
        match data.name:
            case "slow":
                await session.execute(text("SELECT pg_sleep(0.3)"))
            case "taken":
                raise Problem(409, "There is one already.", existing="/api/v1/things/1")
            case "crash":
                raise ValueError(f"cannot make {data.name}, {data.sizes}")
        count = await session.scalar(select(func.count()).select_from(AuditEvent))
        headers = {"Location": f"/api/v1/things/{count}", "ETag": f'"{count}"'}
        return answer(data, 201, headers=headers)

    @blueprint.get("")
    @private
    @scoped(READ)
    @asks(Which)
    @answers(200, Thing)
    async def listed(query: Which) -> Response:
        """List things."""
        return answer(Thing(name="all", sizes=[query.limit]))

    @blueprint.get("/<int:number>")
    @private
    @scoped(READ)
    @answers(200, Thing)
    async def one(number: int) -> Response:
        """Show a thing."""
        match number:
            case 408 | 410:
                abort(number)
            case 429:
                raise TooManyRequests(retry_after=7)
            case 500:
                raise ValueError("the inside")
            case 502:
                abort(502, "the inside")
            case 503:
                raise Unavailable("the inside")
            case _ if number >= 2**63:
                abort(404)
        return answer(Thing(name="one", sizes=[number]))

    return blueprint


def application(settings: Settings, limit: Limit = CHANGES) -> Quart:
    """The application with things."""
    app = create_app(settings)
    app.register_blueprint(things(limit))
    return app


async def made(app: Quart) -> int:
    """How many things were made."""
    async with app.extensions["database"].read() as session:
        count = select(func.count()).where(AuditEvent.kind == "thing made")
        return int(await session.scalar(count) or 0)


async def token_of(app: Quart, person: Person, *scopes: Scope, days: int = 7) -> str:
    """Make a token without a form."""
    async with app.extensions["database"].write() as session:
        user = await accounts.by_id(session, person.id)
        assert user is not None
        names = [scope.name for scope in scopes or (READ, WRITE)]
        return await tokens.make(session, user, name="a test", scopes=names, days=days)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


if __name__ == "__main__":
    # To a program that tries everything no limit shall get into the way.
    sys.exit(server.main(lambda settings: application(settings, Limit("things", 10**6, 1))))
