"""A small API resource for tests."""

from typing import Annotated

from pydantic import BaseModel, Field
from quart import Blueprint, Quart, Response, abort
from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from werkzeug.exceptions import TooManyRequests

from quart_upsun.api.auth import by_caller, current_caller, scope_required
from quart_upsun.api.idempotency import idempotent
from quart_upsun.api.problems import Problem
from quart_upsun.api.scopes import Scope
from quart_upsun.api.validation import (
    Text,
    document_problem,
    document_response,
    json_response,
    validate_json,
    validate_query,
)
from quart_upsun.database import DatabaseUnavailableError
from quart_upsun.policy import no_store, not_audited
from quart_upsun.security.limits import Limit, rate_limit
from quart_upsun.security.models import AuditEvent

READ = Scope("things:read", "Read things")
WRITE = Scope("things:write", "Create things")
CHANGES = Limit("things", 30, 60)


class Thing(BaseModel, extra="forbid"):
    """A thing."""

    name: Annotated[Text, Field(min_length=1, max_length=20)]
    sizes: list[int] = []


class ThingsQuery(BaseModel):
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    kind: Text | None = None


def things(limit: Limit) -> Blueprint:
    blueprint = Blueprint("things", __name__, url_prefix="/api/v1/things")

    @blueprint.post("")
    @no_store
    @scope_required(WRITE)
    @rate_limit(limit, by_caller)
    @not_audited("a test")
    @validate_json(Thing)
    @document_response(201, Thing, headers={"Location": "The URL of the thing"})
    @document_problem(409, "The thing already exists.")
    @idempotent
    async def create_thing(session: AsyncSession, data: Thing) -> Response:
        """Create a thing."""
        await session.execute(
            insert(AuditEvent).values(kind="thing made", user_id=current_caller().id)
        )
        match data.name:
            case "slow":
                await session.execute(text("SELECT pg_sleep(0.3)"))
            case "taken":
                raise Problem(409, "The thing already exists.", existing="/api/v1/things/1")
            case "crash":
                raise ValueError(f"cannot make {data.name}, {data.sizes}")
        count = await session.scalar(select(func.count()).select_from(AuditEvent))
        headers = {"Location": f"/api/v1/things/{count}", "ETag": f'"{count}"'}
        return json_response(data, 201, headers=headers)

    @blueprint.get("")
    @no_store
    @scope_required(READ)
    @validate_query(ThingsQuery)
    @document_response(200, Thing)
    async def list_things(query: ThingsQuery) -> Response:
        """List things."""
        return json_response(Thing(name="all", sizes=[query.limit]))

    @blueprint.get("/<int:number>")
    @no_store
    @scope_required(READ)
    @document_response(200, Thing)
    async def show_thing(number: int) -> Response:
        """Return a thing."""
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
                raise DatabaseUnavailableError("the inside")
            case _ if number >= 2**63:
                abort(404)
        return json_response(Thing(name="one", sizes=[number]))

    return blueprint


async def made(app: Quart) -> int:
    """Return how many things were created."""
    async with app.extensions["quart_upsun"].database.read() as session:
        count = select(func.count()).where(AuditEvent.kind == "thing made")
        return int(await session.scalar(count) or 0)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}
