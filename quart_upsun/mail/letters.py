"""What a feature says to let a mail be made."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession


@dataclass(frozen=True)
class Letter:
    """A mail before it is rendered: a template of `templates/mail/`, and what it needs."""

    to: str
    template: str
    context: dict[str, Any] = field(default_factory=dict)


# Looks up what a mail of one kind needs, when it is sent; None if there is nothing to send now.
Composer = Callable[[AsyncSession, dict[str, Any]], Awaitable[Letter | None]]
Composers = Mapping[str, Composer]
