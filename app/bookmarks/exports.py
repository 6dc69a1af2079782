"""A user's links as a file: for browsers, for spreadsheets (CSV), for programs (JSON Lines)."""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from quart import Response, request

from app.bookmarks import bookmark_file
from app.links.personal_data import Row, all_links, as_json, timestamp
from quart_upsun.database import Database

# Seconds for a download. A client that never takes the rest is left at last, and so is what waits
# for it; the connection breaks, so nobody takes the part for the whole.
TIMEOUT = 3600

# A spreadsheet would take such a cell for a formula, and strangers wrote the titles:
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Format:
    """How a file is written: what comes first and last, and links in between."""

    content_type: str
    rows: Callable[[Sequence[Row]], str]
    head: str = ""
    foot: str = ""


async def exported(database: Database, user_id: int, form: Format) -> AsyncIterator[bytes]:
    """Yield a file with all links of a user, as `all_links` has them.

    Args:
        database: where they are.
        user_id: whose.
        form: one of `FORMATS`.
    """
    if form.head:
        yield form.head.encode()
    async for rows in all_links(database, user_id):
        yield form.rows(rows).encode()
    if form.foot:
        yield form.foot.encode()


def download(database: Database, user_id: int, name: str) -> Response:
    """Return the answer that is the file, or its headers for HEAD.

    Args:
        database: where the links are.
        user_id: whose.
        name: a key of `FORMATS`.
    """
    form = FORMATS[name]
    file_name = f"links-{datetime.now(UTC):%Y-%m-%d}.{name}"
    response = Response(
        b"" if request.method == "HEAD" else exported(database, user_id, form),
        content_type=form.content_type,
        headers={"Content-Disposition": f'attachment; filename="{file_name}"'},
    )
    response.timeout = TIMEOUT
    return response


def _html(rows: Sequence[Row]) -> str:
    return "".join(
        bookmark_file.entry(
            row.url,
            row.title,
            description=row.description,
            tags=row.tags,
            archived=row.archived,
            created_at=row.created_at,
        )
        for row in rows
    )


def _csv(rows: Sequence[Sequence[object]]) -> str:
    """Return lines as RFC 4180 has them.

    A cell that could be a formula begins with an apostrophe, which spreadsheets do not show.
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(map(_cells, rows))
    return out.getvalue()


def _cells(row: Sequence[object]) -> list[str]:
    cells = []
    for value in row:
        match value:
            case datetime():
                text = timestamp(value)
            case bool():
                text = "true" if value else "false"
            case list():
                text = " ".join(value)
            case _:
                text = str(value)
        cells.append(f"'{text}" if text.startswith(FORMULA) else text)
    return cells


def _jsonl(rows: Sequence[Row]) -> str:
    return "".join(
        json.dumps(as_json(row), ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows
    )


FORMATS = {
    "html": Format("text/html; charset=utf-8", _html, bookmark_file.HEAD, bookmark_file.FOOT),
    # The mark tells spreadsheets that it is UTF-8; others take it for part of the first name.
    "csv": Format("text/csv; charset=utf-8; header=present", _csv, "\ufeff" + _csv([Row._fields])),
    "jsonl": Format("application/jsonl; charset=utf-8", _jsonl),
}
