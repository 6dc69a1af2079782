"""Public lists: the links of a tag, which its owner has opened to everybody."""

import re
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.links import tags
from app.links.models import PublicList
from app.user.forms import USERNAME_PATTERN
from app.user.models import User
from quart_upsun.database.statements import Source, Statement


class SharedList(NamedTuple):
    """A list that anybody may see; `library.page` has its links."""

    user_id: int
    username: str
    tag: str
    created_at: datetime


async def publish_tag(session: AsyncSession, user_id: int, tag: str) -> None:
    """Open a tag to everybody; harmless if it is open.

    Args:
        session: of `write()`.
        user_id: whose.
        tag: as `addresses.one_tag` returns it. It need not have links yet.
    """
    new = insert(PublicList).values(user_id=user_id, tag=tag)
    await session.execute(new.on_conflict_do_nothing())


async def unpublish_tag(session: AsyncSession, user_id: int, tag: str) -> None:
    """Close a tag again; caches forget the page within minutes."""
    mine = (PublicList.user_id == user_id, PublicList.tag == tag)
    await session.execute(delete(PublicList).where(*mine))


SELECT_PUBLISHED = Statement(
    select(PublicList.tag).where(
        PublicList.user_id == bindparam("user_id"), PublicList.tag == bindparam("tag")
    ),
    tuple,
)


async def is_tag_published(source: Source, user_id: int, tag: str) -> bool:
    return bool(await SELECT_PUBLISHED.rows(source, user_id=user_id, tag=tag))


async def find_public_list(session: AsyncSession, username: str, tag: str) -> SharedList | None:
    """Return the list at an address; None if there is none, whatever the reason.

    Args:
        session: for the query.
        username: as it stands in the address, whatever the case.
        tag: the same.
    """
    try:
        tag = tags.parse_tag(tag)
    except ValueError:
        return None
    if not re.match(
        USERNAME_PATTERN, username
    ):  # no other name exists, and NUL the database does not take
        return None
    query = (
        select(User.id, User.username, PublicList.tag, PublicList.created_at)
        .join(PublicList, PublicList.user_id == User.id)
        .where(
            func.lower(User.username) == username.lower(),
            User.deactivated_at.is_(None),
            User.email.is_not(None),
            PublicList.tag == tag,
        )
    )
    row = (await session.execute(query)).one_or_none()
    return SharedList(*row) if row is not None else None
