"""Start a real PostgreSQL 18 from a pip package: nothing to install, nothing to configure."""

from embedded_postgres.keeper import PostgresError
from embedded_postgres.server import (
    MAJOR,
    create_database,
    postgres,
    program,
    stopped,
)

__all__ = ["MAJOR", "PostgresError", "create_database", "postgres", "program", "stopped"]
