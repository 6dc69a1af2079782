"""The button that fetches the page of a link again."""

from quart import Blueprint, abort, flash, redirect, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database
from app.fetching.jobs import enqueue_fetches
from app.links import queries
from app.links.views import LINK_PATH
from app.user.login import logged_in_user, login_required
from quart_upsun.policy import no_store, not_audited
from quart_upsun.security.limits import Limit, by_account, rate_limit

blueprint = Blueprint("fetching", __name__, url_prefix="/links")

FETCH_LIMIT = Limit("links-fetch", 20, 60)


@blueprint.post(f"{LINK_PATH}fetch/")
@no_store
@login_required
@rate_limit(FETCH_LIMIT, by_account)
@not_audited("concerns no account")
async def refetch(link_id: int) -> ResponseReturnValue:
    """Fetch the page of a link again."""
    async with database.write() as session:
        if await queries.get_link(session, logged_in_user().id, link_id) is None:
            abort(404)
        await enqueue_fetches(session, [link_id])
    await flash("Fetching the page again.", "info")
    return redirect(url_for("links.show", link_id=link_id), 303)
