"""Bring the release's migrations of the toolkit's tables into the application.

They are copied rather than generated: each was written and tested for a deploy without downtime,
and may contain what Alembic does not generate, such as triggers and backfills.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from alembic.script import ScriptDirectory

from development.upgrade.release import UpgradeError

REVISION = re.compile(r'^revision = "(\w+)"$', re.MULTILINE)
DOWN_REVISION = re.compile(r"^down_revision = .*$", re.MULTILINE)
REVISES = re.compile(r"^Revises: .*$", re.MULTILINE)


@dataclass(frozen=True)
class Migration:
    """A migration to write."""

    path: str
    """Relative to the root of the application."""
    text: str


def plan(root: Path, release: Path, paths: list[str]) -> list[Migration]:
    """Return the migrations that the application does not have; they follow its latest one.

    Args:
        root: the application.
        release: the release.
        paths: the release's migrations, in the order in which they run.

    Raises:
        UpgradeError: the application's migrations are unreadable or have several heads.
    """
    if not paths:
        return []
    try:
        scripts = ScriptDirectory(str(root / "alembic"))
        heads = scripts.get_heads()
        known = {script.revision for script in scripts.walk_revisions()}
    except Exception as error:  # migrations are code, which may raise anything when imported
        raise UpgradeError(f"The migrations cannot be read: {error}. Correct them first.") from None
    if len(heads) > 1:
        raise UpgradeError(
            f"The migrations have {len(heads)} heads: {', '.join(heads)}. Merge them first, with"
            " `.venv/bin/python -m alembic merge heads`, and commit."
        )
    head = heads[0] if heads else None
    planned = []
    for path in paths:
        text = (release / path).read_text("utf-8")
        revision = REVISION.search(text)
        if revision is None or not DOWN_REVISION.search(text):
            raise UpgradeError(f"{path} in the release is not a migration. Fetch it again.")
        if revision[1] in known:
            continue
        quoted = f'"{head}"' if head else "None"
        text = DOWN_REVISION.sub(f"down_revision = {quoted}", text, count=1)
        text = REVISES.sub(f"Revises: {head or 'none'}", text, count=1)
        planned.append(Migration(path, text))
        head = revision[1]
    return planned
