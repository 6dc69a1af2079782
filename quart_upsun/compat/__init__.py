"""Every reach into a library's private parts: one module for each library, with the reasons.

`quart_upsun/tests/test_compat.py` fails if a library changes there. Before you raise a library's
bound in `pyproject.toml`, run it.
"""

__all__ = ["hypercorn", "pgqueuer", "quart", "quart_schema", "sqlalchemy"]  # modules
