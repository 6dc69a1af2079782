"""Public lists: a page and an Atom feed that the router may cache, and publishing by the owner."""

import re
from urllib.parse import urlsplit

from quart import (
    Blueprint,
    Response,
    abort,
    current_app,
    flash,
    redirect,
    render_template,
    request,
    url_for,
)
from quart.typing import ResponseReturnValue

from app.extensions import database
from app.links import public_lists, queries, tags
from app.links.public_lists import SharedList
from app.links.queries import LinkItem
from app.links.selection import parse_id
from app.user.login import confirmed_required, logged_in_user, login_required
from quart_upsun.http.preconditions import make_conditional
from quart_upsun.policy import cache_public, no_store, not_audited, public
from quart_upsun.security.limits import Limit, by_account, rate_limit

blueprint = Blueprint("lists", __name__)

PUBLISH_LIMIT = Limit("lists", 30, 600)
# Per client. Responses from the router's cache do not count.
READ_LIMIT = Limit("lists-read", 120, 60)

PAGE_SIZE = 30
# XML 1.0 does not allow these, not even escaped.
INVALID_XML_CHARACTERS = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@blueprint.get("/lists/<username>/<tag>/")
@cache_public(300)
@public
@rate_limit(READ_LIMIT)
async def show(username: str, tag: str) -> ResponseReturnValue:
    """Show the links of a list; `before` is the cursor. The page is the same for every visitor."""
    before = request.args.get("before")
    try:
        before_id = parse_id(before) if before else None
    except ValueError:
        abort(400)
    found, links = await load_list_or_404(username, tag, before_id)
    return await render_template(
        "links/public.html",
        public_list=found,
        links=links[:PAGE_SIZE],
        has_more=len(links) > PAGE_SIZE,
        before=before_id,
    )


@blueprint.get("/lists/<username>/<tag>/feed.atom")
@cache_public(300)
@public
@rate_limit(READ_LIMIT)
async def feed(username: str, tag: str) -> Response:
    """Return the newest links of a list as an Atom feed (RFC 4287)."""
    found, links = await load_list_or_404(username, tag)
    xml = await render_template(
        "links/feed.xml",
        public_list=found,
        links=links[:PAGE_SIZE],
        updated=max([found.created_at, *(each.updated_at for each in links[:PAGE_SIZE])]),
        origin=current_app.config["PUBLIC_ORIGIN"],
        tag_uri=tag_uri,
    )
    response = Response(
        INVALID_XML_CHARACTERS.sub("", xml), content_type="application/atom+xml; charset=utf-8"
    )
    await response.add_etag()
    # Feed readers poll often, and the feed seldom changes.
    return make_conditional(response)


@blueprint.post("/lists/<tag>/publish/")
@no_store
@confirmed_required
@rate_limit(PUBLISH_LIMIT, by_account)
@not_audited("not security relevant")
async def publish(tag: str) -> ResponseReturnValue:
    """Publish the links of a tag, including links that get the tag later."""
    tag = tag_or_404(tag)
    async with database.write() as session:
        await public_lists.publish_tag(session, logged_in_user().id, tag)
    await flash("This list is now public.", "success")
    return redirect(url_for("links.index", tag=tag), 303)


@blueprint.post("/lists/<tag>/withdraw/")
@no_store
@login_required
@rate_limit(PUBLISH_LIMIT, by_account)
@not_audited("not security relevant")
async def withdraw(tag: str) -> ResponseReturnValue:
    tag = tag_or_404(tag)
    async with database.write() as session:
        await public_lists.unpublish_tag(session, logged_in_user().id, tag)
    await flash("This list is private again. Cached copies expire within five minutes.", "success")
    return redirect(url_for("links.index", tag=tag), 303)


async def load_list_or_404(
    username: str, tag: str, before: int | None = None
) -> tuple[SharedList, list[LinkItem]]:
    """Return a list and its links, one more than fits on a page; abort with 404 if not public."""
    async with database.read() as session:
        found = await public_lists.find_public_list(session, username, tag)
        if found is None:
            abort(404)
        links = await queries.list_links(
            session, found.user_id, tag=found.tag, before=before, limit=PAGE_SIZE + 1
        )
    return found, links


def tag_or_404(tag: str) -> str:
    """Return the normalized tag; abort with 404 if it is invalid."""
    try:
        return tags.parse_tag(tag)
    except ValueError:
        abort(404)


def tag_uri(item: SharedList | LinkItem) -> str:
    """Return the permanent id of the feed or of an entry (RFC 4151)."""
    host = urlsplit(current_app.config["PUBLIC_ORIGIN"]).hostname or "localhost"
    name = f"link/{item.id}" if isinstance(item, LinkItem) else f"list/{item.user_id}/{item.tag}"
    return f"tag:{host},{item.created_at:%Y-%m-%d}:{name}"
