"""Does the release before still work on this one's schema? Its own tests say so.

  python -m rehearsal.compatibility [--from REV] [--command COMMAND]

While a deploy migrates, and in a rolling deploy for longer, the code of the release before runs on
the new schema. This exports that release and runs its tests there, on databases that the migrations
of the working tree have made. TEST_MIGRATIONS tells its tests/conftest.py where those are: the path
of this tree's alembic.ini.

exit codes:
  0  it works, or there is nothing to compare
  1  it does not: the deploy would break it
  2  nothing could be found out; one sentence says why
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rehearsal.project import ProjectError, read
from rehearsal.tree import Tree, TreeError, find, git

COMMAND = "python -m pytest -q tests/features"
VERSIONS = "alembic/versions"
HOOK = "TEST_MIGRATIONS"
# Not in Git, but an application does not start without them. Which release they are of is all one.
BUILT = ("app/manifest.json", "app/static")
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
    parser.add_argument(
        "--command",
        help=f"its tests; by default what [tool.rehearsal] in pyproject.toml says, or {COMMAND}",
    )
    options = parser.parse_args(arguments)
    try:
        here = find(Path.cwd(), "HEAD").repository
        if not options.revision and len(list((here / VERSIONS).glob("*.py"))) < 2:
            print("There is only one migration: no release before it could run on its schema.")
            return 0
        before = find(here, options.revision or release_before(here))
        if not options.revision and not shares_migrations(here, before):
            print(f"No migration of {before.title} is in this tree: nothing to compare.")
            return 0
        return compare(before, options.command or read(here).compatibility or COMMAND)
    except (TreeError, ProjectError) as error:
        print(error, file=sys.stderr)
        return UNKNOWN


def release_before(repository: Path) -> str:
    """Return the commit before the newest migration was added; HEAD if that is not committed yet.

    Raises:
        TreeError: the history does not go back that far.
    """
    pending = git(repository, "status", "--porcelain", "--untracked-files=all", "--", VERSIONS)
    if any(line[:2] in {"??", "A ", "AM"} and line.endswith(".py") for line in pending.split("\n")):
        return "HEAD"
    # On the branch that is deployed: where a merge brought the migration, before the merge.
    added = git(
        repository,
        *("log", "-1", "--format=%H %P", "--first-parent", "--diff-merges=first-parent", "-s"),
        *("--no-renames", "--diff-filter=A", "--", f"{VERSIONS}/*.py"),
    ).split()
    if len(added) < 2:
        raise TreeError(
            "Git does not have the commit before the newest migration, as in a clone without"
            " history: name the release before with --from."
        )
    return added[1]


def shares_migrations(repository: Path, before: Tree) -> bool:
    """Tell whether a database of the release before can be migrated by the working tree."""
    here = {f"{VERSIONS}/{path.name}" for path in (repository / VERSIONS).glob("*.py")}
    return not here.isdisjoint(before.files())


def compare(before: Tree, command: str) -> int:
    """Run the tests of the release before on the schema of the working tree."""
    here = before.repository
    with tempfile.TemporaryDirectory(prefix="compatibility-") as directory:
        there = before.export(Path(directory).resolve() / "before")
        if not any(HOOK in path.read_text() for path in there.glob("tests/**/conftest.py")):
            # Its tests would run on its own schema, and say nothing.
            print(
                f"The tests of {before.title} cannot be run on another schema:"
                f" no conftest.py of theirs knows {HOOK}.",
                file=sys.stderr,
            )
            return UNKNOWN
        for name in BUILT:
            if (here / name).exists() and not (there / name).exists():
                (there / name).symlink_to(here / name)
        print(f"The tests of {before.title} on the schema of this tree: {command}", flush=True)
        try:
            code = subprocess.run(
                shlex.split(command),
                cwd=there,
                env=environment(here / "alembic.ini"),
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
        " visitors it still serves would see those errors. docs/migrations.md shows how to take"
        " such a change apart into releases that suit each other.",
        file=sys.stderr,
    )
    return BROKEN


def environment(migrations: Path) -> dict[str, str]:
    """Return the variables for the tests of the release before."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN) and name not in FOREIGN_NAMES
    }
    # So that `python` is this interpreter, with the packages that are installed for it.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {**kept, "PATH": path, HOOK: str(migrations)}


if __name__ == "__main__":
    sys.exit(main())
