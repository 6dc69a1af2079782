"""What is done with accounts: functions of a session and plain values."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Row, bindparam, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.user.models import UNIQUE_EMAIL, UNIQUE_USERNAME, User

# Built once: these run with nearly every request of a member, and building them took longer than
# the database takes to answer.
BY_SESSION = select(User).where(
    User.id == bindparam("user_id"), User.session_version == bindparam("version")
)
NEWEST = select(User.username, User.created_at).order_by(User.id.desc()).limit(bindparam("count"))


class Taken(Exception):
    """Another user has this user name or address.

    Attributes:
        field: `username` or `email`.
    """

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


async def create(session: AsyncSession, *, username: str, email: str, password_hash: str) -> User:
    """Add a user.

    Raises:
        Taken: the database's unique indexes decide, so of two who ask at once one is refused.
    """
    user = User(username=username, email=email, password_hash=password_hash)
    session.add(user)
    try:
        await session.flush()
    except IntegrityError as error:
        index = getattr(error.driver_exception, "constraint_name", None)
        fields = {UNIQUE_USERNAME.name: "username", UNIQUE_EMAIL.name: "email"}
        if index not in fields:
            raise
        raise Taken(fields[index]) from None
    return user


async def taken(session: AsyncSession, *, username: str, email: str) -> list[str]:
    """Return which of the fields somebody already has, to name both in one answer."""
    rows = await session.execute(
        select(
            func.coalesce(func.bool_or(func.lower(User.username) == username.lower()), False),
            func.coalesce(func.bool_or(func.lower(User.email) == email.lower()), False),
        ).where(
            (func.lower(User.username) == username.lower())
            | (func.lower(User.email) == email.lower())
        )
    )
    username_taken, email_taken = rows.one()
    return ["username"] * username_taken + ["email"] * email_taken


async def by_username(session: AsyncSession, username: str) -> User | None:
    """Find a user by name, whatever the case."""
    return await session.scalar(select(User).where(func.lower(User.username) == username.lower()))


async def by_session(session: AsyncSession, user_id: int, version: int) -> User | None:
    """Find the user of a login cookie; None once the cookie's session was ended."""
    return await session.scalar(BY_SESSION, {"user_id": user_id, "version": version})


async def change_hash(session: AsyncSession, user_id: int, *, old: str, new: str) -> None:
    """Replace a password hash by a stronger one of the same password."""
    await session.execute(
        update(User)
        # Not if the password was changed in the meantime.
        .where(User.id == user_id, User.password_hash == old)
        .values(password_hash=new)
    )


async def newest(session: AsyncSession, *, limit: int = 20) -> Sequence[Row[str, datetime]]:
    """Return `username` and `created_at` of the members who joined last, newest first."""
    return (await session.execute(NEWEST, {"count": limit})).all()
