"""The reading list's pages for its owner."""

from quart import Blueprint, Response, abort, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database
from app.links import hooks, public_lists, queries, search
from app.links.forms import EditForm, SaveForm
from app.links.selection import SEARCH_LIMIT, Selection
from app.user.login import logged_in_user, login_required
from quart_upsun.http.preconditions import make_conditional
from quart_upsun.http.redirects import safe_redirect_target
from quart_upsun.policy import cache_immutable, no_rate_limit, no_store, not_audited, public
from quart_upsun.security.limits import Limit, by_account, is_search, rate_limit
from quart_upsun.web.forms import add_form_error

blueprint = Blueprint("links", __name__, url_prefix="/links")
blueprint.add_app_template_filter(search.highlight)

SAVE_LIMIT = Limit("links-save", 60, 60)
CHANGE_LIMIT = Limit("links-change", 120, 60)

PAGE_SIZE = 20
LINK_PATH = "/<id:link_id>/"


@blueprint.get("/")
@no_store
@login_required
@rate_limit(SEARCH_LIMIT, by_account, when=is_search)
@no_rate_limit("one page by an index")
async def index() -> ResponseReturnValue:
    """List links (`state`, `tag`, `before`), or search them (`q`, `after`)."""
    return await render_list(SaveForm())


@blueprint.post("/")
@no_store
@login_required
@rate_limit(SAVE_LIMIT, by_account)
@not_audited("not security relevant")
async def save() -> ResponseReturnValue:
    """Save a link."""
    form = SaveForm(await request.form)
    if not form.validate():
        return await render_list(form)
    try:
        async with database.write() as session:
            item, is_new = await queries.save_link(
                session, logged_in_user().id, str(form.url.data), tags=form.tags.tags
            )
    except queries.TooManyLinksError:
        add_form_error(form, queries.TOO_MANY_LINKS)
        return await render_list(form)
    if is_new:
        await flash("Link saved.", "success")
        return redirect(url_for("links.index"), 303)
    await flash("You have already saved this link.", "info")
    return redirect(url_for("links.show", link_id=item.id), 303)


@blueprint.get("/icons/<digest>")
@cache_immutable
@public
@no_rate_limit("one row by its key, cached by browsers")
async def icon(digest: str) -> Response:
    """Return a site's icon. Its URL does not reveal who has saved a link to the site."""
    try:
        key = bytes.fromhex(digest)
    except ValueError:
        abort(404)
    async with database.read(exact=True) as session:
        found = await queries.get_icon(session, key)
    if found is None:
        abort(404)
    content, content_type = found
    response = Response(content, content_type=content_type)
    response.set_etag(key.hex())
    return make_conditional(response)


@blueprint.get(LINK_PATH)
@no_store
@login_required
@no_rate_limit("one row by its key")
async def show(link_id: int) -> ResponseReturnValue:
    return await render_detail(link_id)


@blueprint.post(LINK_PATH)
@no_store
@login_required
@rate_limit(CHANGE_LIMIT, by_account)
@not_audited("not security relevant")
async def edit(link_id: int) -> ResponseReturnValue:
    """Change title and tags, unless the link has been changed since the form was rendered."""
    form = EditForm(await request.form)
    if not form.validate():
        return await render_detail(link_id, form)
    try:
        async with database.write() as session:
            changed = await queries.update_link(
                session,
                logged_in_user().id,
                link_id,
                version=form.version.data,
                title=form.title.data or "",
                tags=form.tags.tags,
            )
    except queries.VersionConflictError:
        add_form_error(
            form,
            "The link has changed since you opened this page. Save again to overwrite it.",
        )
        form.version.data = None
        return await render_detail(link_id, form)
    if changed is None:
        abort(404)
    await flash("Changes saved.", "success")
    return redirect(url_for("links.show", link_id=link_id), 303)


@blueprint.post(f"{LINK_PATH}archive/")
@no_store
@login_required
@rate_limit(CHANGE_LIMIT, by_account)
@not_audited("not security relevant")
async def archive(link_id: int) -> ResponseReturnValue:
    return await set_archived(link_id, archived=True)


@blueprint.post(f"{LINK_PATH}unarchive/")
@no_store
@login_required
@rate_limit(CHANGE_LIMIT, by_account)
@not_audited("not security relevant")
async def unarchive(link_id: int) -> ResponseReturnValue:
    return await set_archived(link_id, archived=False)


@blueprint.post(f"{LINK_PATH}delete/")
@no_store
@login_required
@rate_limit(CHANGE_LIMIT, by_account)
@not_audited("not security relevant")
async def delete(link_id: int) -> ResponseReturnValue:
    async with database.write() as session:
        if not await queries.delete_link(session, logged_in_user().id, link_id):
            abort(404)
    await flash("Link deleted.", "success")
    return redirect(url_for("links.index"), 303)


async def render_list(form: SaveForm) -> str:
    """Render the list that the query selects, with the form to save a link."""
    user, selection = logged_in_user(), selection_or_400()
    # Only the search needs a session; the fast path is enough for the rest.
    connect = database.read if selection.search_text else database.direct
    async with connect() as source:
        # Read first: an event during the other queries is then repeated rather than missed.
        newest_event_id = await hooks.newest_event_id(source, user.id)
        try:
            links, has_more = await selection.load(source, user.id, limit=PAGE_SIZE)
        except ValueError:
            abort(400)
        tags = await queries.list_tags(source, user.id, limit=queries.MAX_TAGS_SHOWN + 1)
        tag = selection.tag
        is_public = tag is not None and await public_lists.is_tag_published(source, user.id, tag)
    return await render_template(
        "links/index.html",
        form=form,
        links=links,
        has_more=has_more,
        newest_event_id=newest_event_id,
        selection=selection,
        tags=tags[: queries.MAX_TAGS_SHOWN],
        has_more_tags=len(tags) > queries.MAX_TAGS_SHOWN,
        is_public=is_public,
    )


async def render_detail(link_id: int, form: EditForm | None = None) -> str:
    """Render the page of one link, with the submitted form if it has errors."""
    user = logged_in_user()
    async with database.read() as session:
        newest_event_id = await hooks.newest_event_id(session, user.id)
        item = await queries.get_link(session, user.id, link_id)
    if item is None:
        abort(404)
    if form is None:
        form = EditForm(title=item.title, tags=" ".join(item.tags))
    if form.version.data is None:
        form.version.data, form.version.raw_data = item.version, None
    return await render_template(
        "links/detail.html",
        form=form,
        result=search.as_search_result(item),
        newest_event_id=newest_event_id,
        selection=Selection("all"),
    )


async def set_archived(link_id: int, *, archived: bool) -> ResponseReturnValue:
    """Archive or unarchive a link, and redirect back to the list."""
    async with database.write() as session:
        if (
            await queries.update_link(session, logged_in_user().id, link_id, archived=archived)
            is None
        ):
            abort(404)
    return redirect(safe_redirect_target(request.args.get("next")) or url_for("links.index"), 303)


def selection_or_400() -> Selection:
    """Return the selection of the query; abort with 400 if it is invalid."""
    try:
        return Selection.from_query(request.args)
    except ValueError:
        abort(400)
