"""The owner of a database: the environment it belongs to.

A tunnel, a restored dump or a wrong DATABASE_URL can connect this process to the database of
another environment. The table `database_owner` names the owner, and `alembic upgrade` writes it.
A process of another environment serves pages. It runs no jobs and no schedules, sends no mail, and
does not migrate or sanitize. Set DATABASE_ENVIRONMENT to the owner's name to act for the owner.

On Upsun, the database of the container's own relationship always belongs to the environment. The
deploy hook of a preview therefore takes over its clone of production's data.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from quart_upsun.database.errors import DatabaseUnavailableError

HAS_OWNER_TABLE = "SELECT to_regclass('database_owner') IS NOT NULL"
SELECT_OWNER = "SELECT environment, type FROM database_owner"
UPSERT_OWNER = text(
    """
    INSERT INTO database_owner (environment, type) VALUES (:environment, :type)
    ON CONFLICT (id) DO UPDATE
    SET environment = excluded.environment, type = excluded.type, claimed_at = now()
    WHERE database_owner.environment <> excluded.environment
    OR database_owner.type <> excluded.type
    """
)


@dataclass(frozen=True)
class Identity:
    """The environment of this process, for comparison with the owner of a database."""

    name: str
    """Its name on Upsun, DATABASE_ENVIRONMENT, or the name of this checkout; may be empty."""
    type: str
    """`production`, `staging`, `development` or `unknown`; `local` off Upsun."""
    is_named: bool = False
    """Whether the name comes from DATABASE_ENVIRONMENT."""
    has_own_database: bool = False
    """Whether the database is in a relationship of this container."""


@dataclass(frozen=True)
class Owner:
    """The environment a database belongs to."""

    name: str
    type: str

    def __str__(self) -> str:
        return f"the environment {self.name} ({self.type})"


class ForeignDatabaseError(DatabaseUnavailableError):
    """The database belongs to another environment, or has no owner.

    Attributes:
        owner: the owner of the database; None if it has none.
        identity: the environment of this process.
    """

    def __init__(self, owner: Owner | None, identity: Identity) -> None:
        self.owner = owner
        self.identity = identity
        super().__init__(f"{self.facts} {self.remedy}")

    @property
    def facts(self) -> str:
        """Name the owner and the environment of this process."""
        owner = f"belongs to {self.owner}" if self.owner else "has no owner"
        this = f"is {self.identity.name}" if self.identity.name else "has no name"
        return f"The database {owner}. The environment of this process {this}."

    @property
    def remedy(self) -> str:
        """Say how to use the database anyway."""
        if self.owner is None:
            return (
                "To make this environment its owner, set"
                f" DATABASE_ENVIRONMENT={self.identity.name or 'NAME'} and run"
                " `alembic upgrade head`."
            )
        return (
            f"To act for {self.owner.name}, set DATABASE_ENVIRONMENT={self.owner.name}. To take"
            f" over a copy of its database, run `quart database claim {self.owner.name}`."
        )


def require_owner(owner: Owner | None, identity: Identity) -> None:
    """Check that the database belongs to the environment of this process.

    Raises:
        ForeignDatabaseError: it belongs to another environment, or has no owner.
    """
    if identity.has_own_database:
        return
    if owner is None or owner.name != identity.name:
        raise ForeignDatabaseError(owner, identity)


def parse_owner(row: Any) -> Owner | None:
    """Return the owner in a row of `SELECT_OWNER`; None if there is no row."""
    return Owner(row[0], row[1]) if row is not None else None


def read_owner(connection: Connection) -> Owner | None:
    """Return the owner of a database; None if it has none."""
    if not connection.scalar(text(HAS_OWNER_TABLE)):
        return None
    return parse_owner(connection.execute(text(SELECT_OWNER)).one_or_none())


async def claim_copy(connection: AsyncConnection, identity: Identity, owner: str) -> int:
    """Make this environment the owner of a copy of another environment's database.

    Deletes the jobs in the copy, which the other environment runs, and returns their number. The
    caller commits.

    Args:
        connection: a connection to the database.
        identity: the environment of this process.
        owner: the expected name of the current owner.

    Raises:
        ForeignDatabaseError: the current owner is another one.
    """
    await connection.execute(text("LOCK TABLE database_owner IN ACCESS EXCLUSIVE MODE"))
    found = parse_owner((await connection.execute(text(SELECT_OWNER))).one_or_none())
    if found is None or found.name != owner:
        raise ForeignDatabaseError(found, identity)
    jobs = await connection.execute(text("DELETE FROM pgqueuer WHERE status <> 'failed'"))
    await connection.execute(UPSERT_OWNER, {"environment": identity.name, "type": identity.type})
    return jobs.rowcount
