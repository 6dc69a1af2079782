"""A user's links as a file: for browsers, for spreadsheets (CSV), for programs (JSON Lines)."""

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

# Seconds for a download. A client that never takes the rest is left at last, and so is what waits
# for it; the connection breaks, so nobody takes the part for the whole.
TIMEOUT_SECONDS = 3600

# A spreadsheet would take such a cell for a formula, and strangers wrote the titles:
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class ExportFormat:
    """How a file is written: what comes first and last, and links in between."""

    content_type: str
    format_rows: Callable[[Sequence[ExportedLink]], str]
    header: str = ""
    footer: str = ""


async def stream_export(
    database: Database, user_id: int, form: ExportFormat
) -> AsyncIterator[bytes]:
    """Yield a file with all links of a user, as `iterate_links` has them.

    Args:
        database: where they are.
        user_id: whose.
        form: one of `FORMATS`.
    """
    if form.header:
        yield form.header.encode()
    async for rows in iterate_links(database, user_id):
        yield form.format_rows(rows).encode()
    if form.footer:
        yield form.footer.encode()


def export_response(database: Database, user_id: int, name: str) -> Response:
    """Return the answer that is the file, or its headers for HEAD.

    Args:
        database: where the links are.
        user_id: whose.
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
    """Return lines as RFC 4180 has them.

    A cell that could be a formula begins with an apostrophe, which spreadsheets do not show.
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
    # The mark tells spreadsheets that it is UTF-8; others take it for part of the first name.
    "csv": ExportFormat(
        "text/csv; charset=utf-8; header=present",
        _format_csv,
        "\ufeff" + _format_csv([ExportedLink._fields]),
    ),
    "jsonl": ExportFormat("application/jsonl; charset=utf-8", _format_jsonl),
}
