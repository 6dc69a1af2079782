"""The local Upsun: the life of a deploy, from the configuration that is pushed.

It knows Upsun's configuration and nothing of the application in it; what to probe and which load to
give is said in `pyproject.toml`, `[tool.rehearsal]`.
"""
