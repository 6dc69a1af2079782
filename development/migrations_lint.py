"""Lets squawk read the SQL of every migration: `make lint`, docs/migrations.md.

No database is needed. A migration that means what a rule warns of says so in a comment,

    # squawk-ignore ban-drop-column: the release before does not name it any more

and a comment that nothing needs is a finding too.
"""

import io
import json
import logging
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory

from app.settings import ROOT

IGNORED = re.compile(r"^\s*# squawk-ignore ([a-z-]+): \S", re.MULTILINE)
VALIDATE = "VALIDATE CONSTRAINT"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a migration."""

    rule: str
    message: str
    excerpt: str = ""
    """The first line of the statement."""


def main() -> int:
    """Lint every migration; return the exit code."""
    # Silences alembic/env.py, which sets up logging for the command line where nobody else has.
    logging.getLogger().addHandler(logging.NullHandler())
    failed = False
    for script in reversed(list(ScriptDirectory(str(ROOT / "alembic")).walk_revisions())):
        path = Path(script.path).resolve().relative_to(ROOT.resolve())
        for finding in lint(script):
            failed = True
            print(f"{path}: {finding.rule}: {finding.message}", file=sys.stderr)
            if finding.excerpt:
                print(f"    {finding.excerpt}", file=sys.stderr)
    if failed:
        print(
            "docs/migrations.md has a recipe for each of these. Where it is meant all the same,"
            " let the migration say so: `# squawk-ignore RULE: why`",
            file=sys.stderr,
        )
    return int(failed)


def lint(script: Script) -> list[Finding]:
    """Return what is wrong with a migration, but for what it ignores with a reason."""
    if script.is_merge_point:  # joins two branches, and has no statements of its own
        return []
    try:
        sql = render(script)
    except Exception as error:  # a migration may do anything
        return [Finding("not-printable", f"`alembic upgrade --sql` cannot print it: {error}")]
    found = squawk(sql) + validations_in_a_transaction(sql)
    ignored = set(IGNORED.findall(Path(script.path).read_text()))
    idle = ignored - {finding.rule for finding in found}
    return [finding for finding in found if finding.rule not in ignored] + [
        Finding(rule, "is ignored, but nothing of the kind is found") for rule in sorted(idle)
    ]


def render(script: Script) -> str:
    """Return the statements of one migration, with those that begin and end transactions."""
    buffer = io.StringIO()
    config = Config(ROOT / "alembic.ini", output_buffer=buffer)
    # The file says it from the repository's root, which need not be where this runs.
    config.set_main_option("script_location", str(ROOT / "alembic").replace("%", "%%"))
    command.upgrade(config, f"{script.down_revision or 'base'}:{script.revision}", sql=True)
    return buffer.getvalue()


def squawk(sql: str) -> list[Finding]:
    """Return what squawk finds."""
    result = subprocess.run(
        # Beside the interpreter: the virtual environment need not be active.
        [
            str(Path(sys.executable).with_name("squawk")),
            *("--config", str(ROOT / ".squawk.toml"), "--reporter", "json"),
        ],
        input=sql,
        capture_output=True,
        text=True,
    )
    if result.returncode not in (0, 1) or (result.returncode and not result.stdout.strip()):
        raise SystemExit(f"squawk failed: {result.stderr.strip()}")
    lines = sql.splitlines()
    found = [
        Finding(entry["rule_name"], entry["message"], lines[entry["line"]].strip())
        for entry in json.loads(result.stdout or "[]")
    ]
    # It asks for a transaction, but to validate twice does no harm, and in a transaction it would.
    return [
        finding
        for finding in found
        if (finding.rule, VALIDATE in finding.excerpt) != ("prefer-robust-stmts", True)
    ]


def validations_in_a_transaction(sql: str) -> list[Finding]:
    """Find what squawk cannot: it sees one migration, but all of a deploy are one transaction.

    The lock of an `ADD CONSTRAINT … NOT VALID` in the migration before would be held while all
    rows are read.
    """
    found = []
    inside = False
    for line in sql.splitlines():
        if line in {"BEGIN;", "COMMIT;"}:
            inside = line == "BEGIN;"
        elif inside and VALIDATE in line:
            message = "Validate in an `autocommit_block()`, after the constraint is committed."
            found.append(Finding("validate-in-transaction", message, line.strip()))
    return found


if __name__ == "__main__":
    sys.exit(main())
