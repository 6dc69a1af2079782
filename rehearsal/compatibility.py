"""Does the release before still work on this one's schema? Its own tests say so.

  python -m rehearsal.compatibility [--from REV] [--command COMMAND]

While a deploy migrates, and in a rolling deploy for longer, the code of the release before runs on
the new schema. This exports that release and runs its tests there, on databases that the migrations
of the working tree have made: a variable tells a conftest.py of the tests the path of this tree's
alembic.ini. The section [tool.rehearsal.compatibility] of pyproject.toml names the variable (by
default TEST_MIGRATIONS), the folder of the migrations, and the command.

exit codes:
  0  it works, or there is nothing to compare
  1  it does not: the deploy would break it
  2  nothing could be found out; one sentence says why
"""

import argparse
import ast
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rehearsal.project import Compatibility, ProjectError, read
from rehearsal.tree import Tree, TreeError, find_tree, git

# What an outer test run, a shell or a hook says is not for the tests of the other release.
FOREIGN = ("PYTEST_", "TEST_", "GIT_")
FOREIGN_NAMES = {"PYTHONPATH", "PYTHONSAFEPATH", "DATABASE_URL"}
BROKEN, UNKNOWN = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Compare; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rehearsal.compatibility",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m rehearsal.compatibility [--from REV] [--command COMMAND]",
    )
    parser.add_argument(
        "--from",
        dest="revision",
        metavar="REV",
        help="the release before; by default the commit before the newest migration was added",
    )
    parser.add_argument("--command", help="its tests; by default what pyproject.toml says")
    options = parser.parse_args(arguments)
    try:
        here = find_tree(Path.cwd(), "HEAD").repository
        settings = read(here).compatibility
        if options.command:
            settings = settings.model_copy(update={"command": options.command})
        if not options.revision and len(list((here / settings.migrations).glob("*.py"))) < 2:
            print("There is only one migration: no release before it could run on its schema.")
            return 0
        before = find_tree(here, options.revision or release_before(here, settings.migrations))
        return compare(before, settings)
    except (TreeError, ProjectError) as error:
        print(error, file=sys.stderr)
        return UNKNOWN


def release_before(repository: Path, migrations: str) -> str:
    """Return the commit before the newest migration was added; HEAD if that is not committed yet.

    Raises:
        TreeError: the history does not go back that far.
    """
    pending = git(
        repository,
        *("status", "--porcelain", "--no-renames", "--untracked-files=all", "--", migrations),
    )
    if any(line[:2] in {"??", "A ", "AM"} and line.endswith(".py") for line in pending.split("\n")):
        return "HEAD"
    # On the branch that is deployed: where a merge brought the migration, before the merge.
    added = git(
        repository,
        *("log", "-1", "--format=%H %P", "--first-parent", "--diff-merges=first-parent", "-s"),
        *("--no-renames", "--diff-filter=A", "--", f"{migrations}/*.py"),
    ).split()
    if len(added) < 2:
        raise TreeError(
            "Git does not have the commit before the newest migration, as in a clone without"
            " history: name the release before with --from."
        )
    return added[1]


def begins_anew(here: Path, before: Path) -> bool:
    """Tell whether none of the first migrations in one folder is in the other."""
    first = {revision for revision, is_first in read_revisions(here) if is_first}
    return bool(first) and first.isdisjoint(revision for revision, _ in read_revisions(before))


def read_revisions(migrations: Path) -> list[tuple[str, bool]]:
    """Return the revisions in a folder, without running its files, and which of them are first."""
    found = []
    for path in sorted(migrations.glob("*.py")):
        values: dict[str, object] = {}
        try:
            statements = ast.parse(path.read_bytes()).body
        except SyntaxError:
            continue  # said by Alembic
        for statement in statements:
            match statement:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value))
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value))
                ):
                    values[name] = value
        if isinstance(revision := values.get("revision"), str):
            # That of a merge is a tuple, and so not among the values.
            found.append((revision, values.get("down_revision", "several") is None))
    return found


def compare(before: Tree, settings: Compatibility) -> int:
    """Run the tests of the release before on the schema of the working tree."""
    here = before.repository
    command = settings.command
    with tempfile.TemporaryDirectory(prefix="compatibility-") as directory:
        there = before.export(Path(directory).resolve() / "before")
        if begins_anew(here / settings.migrations, there / settings.migrations):
            print(
                f"The migrations of this tree begin anew: the schema of {before.title} has another"
                " origin, and there is nothing to compare."
            )
            return 0
        if not any(settings.variable in path.read_text() for path in there.rglob("conftest.py")):
            # Its tests would run on its own schema, and say nothing.
            print(
                f"The tests of {before.title} cannot be run on another schema:"
                f" no conftest.py of theirs knows {settings.variable}.",
                file=sys.stderr,
            )
            return UNKNOWN
        for name in settings.built:
            if (here / name).exists() and not (there / name).exists():
                (there / name).parent.mkdir(parents=True, exist_ok=True)
                (there / name).symlink_to(here / name)
        print(f"The tests of {before.title} on the schema of this tree: {command}", flush=True)
        try:
            code = subprocess.run(
                shlex.split(command),
                cwd=there,
                env=environment({settings.variable: str(here / settings.configuration)}),
                stdin=subprocess.DEVNULL,
            ).returncode
        except OSError as error:
            print(f"{command} cannot be run: {error.strerror}.", file=sys.stderr)
            return UNKNOWN
    if code == 0:
        print(f"{before.title} works on the schema of this tree.")
        return 0
    if code != 1:  # of pytest: 2 interrupted, 4 wrong arguments, 5 no tests
        print(f"The tests did not run to their end: exit code {code}.", file=sys.stderr)
        return UNKNOWN
    print(
        f"{before.title} does not work on the schema of this tree: while this is deployed, the"
        " visitors it still serves would see those errors. Split the change into releases of which"
        " each works on the schema of the next."
        + (f" {settings.guide} shows how." if settings.guide else ""),
        file=sys.stderr,
    )
    return BROKEN


def environment(more: dict[str, str]) -> dict[str, str]:
    """Return the variables for the tests of the release before, with some more."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN) and name not in FOREIGN_NAMES
    }
    # So that `python` is this interpreter, with the packages that are installed for it.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {**kept, "PATH": path, **more}


if __name__ == "__main__":
    sys.exit(main())
