"""From a letter to a message, and back to what a person reads of it."""

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
# What ends a sentence, and no address.
TRAILING_PUNCTUATION = ".,;:!?)"


class MailTemplateError(Exception):
    """A template does not have the form that `render` asks for."""


@dataclass(frozen=True)
class ReadableMail:
    """A message as its reader sees it."""

    headers: dict[str, str]
    """Those a person looks at, in this order; missing ones are left out."""
    text: str

    @property
    def subject(self) -> str:
        return self.headers.get("Subject", "")


async def render(
    app: Quart, letter: Letter, *, origin: str, sender: str, identity: str
) -> EmailMessage:
    """Render a letter as plain text and as HTML.

    A template is `templates/mail/<name>.txt`: a line `Subject: …`, an empty line, and paragraphs
    with empty lines between them. A paragraph that is nothing but an address on this site becomes a
    button in the HTML; any other address stays text, also one that a visitor has made a name of.
    Lines of a paragraph flow together there, but for those that begin with `- `.

    Beside the letter's own, a template has `origin`; it has no request and no user.

    Args:
        app: whose templates to use.
        letter: what to say, and to whom.
        origin: scheme and host of the site.
        sender: who it is from; by default noreply@ the host.
        identity: what tells this mail from all others, the same at each attempt.

    Raises:
        MailTemplateError: the template has not that form.
        ValueError: an address is none.
    """
    host = urlsplit(origin).hostname or ""
    context = {**letter.context, "origin": origin}
    head, body = _split(await _rendered(app, f"{letter.template}.txt", context), letter.template)
    paragraphs = [_paragraph(each, origin) for each in re.split(r"\n\s*\n", body)]
    frame: dict[str, Any] = {"subject": head, "origin": origin, "host": host}

    message = EmailMessage()
    message["From"] = sender or f"noreply@{host}"
    message["To"] = Address(addr_spec=letter.to)  # exactly one: it raises for more and for none
    message["Subject"] = head
    message["Date"] = datetime.now(UTC)
    unique = hashlib.sha256(f"{identity} {origin}".encode()).hexdigest()[:32]
    message["Message-ID"] = f"<{unique}@{host}>"
    message["Auto-Submitted"] = "auto-generated"
    text = await _rendered(app, "layout.txt", {**frame, "body": body})
    html = await _rendered(app, "layout.html", {**frame, "paragraphs": paragraphs})
    # Readable as it lies in a file or a table, and unchanged by whatever server passes it on.
    message.set_content(text.strip() + "\n", cte="quoted-printable")
    message.add_alternative(html, subtype="html", cte="quoted-printable")
    return message


def parse_message(message: EmailMessage | bytes | str) -> ReadableMail:
    """Return what a person reads of a message: of one just made, or as it was kept."""
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
    """Split text where links begin and end: each piece, and whether it is one.

    Only http and https are links; nothing else that a browser would run or open is.
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
    """Render without `render_template`, whose context processors look at a request."""
    return await app.jinja_env.get_template(f"mail/{name}").render_async(context)


def _split(text: str, template: str) -> tuple[str, str]:
    """Return the subject and the body of a rendered template."""
    text = CONTROL_CHARACTERS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    head, _, rest = text.lstrip("\n").partition("\n")
    blank, _, body = rest.partition("\n")
    # A name that holds a line of its own must not become a header, nor push one into the body.
    if not head.startswith(SUBJECT_PREFIX) or blank.strip():
        raise MailTemplateError(
            f"mail/{template}.txt must be a subject, an empty line, and the text"
        )
    return " ".join(head.removeprefix(SUBJECT_PREFIX).split()), body.strip()


def _paragraph(text: str, origin: str) -> dict[str, Any]:
    text = text.strip()
    is_link = text.startswith(f"{origin}/") and LINK_PATTERN.fullmatch(text) is not None
    return {"text": re.sub(r"\n(?!- )\s*", " ", text), "link": is_link}
