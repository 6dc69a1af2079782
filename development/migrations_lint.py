"""Lint the SQL of migrations with squawk; part of `make lint`. See docs/migrations.md.

  python -m development.migrations_lint               every migration
  python -m development.migrations_lint REVISION...   some of them, such as `head`

No database is needed. A comment in the migration disables a rule, and gives the reason:

    # squawk-ignore ban-drop-column: the previous release no longer uses it

A comment that disables nothing is an error.
"""

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory

from app.settings import ROOT

IGNORED = re.compile(r"^\s*# squawk-ignore ([a-z-]+): \S", re.MULTILINE)
VALIDATE = "VALIDATE CONSTRAINT"
# Rule -> the section of docs/migrations.md with the recipe.
RECIPES = {
    "adding-field-with-default": "add-a-column-with-a-default",
    "adding-not-nullable-field": "add-a-required-column",
    "adding-required-field": "add-a-required-column",
    "ban-concurrent-index-creation-in-transaction": "create-an-index",
    "ban-drop-column": "drop-a-column",
    "ban-drop-table": "drop-a-column",
    "changing-column-type": "change-a-column-type",
    "constraint-missing-not-valid": "add-a-foreign-key",
    "prefer-identity": "create-a-table",
    "renaming-column": "rename-a-column",
    "require-concurrent-index-creation": "create-an-index",
    "validate-in-transaction": "add-a-check-constraint",
}


@dataclass(frozen=True)
class Finding:
    """A violation of a rule by a migration."""

    rule: str
    message: str
    excerpt: str = ""
    """The first line of the statement."""


def main(revisions: Sequence[str]) -> int:
    """Lint migrations; return the exit code.

    Args:
        revisions: which; all if empty.
    """
    # A handler keeps alembic/env.py from logging to the terminal.
    logging.getLogger().addHandler(logging.NullHandler())
    failed = False
    directory = ScriptDirectory(str(ROOT / "alembic"))
    scripts = directory.get_revisions(tuple(revisions)) if revisions else directory.walk_revisions()
    for script in reversed([script for script in scripts if script is not None]):
        path = Path(script.path).resolve().relative_to(ROOT.resolve())
        for finding in lint(script):
            failed = True
            print(f"{path}: {finding.rule}: {finding.message}", file=sys.stderr)
            if finding.excerpt:
                print(f"    {finding.excerpt}", file=sys.stderr)
            if recipe := RECIPES.get(finding.rule):
                print(f"    See docs/migrations.md#{recipe}.", file=sys.stderr)
    if failed:
        print(
            "docs/migrations.md has a recipe for each change. To disable a rule, add a comment to"
            " the migration: `# squawk-ignore RULE: reason`",
            file=sys.stderr,
        )
    return int(failed)


def lint(script: Script) -> list[Finding]:
    """Return the findings for a migration, without those that it ignores."""
    if script.is_merge_point:  # it joins two branches and contains no statements
        return []
    try:
        sql = render(script)
    except Exception as error:  # a migration may do anything
        return [
            Finding(
                "not-printable",
                "`alembic upgrade --sql` cannot render this migration. It must not read the result"
                f" of a query: {error}",
            )
        ]
    found = squawk(sql) + validations_in_a_transaction(sql)
    ignored = set(IGNORED.findall(Path(script.path).read_text()))
    unused = ignored - {finding.rule for finding in found}
    return [finding for finding in found if finding.rule not in ignored] + [
        Finding(rule, "This rule is ignored but not violated. Remove the squawk-ignore comment.")
        for rule in sorted(unused)
    ]


def render(script: Script) -> str:
    """Return the SQL of one migration, including BEGIN and COMMIT."""
    buffer = io.StringIO()
    config = Config(ROOT / "alembic.ini", output_buffer=buffer)
    # The path in alembic.ini is relative to the repository, which may not be the working directory.
    config.set_main_option("script_location", str(ROOT / "alembic").replace("%", "%%"))
    command.upgrade(config, f"{script.down_revision or 'base'}:{script.revision}", sql=True)
    return buffer.getvalue()


def squawk(sql: str) -> list[Finding]:
    """Return the findings of squawk."""
    result = subprocess.run(
        # Next to the interpreter: the virtual environment may not be activated.
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
    # The rule wants statements outside a transaction to be repeatable, which VALIDATE is.
    return [
        finding
        for finding in found
        if (finding.rule, VALIDATE in finding.excerpt) != ("prefer-robust-stmts", True)
    ]


def validations_in_a_transaction(sql: str) -> list[Finding]:
    """Return a finding for each `VALIDATE CONSTRAINT` inside a transaction.

    squawk checks one migration at a time, but a deploy runs all of its migrations in one
    transaction: the lock of an earlier `ADD CONSTRAINT … NOT VALID` would be held during the scan.
    """
    found = []
    inside = False
    for line in sql.splitlines():
        if line in {"BEGIN;", "COMMIT;"}:
            inside = line == "BEGIN;"
        elif inside and VALIDATE in line:
            message = "Move this into an `autocommit_block()`, so that it runs in no transaction."
            found.append(Finding("validate-in-transaction", message, line.strip()))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
