"""Export a user's links as HTML for browsers, CSV for spreadsheets, or JSON Lines for programs."""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from quart import Response, request

from app.bookmarks import bookmark_file
from app.links.personal_data import ExportedLink, format_timestamp, iterate_links, link_to_json
from quart_upsun.database import Database

# A client that stops reading is disconnected after this time. The response is aborted, so that it
# cannot be mistaken for a complete file.
TIMEOUT_SECONDS = 3600

# A spreadsheet would run such a cell as a formula, and titles come from strangers' pages:
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class ExportFormat:
    """A file format: header, formatted links and footer."""

    content_type: str
    format_rows: Callable[[Sequence[ExportedLink]], str]
    header: str = ""
    footer: str = ""


async def stream_export(
    database: Database, user_id: int, form: ExportFormat
) -> AsyncIterator[bytes]:
    """Yield a file with all links of a user; see `iterate_links`.

    Args:
        database: for the queries.
        user_id: the owner.
        form: one of the values of `FORMATS`.
    """
    if form.header:
        yield form.header.encode()
    async for rows in iterate_links(database, user_id):
        yield form.format_rows(rows).encode()
    if form.footer:
        yield form.footer.encode()


def export_response(database: Database, user_id: int, name: str) -> Response:
    """Return the file as a streamed response; for HEAD, only its headers.

    Args:
        database: for the queries.
        user_id: the owner.
        name: a key of `FORMATS`.
    """
    form = FORMATS[name]
    file_name = f"links-{datetime.now(UTC):%Y-%m-%d}.{name}"
    response = Response(
        b"" if request.method == "HEAD" else stream_export(database, user_id, form),
        content_type=form.content_type,
        headers={"Content-Disposition": f'attachment; filename="{file_name}"'},
    )
    response.timeout = TIMEOUT_SECONDS
    return response


def _format_html(rows: Sequence[ExportedLink]) -> str:
    return "".join(
        bookmark_file.format_bookmark(
            row.url,
            row.title,
            description=row.description,
            tags=row.tags,
            archived=row.archived,
            created_at=row.created_at,
        )
        for row in rows
    )


def _format_csv(rows: Sequence[Sequence[object]]) -> str:
    """Format rows as CSV (RFC 4180).

    A cell that a spreadsheet could run as a formula is prefixed with an apostrophe.
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(map(_format_cells, rows))
    return out.getvalue()


def _format_cells(row: Sequence[object]) -> list[str]:
    cells = []
    for value in row:
        match value:
            case datetime():
                text = format_timestamp(value)
            case bool():
                text = "true" if value else "false"
            case list():
                text = " ".join(value)
            case _:
                text = str(value)
        cells.append(f"'{text}" if text.startswith(FORMULA_PREFIXES) else text)
    return cells


def _format_jsonl(rows: Sequence[ExportedLink]) -> str:
    return "".join(
        json.dumps(link_to_json(row), ensure_ascii=False, separators=(",", ":")) + "\n"
        for row in rows
    )


FORMATS = {
    "html": ExportFormat(
        "text/html; charset=utf-8",
        _format_html,
        bookmark_file.FILE_HEADER,
        bookmark_file.FILE_FOOTER,
    ),
    # Spreadsheets need the byte order mark to detect UTF-8.
    "csv": ExportFormat(
        "text/csv; charset=utf-8; header=present",
        _format_csv,
        "\ufeff" + _format_csv([ExportedLink._fields]),
    ),
    "jsonl": ExportFormat("application/jsonl; charset=utf-8", _format_jsonl),
}
