"""The changes that the reading list announces to features such as live pages."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from app.links.hooks import page_changed


class Announcement(NamedTuple):
    user_id: int
    kind: str
    data: dict[str, Any]


@pytest.fixture
def announced() -> Iterator[list[Announcement]]:
    """All announcements since the test began, also those that were rolled back."""
    found: list[Announcement] = []

    async def receive(_: object, *, user_id: int, kind: str, data: Any, **__: Any) -> None:
        found.append(Announcement(user_id, kind, data))

    with page_changed.connected_to(receive):
        yield found
