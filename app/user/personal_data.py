"""The file of "Download your data": the account itself, and the part of each feature.

A test walks through all tables and fails for one with a user's rows that is in no part and not
declared to be left out.
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
    """Yield a JSON object: the members of the account, and a list for each part.

    Raises:
        DatabaseUnavailableError: in the middle; the client must see that the file is not whole.
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
