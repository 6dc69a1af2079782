"""The event stream, and single rows of the list for the script that listens to it."""

from typing import Any

from quart import Blueprint, Response, render_template
from quart.typing import ResponseReturnValue
from sqlalchemy.ext.asyncio import AsyncSession

from app.extensions import database
from app.links import queries, search
from app.links.views import LINK_PATH, selection_or_400
from app.user.login import logged_in_user, login_required
from quart_upsun.live.events import publish
from quart_upsun.live.views import stream
from quart_upsun.policy import no_rate_limit, no_store

blueprint = Blueprint("live", __name__, url_prefix="/links")


async def publish_change(
    _: object, *, session: AsyncSession, user_id: int, kind: str, data: dict[str, Any]
) -> None:
    """Publish an event for the user's open pages when the transaction commits."""
    await publish(session, user_id, kind, **data)


@blueprint.get("/events/")
@no_store
@login_required
@no_rate_limit("concurrent streams are limited instead")
async def events() -> Response:
    """Stream changes to open pages as server-sent events."""
    user = logged_in_user()
    return await stream(user.id, user_since=user.created_at)


@blueprint.get(f"{LINK_PATH}row/")
@no_store
@login_required
@no_rate_limit("one row by its key")
async def row(link_id: int) -> ResponseReturnValue:
    """Render one row of the list; 204 if the link was deleted or does not match the query."""
    selection = selection_or_400()
    async with database.read(exact=True) as session:
        item = await queries.get_link(session, logged_in_user().id, link_id)
    if item is None or not selection.includes(item):
        return "", 204
    return await render_template(
        "links/row.html", result=search.as_search_result(item), selection=selection
    )
