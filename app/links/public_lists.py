"""Public lists: tags whose links the owner has published."""

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
from quart_upsun.database.statements import Source, Statement, only_column


class SharedList(NamedTuple):
    """A public list; `queries.list_links` returns its links."""

    user_id: int
    username: str
    tag: str
    created_at: datetime


async def publish_tag(session: AsyncSession, user_id: int, tag: str) -> None:
    """Publish a tag; does nothing if it is already public.

    Args:
        session: of `write()`.
        user_id: the owner.
        tag: as `tags.parse_tag` returns it. It does not need to have links yet.
    """
    new = insert(PublicList).values(user_id=user_id, tag=tag)
    await session.execute(new.on_conflict_do_nothing())


async def unpublish_tag(session: AsyncSession, user_id: int, tag: str) -> None:
    """Make a tag private again; caches may serve the page for a few more minutes."""
    mine = (PublicList.user_id == user_id, PublicList.tag == tag)
    await session.execute(delete(PublicList).where(*mine))


SELECT_PUBLISHED = Statement(
    select(PublicList.tag).where(
        PublicList.user_id == bindparam("user_id"), PublicList.tag == bindparam("tag")
    ),
    only_column,
)


async def is_tag_published(source: Source, user_id: int, tag: str) -> bool:
    return await SELECT_PUBLISHED.first(source, user_id=user_id, tag=tag) is not None


async def find_public_list(session: AsyncSession, username: str, tag: str) -> SharedList | None:
    """Return a public list; None if it does not exist, is private, or its owner is deactivated.

    Args:
        session: for the query.
        username: from the URL, in any case.
        tag: from the URL, in any case.
    """
    try:
        tag = tags.parse_tag(tag)
    except ValueError:
        return None
    # Other names cannot exist, and PostgreSQL rejects NUL.
    if not re.match(USERNAME_PATTERN, username):
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
