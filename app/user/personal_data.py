"""The JSON export behind "Download your data": the account, and a section of each feature.

A test checks that every table with rows of users is part of a section or declared as not exported.
"""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from app.site import PersonalDataSection
from quart_upsun.database import Database


async def stream_personal_data(
    database: Database,
    user_id: int,
    account: dict[str, Any],
    sections: Sequence[PersonalDataSection],
) -> AsyncIterator[bytes]:
    """Yield a JSON object with the members of the account and a list for each section.

    Raises:
        DatabaseUnavailableError: possibly mid-stream, so that the client sees that the file is
            incomplete.
    """
    yield json.dumps(account, ensure_ascii=False)[:-1].encode()
    for section in sections:
        yield f', "{section.name}": ['.encode()
        separator = ""
        async for page in section.rows(database, user_id):
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in page)
            if lines:
                yield f"{separator}{lines}".encode()
                separator = ",\n"
        yield b"]"
    yield b"}\n"
