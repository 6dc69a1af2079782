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
from quart_upsun.live.events import newest_event
from quart_upsun.policy import no_rate_limit, no_store, not_audited
from quart_upsun.security.limits import Limit, by_account, rate_limit

blueprint = Blueprint("bookmarks", __name__, url_prefix="/links")

IMPORT_LIMIT = Limit("imports", 10, 3600)
EXPORT_LIMIT = Limit("exports", 20, 3600)

MAX_IMPORTS_SHOWN = 10


def init_app(app: Quart) -> None:
    """Link to the page from the list, and accept larger bodies where files are sent."""
    hooks.add_template(app, "tools", "bookmarks/tool.html")
    limits = app.config["BODY_LIMITS"]
    limits["/links/import/"] = uploads.FORM_BODY_LIMIT
    limits["/api/v1/links/import"] = uploads.FILE_BODY_LIMIT  # as the body itself


@blueprint.get("/import/")
@no_store
@login_required
@no_rate_limit("the newest ten by an index")
async def overview() -> ResponseReturnValue:
    """Show how far the last imports have come."""
    return await render_page()


@blueprint.post("/import/")
@no_store
@login_required
@rate_limit(IMPORT_LIMIT, by_account)
@not_audited("concerns no account")
async def upload() -> ResponseReturnValue:
    """Take a file of bookmarks; a job reads it."""
    try:
        await uploads.receive_upload(
            current_toolkit().database, logged_in_user().id, iterate_uploaded_file(request, "file")
        )
    except uploads.ImportInProgressError:
        return await render_page("Another import has not ended yet. Wait for it, please."), 409
    except uploads.AccountDeletedError:
        return redirect(url_for("public.home"), 303)
    except uploads.EmptyFileError:
        return await render_page("Choose a file that your browser has exported.")
    await flash("The file has arrived, and is being read.", "success")
    return redirect(url_for("bookmarks.overview"), 303)


@blueprint.get("/export.<form>")
@no_store
@login_required
@rate_limit(EXPORT_LIMIT, by_account)
async def export(form: str) -> Response:
    """Return all links as a file: html, csv or jsonl."""
    if form not in FORMATS:
        abort(404)
    return export_response(current_toolkit().database, logged_in_user().id, form)


async def render_page(error: str | None = None) -> str:
    """Render the page, with what was wrong with the form."""
    async with database.read() as session:
        # First: what happens while the rest is read is told again rather than not at all.
        newest_event_id = await newest_event(session, logged_in_user().id)
        found = await jobs.list_imports(session, logged_in_user().id, MAX_IMPORTS_SHOWN + 1)
    return await render_template(
        "bookmarks/import.html",
        imports=found[:MAX_IMPORTS_SHOWN],
        has_more=len(found) > MAX_IMPORTS_SHOWN,
        newest_event_id=newest_event_id,
        error=error,
    )
