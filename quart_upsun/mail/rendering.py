"""Render a letter as a MIME message, and parse a message for display."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.headerregistry import Address
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

from quart import Quart

from quart_upsun.mail.letters import Letter

SUBJECT_PREFIX = "Subject: "
SHOWN_HEADERS = ("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted")
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
LINK_PATTERN = re.compile(r"https?://[^\s<>\"']+")
# Punctuation at the end of a sentence, which is not a part of a URL.
TRAILING_PUNCTUATION = ".,;:!?)"


class MailTemplateError(Exception):
    """A mail template does not start with a subject and an empty line."""


@dataclass(frozen=True)
class ReadableMail:
    """The headers and the text of a message, for display."""

    headers: dict[str, str]
    """The headers in `SHOWN_HEADERS` that the message has, in this order."""
    text: str

    @property
    def subject(self) -> str:
        return self.headers.get("Subject", "")


async def render(
    app: Quart, letter: Letter, *, origin: str, sender: str, identity: str
) -> EmailMessage:
    """Render a letter as plain text and as HTML.

    A template is `templates/mail/<name>.txt`: a line `Subject: …`, an empty line, and paragraphs
    separated by empty lines. In the HTML, a paragraph that consists only of a URL of this site
    becomes a button. Any other URL stays text, since users can put URLs into their names. The lines
    of a paragraph are joined, except lines that start with `- `.

    The context of the template is that of the letter plus `origin`. It has no request and no user.

    Args:
        app: the application with the templates.
        letter: the letter to render.
        origin: scheme and host of the site.
        sender: the From header; noreply@ the host if empty.
        identity: a unique string that is the same for each attempt, for the Message-ID.

    Raises:
        MailTemplateError: the template is malformed.
        ValueError: an email address is invalid.
    """
    host = urlsplit(origin).hostname or ""
    context = {**letter.context, "origin": origin}
    head, body = _split(await _rendered(app, f"{letter.template}.txt", context), letter.template)
    paragraphs = [_paragraph(each, origin) for each in re.split(r"\n\s*\n", body)]
    frame: dict[str, Any] = {"subject": head, "origin": origin, "host": host}

    message = EmailMessage()
    message["From"] = sender or f"noreply@{host}"
    message["To"] = Address(addr_spec=letter.to)  # raises unless it is exactly one address
    message["Subject"] = head
    message["Date"] = datetime.now(UTC)
    unique = hashlib.sha256(f"{identity} {origin}".encode()).hexdigest()[:32]
    message["Message-ID"] = f"<{unique}@{host}>"
    message["Auto-Submitted"] = "auto-generated"
    text = await _rendered(app, "layout.txt", {**frame, "body": body})
    html = await _rendered(app, "layout.html", {**frame, "paragraphs": paragraphs})
    # Quoted-printable is readable in files and tables, and mail servers do not change it.
    message.set_content(text.strip() + "\n", cte="quoted-printable")
    message.add_alternative(html, subtype="html", cte="quoted-printable")
    return message


def parse_message(message: EmailMessage | bytes | str) -> ReadableMail:
    """Parse a message, new or stored, for display."""
    if isinstance(message, str):
        message = message.encode()
    if isinstance(message, bytes):
        message = message_from_bytes(message, policy=policy.default)
    body = message.get_body(preferencelist=("plain",))
    return ReadableMail(
        headers={name: str(message[name]) for name in SHOWN_HEADERS if message[name]},
        text=body.get_content().strip() if body is not None else "",
    )


def split_links(text: str) -> list[tuple[str, bool]]:
    """Split text into pieces, each with a flag that says whether it is a link.

    Only http and https URLs are links.
    """
    found: list[tuple[str, bool]] = []
    position = 0
    for match in LINK_PATTERN.finditer(text):
        address = match.group().rstrip(TRAILING_PUNCTUATION)
        found.append((text[position : match.start()], False))
        found.append((address, True))
        position = match.start() + len(address)
    found.append((text[position:], False))
    return [piece for piece in found if piece[0]]


async def _rendered(app: Quart, name: str, context: dict[str, Any]) -> str:
    """Render a template without `render_template`, whose context processors need a request."""
    return await app.jinja_env.get_template(f"mail/{name}").render_async(context)


def _split(text: str, template: str) -> tuple[str, str]:
    """Return the subject and the body of a rendered template."""
    text = CONTROL_CHARACTERS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    head, _, rest = text.lstrip("\n").partition("\n")
    blank, _, body = rest.partition("\n")
    # A line break in a user's name must not add a header or move one into the body.
    if not head.startswith(SUBJECT_PREFIX) or blank.strip():
        raise MailTemplateError(
            f"mail/{template}.txt must start with 'Subject: …' and an empty line"
        )
    return " ".join(head.removeprefix(SUBJECT_PREFIX).split()), body.strip()


def _paragraph(text: str, origin: str) -> dict[str, Any]:
    text = text.strip()
    is_link = text.startswith(f"{origin}/") and LINK_PATTERN.fullmatch(text) is not None
    return {"text": re.sub(r"\n(?!- )\s*", " ", text), "link": is_link}
