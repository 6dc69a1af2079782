"""What "Download your data" contains beside the account itself: each feature adds its part.

A test walks through all tables and fails for one with a user's rows that is in no part and in no
`LEFT_OUT`.
"""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quart import Quart, current_app

from app.database import Database

# Tables with rows of users that are not downloaded, and why.
LEFT_OUT = {
    "access_tokens": "listed with the account",
    "audit_events": "listed with the account",
    "idempotent_answers": "answers of the API, deleted after a day",
    "live_events": "what open pages were told, deleted after a day",
}


@dataclass(frozen=True)
class Part:
    """A list of a user's rows."""

    name: str
    """The member of the JSON object."""
    rows: Callable[[Database, int], AsyncIterator[Sequence[dict[str, Any]]]]
    """Yields the rows of a user by the page, and holds no connection meanwhile."""
    tables: tuple[str, ...]
    """The tables that it covers."""


def init_app(app: Quart, *, parts: Sequence[Part]) -> None:
    """Say what the features add.

    Args:
        app: the application.
        parts: of all features.
    """
    app.extensions["personal_data"] = tuple(parts)


def parts() -> tuple[Part, ...]:
    """Return the parts of the current application's features."""
    found: tuple[Part, ...] = current_app.extensions["personal_data"]
    return found


async def written(
    database: Database, user_id: int, account: dict[str, Any], parts: Sequence[Part]
) -> AsyncIterator[bytes]:
    """Yield a JSON object: the members of the account, and a list for each part.

    Raises:
        Unavailable: in the middle; the client must see that the file is not whole.
    """
    yield json.dumps(account, ensure_ascii=False)[:-1].encode()
    for part in parts:
        yield f', "{part.name}": ['.encode()
        separator = ""
        async for page in part.rows(database, user_id):
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in page)
            if lines:
                yield f"{separator}{lines}".encode()
                separator = ",\n"
        yield b"]"
    yield b"}\n"
