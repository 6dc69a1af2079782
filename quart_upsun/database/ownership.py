"""Which environment a database belongs to.

A tunnel, a restored dump or a wrong DATABASE_URL can connect this process to the database of
another environment. The table `database_owner` names the environment a database belongs to, and
`alembic upgrade` writes it. A process of another environment serves pages, but it runs no jobs and
no schedules, and so sends no mail, and it migrates and sanitizes nothing. Set DATABASE_ENVIRONMENT
to the owner's name to act for that environment.

On Upsun, the database of the container's own relationship always belongs to the environment, so a
clone of production's data changes hands in the deploy hook of the preview.
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
    """The environment of this process, to be compared with the owner of a database."""

    name: str
    """Upsun's name for it, DATABASE_ENVIRONMENT, or the name of this checkout; may be empty."""
    type: str
    """`production`, `staging`, `development` or `unknown`; `local` off Upsun."""
    is_named: bool = False
    """Whether DATABASE_ENVIRONMENT names it."""
    has_own_database: bool = False
    """Whether the platform says that the database belongs to this environment."""


@dataclass(frozen=True)
class Owner:
    """The environment a database belongs to."""

    name: str
    type: str

    def __str__(self) -> str:
        return f"the environment {self.name} ({self.type})"


class ForeignDatabaseError(DatabaseUnavailableError):
    """The database belongs to another environment, or to none yet.

    Attributes:
        owner: whose it is; None if no environment has migrated it.
        identity: the environment of this process.
    """

    def __init__(self, owner: Owner | None, identity: Identity) -> None:
        self.owner = owner
        self.identity = identity
        super().__init__(f"{self.facts} {self.remedy}")

    @property
    def facts(self) -> str:
        """Say whose the database is."""
        whose = f"belongs to {self.owner}" if self.owner else "does not say whose it is"
        return f"The database {whose}, and this is {self.identity.name or 'an unnamed one'}."

    @property
    def remedy(self) -> str:
        """Say how to work on the database all the same."""
        if self.owner is None:
            return (
                "To make it the database of this environment, set"
                f" DATABASE_ENVIRONMENT={self.identity.name or 'NAME'} and run"
                " `alembic upgrade head`."
            )
        return (
            f"To act for {self.owner.name}, set DATABASE_ENVIRONMENT={self.owner.name}; to take a"
            f" copy over, run `quart database claim {self.owner.name}`."
        )


def require_owner(owner: Owner | None, identity: Identity) -> None:
    """Check that this process may work on a database.

    Raises:
        ForeignDatabaseError: the database belongs to another environment, or to none.
    """
    if identity.has_own_database:
        return
    if owner is None or owner.name != identity.name:
        raise ForeignDatabaseError(owner, identity)


def parse_owner(row: Any) -> Owner | None:
    """Return the owner from a row of `SELECT_OWNER`, None if there is no row."""
    return Owner(row[0], row[1]) if row is not None else None


def read_owner(connection: Connection) -> Owner | None:
    """Return the owner of a database; None if none is recorded."""
    if not connection.scalar(text(HAS_OWNER_TABLE)):
        return None
    return parse_owner(connection.execute(text(SELECT_OWNER)).one_or_none())


async def claim_copy(connection: AsyncConnection, identity: Identity, owner: str) -> int:
    """Make a copy of another environment's database the database of this environment.

    Deletes the jobs that came with the copy, which are the other environment's to do. Returns how
    many there were. The caller commits.

    Args:
        connection: to the database.
        identity: the environment of this process.
        owner: the name of the environment that the database belongs to now.

    Raises:
        ForeignDatabaseError: it belongs to another one.
    """
    await connection.execute(text("LOCK TABLE database_owner IN ACCESS EXCLUSIVE MODE"))
    found = parse_owner((await connection.execute(text(SELECT_OWNER))).one_or_none())
    if found is None or found.name != owner:
        raise ForeignDatabaseError(found, identity)
    jobs = await connection.execute(text("DELETE FROM pgqueuer WHERE status <> 'failed'"))
    await connection.execute(UPSERT_OWNER, {"environment": identity.name, "type": identity.type})
    return jobs.rowcount
