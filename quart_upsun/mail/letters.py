"""Letters and composers, with which a feature defines its mails."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession


@dataclass(frozen=True)
class Letter:
    """A mail before rendering: the name of a template in `templates/mail/` and its context."""

    to: str
    template: str
    context: dict[str, Any] = field(default_factory=dict)


# Called when a mail is sent, with the data of `send_later`. Returns None to skip the mail.
Composer = Callable[[AsyncSession, dict[str, Any]], Awaitable[Letter | None]]
Composers = Mapping[str, Composer]
