"""The JSON API to import and export links."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from quart import Blueprint, Response, request, url_for
from quart.blueprints import BlueprintSetupState
from quart_schema import tag_blueprint

from app.bookmarks import jobs, uploads
from app.bookmarks.exports import FORMATS, export_response
from app.bookmarks.jobs import ImportProgress
from app.bookmarks.views import EXPORT_LIMIT, IMPORT_LIMIT
from app.extensions import database
from app.links.api import READ, WRITE
from quart_upsun.api.auth import by_caller, current_caller, scope_required, unauthorized
from quart_upsun.api.problems import Problem
from quart_upsun.api.validation import (
    accept_file,
    document_problem,
    document_response,
    json_response,
    validate_query,
)
from quart_upsun.current import current_toolkit
from quart_upsun.http import bodies
from quart_upsun.policy import no_rate_limit, no_store, not_audited
from quart_upsun.security.limits import rate_limit

blueprint = Blueprint("bookmarks_api", __name__, url_prefix="/api/v1/links")
tag_blueprint(blueprint, ["Links"])

IMPORT_IN_PROGRESS = "Another import is still running. Wait until it has finished."
EMPTY_FILE = "The file is empty."


@blueprint.record_once
def raise_body_limit(state: BlueprintSetupState) -> None:
    """Raise the body limit for uploads: the file is the body itself."""
    state.app.config["BODY_LIMITS"]["/api/v1/links/import"] = uploads.FILE_BODY_LIMIT


class ImportAnswer(BaseModel):
    """The progress of an import."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    state: Literal["receiving", "waiting", "running", "done", "failed"]
    percent: int
    seen: int = Field(description="Links of the file processed so far")
    added: int
    known: int = Field(description="Links that were already saved, or occur twice in the file")
    refused: int = Field(description="Links that were skipped, such as those without a web address")
    error: str | None = Field(description="Why the import failed")
    warning: str | None = Field(description="What was shortened, skipped or damaged")
    created_at: datetime
    finished_at: datetime | None


class ExportQuery(BaseModel):
    """The format of the export."""

    format: Literal["html", "csv", "jsonl"] = Field("jsonl", description="File format")


@blueprint.post("/import")
@no_store
@scope_required(WRITE)
@rate_limit(IMPORT_LIMIT, by_caller)
@not_audited("not security relevant")
@accept_file("text/html")
@document_response(202, ImportAnswer, headers={"Location": "The URL to poll for progress"})
@document_problem(409, IMPORT_IN_PROGRESS)
@document_problem(422, EMPTY_FILE)
async def take() -> Response:
    """Import an HTML bookmark file, as browsers export it, in a background job.

    At most 32 MiB and 50,000 links. Links that are already saved stay unchanged.
    """
    try:
        id = await uploads.receive_upload(
            current_toolkit().database, current_caller().id, bodies.iterate_body(request)
        )
    except uploads.ImportInProgressError:
        raise Problem(409, IMPORT_IN_PROGRESS) from None
    except uploads.AccountDeletedError:
        raise unauthorized("This account has been deleted.") from None
    except uploads.EmptyFileError:
        raise Problem(422, EMPTY_FILE) from None
    return _import_response(await _get_import_or_404(id), 202, Location=url_for(".progress", id=id))


@blueprint.get("/imports/<id:id>")
@no_store
@scope_required(READ)
@no_rate_limit("one row by its key")
@document_response(200, ImportAnswer)
async def progress(id: int) -> Response:
    """Return the progress of an import."""
    return _import_response(await _get_import_or_404(id))


@blueprint.get("/export")
@no_store
@scope_required(READ)
@rate_limit(EXPORT_LIMIT, by_caller)
@validate_query(ExportQuery)
@document_response(200, files=[form.content_type.partition(";")[0] for form in FORMATS.values()])
async def export(query: ExportQuery) -> Response:
    """Export all links as a file, oldest first."""
    return export_response(current_toolkit().database, current_caller().id, query.format)


async def _get_import_or_404(id: int) -> ImportProgress:
    async with database.read() as session:
        found = await jobs.get_import(session, current_caller().id, id)
    if found is None:
        raise Problem(404, "Import not found.")
    return found


def _import_response(progress: ImportProgress, status: int = 200, **headers: str) -> Response:
    return json_response(ImportAnswer.model_validate(progress), status, headers=headers)
