"""Pages that show outgoing mail on a laptop. They are not registered elsewhere."""

import asyncio
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from quart import Blueprint, abort, render_template

from quart_upsun.current import current_toolkit
from quart_upsun.mail import rendering
from quart_upsun.mail.transports import FILE_NAME, FILE_TIME, ConsoleTransport, saved_mails
from quart_upsun.policy import no_rate_limit, no_store, public

blueprint = Blueprint("dev_mail", __name__, url_prefix="/dev/mail")


@dataclass(frozen=True)
class SavedMail:
    """A mail that was saved as a file."""

    name: str
    at: datetime
    written: rendering.ReadableMail


@blueprint.get("/")
@no_store
@public
@no_rate_limit("on laptops only")
async def mails() -> str:
    """Show all mails, newest first."""
    entries = await asyncio.to_thread(_read_all, _directory())
    return await render_template("dev/mails.html", entries=entries)


@blueprint.get("/<name>/")
@no_store
@public
@no_rate_limit("on laptops only")
async def mail(name: str) -> str:
    """Show a mail with clickable links."""
    if not FILE_NAME.fullmatch(name):
        abort(404)
    entry = await asyncio.to_thread(_read, _directory() / name)
    if entry is None:
        abort(404)
    paragraphs = [
        [rendering.split_links(line) for line in paragraph.splitlines()]
        for paragraph in re.split(r"\n\s*\n", entry.written.text)
    ]
    return await render_template("dev/mail.html", entry=entry, paragraphs=paragraphs)


def _directory() -> Path:
    transport = current_toolkit().mail.transport
    if not isinstance(transport, ConsoleTransport) or transport.directory is None:
        abort(404)
    return transport.directory


def _read_all(directory: Path) -> list[SavedMail]:
    return [entry for path in saved_mails(directory) if (entry := _read(path)) is not None]


def _read(path: Path) -> SavedMail | None:
    """Read a mail; None if the file does not exist."""
    try:
        content = path.read_bytes()
        at = datetime.strptime(path.name.partition("-")[0], FILE_TIME).replace(tzinfo=UTC)
    except (OSError, ValueError):
        return None
    return SavedMail(path.name, at, rendering.parse_message(content))
