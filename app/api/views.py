"""The one resource that the API brings itself: who is asking."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field
from quart import Blueprint, Response
from quart_schema import tag_blueprint

from app.api.auth import caller, scoped, unauthorized
from app.api.operations import answer, answers
from app.api.problems import DETAILS
from app.api.scopes import Scope
from app.database import read
from app.http import private
from app.security.limits import unlimited
from app.user import accounts

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")
tag_blueprint(blueprint, ["Account"])

READ = Scope("me:read", "See your user name and address")


class Me(BaseModel):
    """The account that asks."""

    id: int
    username: str
    email: str | None = Field(description="The confirmed address; null until one is")
    created_at: datetime
    via: Literal["token", "session"] = Field(description="How the request was let in")


@blueprint.get("/me")
@private
@scoped(READ)
@unlimited("one row by its key")
@answers(200, Me)
async def me() -> Response:
    """Tell who is asking."""
    async with read() as session:
        user = await accounts.by_id(session, caller().id)
    if user is None:  # deleted between the two queries
        raise unauthorized(DETAILS[401])
    return answer(
        Me(
            id=user.id,
            username=user.username,
            email=user.email,
            created_at=user.created_at,
            via=caller().via,
        )
    )
