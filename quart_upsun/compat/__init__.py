"""All uses of private APIs of libraries: one module per library, with the reasons.

`quart_upsun/tests/test_compat.py` fails if a library changes one of them. Run it before you raise
the library's version in `pyproject.toml`.
"""

__all__ = ["asyncpg", "hypercorn", "pgqueuer", "quart", "quart_schema", "sqlalchemy"]  # modules
