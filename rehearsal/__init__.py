"""A local Upsun: run the whole deploy lifecycle from `.upsun/config.yaml`.

It works for any application. `[tool.rehearsal]` in `pyproject.toml` says which pages to request and
which load to generate.
"""
