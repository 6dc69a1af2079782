"""A user's links as a file: for browsers, for spreadsheets (CSV), for programs (JSON Lines)."""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from quart import Response, request
from sqlalchemy import select

from app.links import bookmarks
from app.links.models import Link
from quart_upsun.database import Database, patience

ROWS = 500  # of one query; each is some hundred bytes
# Seconds that it waits for a connection: it is in no hurry, and what has begun should not break.
PATIENCE = 30.0
# Seconds for a download. A client that never takes the rest is left at last, and so is what waits
# for it; the connection breaks, so nobody takes the part for the whole.
TIMEOUT = 3600

# A spreadsheet would take such a cell for a formula, and strangers wrote the titles:
# https://owasp.org/www-community/attacks/CSV_Injection
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Row(NamedTuple):
    """A link as it is exported, under the names that the API has."""

    id: int
    url: str
    title: str
    description: str
    tags: list[str]
    archived: bool
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Format:
    """How a file is written: what comes first and last, and links in between."""

    content_type: str
    rows: Callable[[Sequence[Row]], str]
    head: str = ""
    foot: str = ""


async def pages(database: Database, user_id: int) -> AsyncIterator[list[Row]]:
    """Yield all links of a user, the oldest first, some hundred at a time.

    Between the pages no connection is held, however slowly they are taken. Links that are added
    or deleted meanwhile may be in it or not; every other is, once.

    Raises:
        Unavailable: perhaps in the middle; the client must see that the file is not whole.
    """
    patience.set(PATIENCE)
    columns = [getattr(Link, name) for name in Row._fields]
    page = select(*columns).where(Link.user_id == user_id).order_by(Link.id).limit(ROWS)
    last = 0
    while True:
        async with database.read() as session:
            rows = [Row(*row) for row in await session.execute(page.where(Link.id > last))]
        if rows:
            yield rows
        if len(rows) < ROWS:
            break
        last = rows[-1].id


async def exported(database: Database, user_id: int, form: Format) -> AsyncIterator[bytes]:
    """Yield a file with all links of a user, as `pages` has them.

    Args:
        database: where they are.
        user_id: whose.
        form: one of `FORMATS`.
    """
    if form.head:
        yield form.head.encode()
    async for rows in pages(database, user_id):
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
        bookmarks.entry(
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
                text = _time(value)
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


def as_json(row: Row) -> dict[str, Any]:
    """Return a link as JSON has it."""
    times = {"created_at": _time(row.created_at), "updated_at": _time(row.updated_at)}
    return {**row._asdict(), **times}


def _time(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


FORMATS = {
    "html": Format("text/html; charset=utf-8", _html, bookmarks.HEAD, bookmarks.FOOT),
    # The mark tells spreadsheets that it is UTF-8; others take it for part of the first name.
    "csv": Format("text/csv; charset=utf-8; header=present", _csv, "\ufeff" + _csv([Row._fields])),
    "jsonl": Format("application/jsonl; charset=utf-8", _jsonl),
}
