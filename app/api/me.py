"""The `/api/v1/me` resource: the current user."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field
from quart import Blueprint, Response
from quart_schema import tag_blueprint

from app.extensions import database
from app.user import accounts
from quart_upsun.api.auth import current_caller, scope_required, unauthorized
from quart_upsun.api.problems import DETAILS
from quart_upsun.api.scopes import Scope
from quart_upsun.api.validation import document_response, json_response
from quart_upsun.policy import no_rate_limit, no_store

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")
tag_blueprint(blueprint, ["Account"])

READ = Scope("me:read", "Read your username and email address")


class Me(BaseModel):
    """The current user."""

    id: int
    username: str
    email: str | None = Field(description="Confirmed email address, or null if none is confirmed")
    created_at: datetime
    via: Literal["token", "session"] = Field(description="How the request was authenticated")


@blueprint.get("/me")
@no_store
@scope_required(READ)
@no_rate_limit("reads one row by primary key")
@document_response(200, Me)
async def me() -> Response:
    """Return the current user."""
    async with database.read(exact=True) as session:
        user = await accounts.get_user(session, current_caller().id)
    if user is None:  # deleted since the request was authenticated
        raise unauthorized(DETAILS[401])
    return json_response(
        Me(
            id=user.id,
            username=user.username,
            email=user.email,
            created_at=user.created_at,
            via=current_caller().via,
        )
    )
