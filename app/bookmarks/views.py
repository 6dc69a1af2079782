"""The page to import and export links."""

from quart import (
    Blueprint,
    Quart,
    Response,
    abort,
    flash,
    redirect,
    render_template,
    request,
    url_for,
)
from quart.typing import ResponseReturnValue

from app.bookmarks import jobs, uploads
from app.bookmarks.exports import FORMATS, export_response
from app.extensions import database
from app.links import hooks
from app.user.login import logged_in_user, login_required
from quart_upsun.current import current_toolkit
from quart_upsun.http.bodies import iterate_uploaded_file
from quart_upsun.policy import no_rate_limit, no_store, not_audited
from quart_upsun.security.limits import Limit, by_account, rate_limit

blueprint = Blueprint("bookmarks", __name__, url_prefix="/links")

IMPORT_LIMIT = Limit("imports", 10, 3600)
EXPORT_LIMIT = Limit("exports", 20, 3600)

MAX_IMPORTS_SHOWN = 10


def init_app(app: Quart) -> None:
    """Link to the page from the list, and raise the body limit for uploads."""
    hooks.add_template(app, "tools", "bookmarks/tool.html")
    app.config["BODY_LIMITS"]["/links/import/"] = uploads.FORM_BODY_LIMIT


@blueprint.get("/import/")
@no_store
@login_required
@no_rate_limit("ten rows by an index")
async def overview() -> ResponseReturnValue:
    """Show the import form, recent imports and the export links."""
    return await render_page()


@blueprint.post("/import/")
@no_store
@login_required
@rate_limit(IMPORT_LIMIT, by_account)
@not_audited("not security relevant")
async def upload() -> ResponseReturnValue:
    """Upload a bookmark file; a background job imports it."""
    try:
        await uploads.receive_upload(
            current_toolkit().database, logged_in_user().id, iterate_uploaded_file(request, "file")
        )
    except uploads.ImportInProgressError:
        return await render_page(
            "Another import is still running. Wait until it has finished."
        ), 409
    except uploads.AccountDeletedError:
        return redirect(url_for("public.home"), 303)
    except uploads.EmptyFileError:
        return await render_page("Choose a bookmark file that you have exported from your browser.")
    await flash("Upload complete. The import has started.", "success")
    return redirect(url_for("bookmarks.overview"), 303)


@blueprint.get("/export.<form>")
@no_store
@login_required
@rate_limit(EXPORT_LIMIT, by_account)
async def export(form: str) -> Response:
    """Export all links as a file: html, csv or jsonl."""
    if form not in FORMATS:
        abort(404)
    return export_response(current_toolkit().database, logged_in_user().id, form)


async def render_page(error: str | None = None) -> str:
    """Render the page, with the error of the form if there is one."""
    async with database.read(exact=True) as session:
        # Read first: an event during the other query is then repeated rather than missed.
        newest_event_id = await hooks.newest_event_id(session, logged_in_user().id)
        found = await jobs.list_imports(session, logged_in_user().id, MAX_IMPORTS_SHOWN + 1)
    return await render_template(
        "bookmarks/import.html",
        imports=found[:MAX_IMPORTS_SHOWN],
        has_more=len(found) > MAX_IMPORTS_SHOWN,
        newest_event_id=newest_event_id,
        error=error,
    )
