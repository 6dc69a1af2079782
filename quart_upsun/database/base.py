"""The base class of all models."""

import importlib
from pathlib import Path
from typing import ClassVar

from sqlalchemy import DDL, MetaData, event
from sqlalchemy.orm import DeclarativeBase

from quart_upsun.database.anonymization import Rules

MAX_ID = 2**63 - 1  # the largest BIGINT


class Base(DeclarativeBase):
    """The base class of all models.

    Constraint names are part of the schema, so a naming convention fixes them.
    """

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )

    __sanitize__: ClassVar[Rules]
    """How `quart sanitize` anonymizes the table; required for each model."""


def run_after_create(model: type[Base], *statements: str) -> None:
    """Run SQL after `create_schema` creates a model's table, for functions and triggers.

    Migrations have their own copy of this SQL, because a migration must not change with the code.
    """
    for statement in statements:
        ddl = DDL(statement)  # type: ignore[no-untyped-call]
        event.listen(model.__table__, "after_create", ddl)


def load_models(*packages: str) -> None:
    """Import every `models.py` of the toolkit and the packages, to fill `Base.metadata`.

    Args:
        packages: names of application packages, such as `app`.
    """
    for name in ("quart_upsun", *packages):
        [root] = importlib.import_module(name).__path__
        for path in sorted(Path(root).rglob("models.py")):
            module = path.relative_to(root).with_suffix("").parts
            importlib.import_module(".".join((name, *module)))
