"""The toolkit's models create the same schema as the migrations."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg

from quart_upsun.database import Base, load_models

CREATE = """
import asyncio

from quart_upsun.database import create_schema
from quart_upsun.settings import DatabaseSettings

settings = DatabaseSettings()
asyncio.run(create_schema(settings.database_url, settings.identity))
"""

# Foreign keys are excluded: the application adds its own to the toolkit's tables.
QUERIES = {
    "columns": """
        SELECT table_name, column_name, ordinal_position, data_type, udt_name,
            character_maximum_length, column_default, is_nullable, is_identity, identity_generation
        FROM information_schema.columns WHERE table_name = ANY ($1)
    """,
    "tables": "SELECT relname, relpersistence FROM pg_class WHERE relname = ANY ($1)",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE tablename = ANY ($1)",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE conrelid::regclass::text = ANY ($1) AND contype <> 'f'
    """,
    "triggers": """
        SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid)
        FROM pg_trigger WHERE tgrelid::regclass::text = ANY ($1) AND NOT tgisinternal
    """,
    "functions": """
        SELECT DISTINCT proname, pg_get_functiondef(function.oid)
        FROM pg_proc AS function JOIN pg_trigger ON tgfoid = function.oid
        WHERE tgrelid::regclass::text = ANY ($1) AND NOT tgisinternal
    """,
    "types": """
        SELECT typname, enumlabel, rank() OVER (PARTITION BY typname ORDER BY enumsortorder)
        FROM pg_enum JOIN pg_type ON pg_type.oid = enumtypid WHERE $1::text[] IS NOT NULL
    """,
    "sequences": """
        SELECT sequencename, data_type::text, start_value, increment_by FROM pg_sequences
        WHERE EXISTS (
            SELECT FROM unnest($1::text[]) AS name WHERE starts_with(sequencename, name || '_')
        )
    """,
}


def toolkit_tables() -> list[str]:
    load_models()
    return sorted(
        mapper.class_.__tablename__
        for mapper in Base.registry.mappers
        if mapper.class_.__module__.startswith("quart_upsun.")
    )


async def schema(url: str, tables: list[str]) -> dict[str, set[tuple[Any, ...]]]:
    connection = await asyncpg.connect(url)
    try:
        return {
            name: {
                # Ignore the indentation of functions.
                tuple(" ".join(each.split()) if isinstance(each, str) else each for each in row)
                for row in await connection.fetch(query, tables)
            }
            for name, query in QUERIES.items()
        }
    finally:
        await connection.close()


async def test_models_create_the_same_schema_as_migrations(
    empty_database: str, database_url: str, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CREATE]
    environment = {
        **os.environ,
        "DATABASE_URL": empty_database,
        "DATABASE_ENVIRONMENT": "tests",
        "PYTHONPATH": str(root),
    }
    for _ in range(2):  # the second time there is nothing to create
        await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, env=environment, check=True)
    tables = toolkit_tables()
    assert {"pgqueuer", "audit_events", "rate_limits", "database_owner"} <= set(tables)
    migrated, created = await schema(database_url, tables), await schema(empty_database, tables)
    for name, rows in migrated.items():
        assert rows, name
        assert created[name] == rows, name
