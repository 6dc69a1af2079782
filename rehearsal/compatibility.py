"""Test whether the previous release works on the database schema of this one.

During a deploy, and longer in a rolling deploy, the previous release's code runs on the new schema.
This command exports the previous release and runs its tests on databases that the migrations of the
working tree have created. An environment variable tells its conftest.py the path of this tree's
alembic.ini. The section [tool.rehearsal.compatibility] of pyproject.toml sets the name of that
variable (default: TEST_MIGRATIONS), the directory of the migrations, and the test command.

exit codes:
  0  the previous release works, or there is nothing to compare
  1  the previous release does not work: the deploy would break it
  2  the tests could not be run; the message says why
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

# Variables of an outer test run, shell or Git hook that must not affect the tests.
FOREIGN = ("PYTEST_", "TEST_", "GIT_")
FOREIGN_NAMES = {"PYTHONPATH", "PYTHONSAFEPATH", "DATABASE_URL"}
BROKEN, UNKNOWN = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
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
        help="the previous release (default: the commit before the newest migration was added)",
    )
    parser.add_argument(
        "--command", help="the command that runs its tests (default: the one in pyproject.toml)"
    )
    options = parser.parse_args(arguments)
    try:
        here = find_tree(Path.cwd(), "HEAD").repository
        settings = read(here).compatibility
        if options.command:
            settings = settings.model_copy(update={"command": options.command})
        if not options.revision and len(list((here / settings.migrations).glob("*.py"))) < 2:
            print("There is only one migration, so there is no previous release to compare.")
            return 0
        previous = find_tree(here, options.revision or previous_release(here, settings.migrations))
        return compare(previous, settings)
    except (TreeError, ProjectError) as error:
        print(error, file=sys.stderr)
        return UNKNOWN


def previous_release(repository: Path, migrations: str) -> str:
    """Return the commit before the newest migration was added; HEAD if that is not committed yet.

    Raises:
        TreeError: the history does not contain that commit.
    """
    pending = git(
        repository,
        *("status", "--porcelain", "--no-renames", "--untracked-files=all", "--", migrations),
    )
    if any(line[:2] in {"??", "A ", "AM"} and line.endswith(".py") for line in pending.split("\n")):
        return "HEAD"
    # Follow the deployed branch: if a merge added the migration, take the commit before the merge.
    added = git(
        repository,
        *("log", "-1", "--format=%H %P", "--first-parent", "--diff-merges=first-parent", "-s"),
        *("--no-renames", "--diff-filter=A", "--", f"{migrations}/*.py"),
    ).split()
    if len(added) < 2:
        raise TreeError(
            "The commit before the newest migration is not in the Git history; this may be a"
            " shallow clone. Name the previous release with --from."
        )
    return added[1]


def was_restarted(here: Path, previous: Path) -> bool:
    """Return whether the migrations were restarted, for example squashed, since `previous`.

    Then none of the base migrations in one directory is in the other.
    """
    bases = {revision for revision, is_base in read_revisions(here) if is_base}
    return bool(bases) and bases.isdisjoint(revision for revision, _ in read_revisions(previous))


def read_revisions(migrations: Path) -> list[tuple[str, bool]]:
    """Return each migration's revision, and whether it is a base, without running the files."""
    found = []
    for path in sorted(migrations.glob("*.py")):
        values: dict[str, object] = {}
        try:
            statements = ast.parse(path.read_bytes()).body
        except SyntaxError:
            continue  # Alembic reports it
        for statement in statements:
            match statement:
                case (
                    ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value))
                    | ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value))
                ):
                    values[name] = value
        if isinstance(revision := values.get("revision"), str):
            # The down_revision of a merge is a tuple, which is not a constant.
            found.append((revision, values.get("down_revision", "several") is None))
    return found


def compare(previous: Tree, settings: Compatibility) -> int:
    """Run the previous release's tests on the schema of the working tree; return the exit code."""
    here = previous.repository
    command = settings.command
    with tempfile.TemporaryDirectory(prefix="compatibility-") as directory:
        there = previous.export(Path(directory).resolve() / "previous")
        if was_restarted(here / settings.migrations, there / settings.migrations):
            print(
                f"The migrations of this tree do not continue those of {previous.title}, for"
                " example because they were squashed, so there is nothing to compare."
            )
            return 0
        if not any(settings.variable in path.read_text() for path in there.rglob("conftest.py")):
            # Its tests would run on its own schema and prove nothing.
            print(
                f"The tests of {previous.title} cannot run on another schema: none of its"
                f" conftest.py files reads {settings.variable}.",
                file=sys.stderr,
            )
            return UNKNOWN
        for name in settings.built:
            if (here / name).exists() and not (there / name).exists():
                (there / name).parent.mkdir(parents=True, exist_ok=True)
                (there / name).symlink_to(here / name)
        print(
            f"Running the tests of {previous.title} on the schema of this tree: {command}",
            flush=True,
        )
        try:
            code = subprocess.run(
                shlex.split(command),
                cwd=there,
                env=environment({settings.variable: str(here / settings.configuration)}),
                stdin=subprocess.DEVNULL,
            ).returncode
        except OSError as error:
            print(f"The command {command!r} cannot be run: {error.strerror}.", file=sys.stderr)
            return UNKNOWN
    if code == 0:
        print(f"{previous.title} works on the schema of this tree.")
        return 0
    if code != 1:  # pytest: 2 interrupted, 4 usage error, 5 no tests collected
        print(f"The tests did not finish: exit code {code}.", file=sys.stderr)
        return UNKNOWN
    print(
        f"{previous.title} does not work on the schema of this tree: during the deploy, visitors"
        " would see the errors above. Split the change into several releases, each of which works"
        " on the schema of the next one." + (f" See {settings.guide}." if settings.guide else ""),
        file=sys.stderr,
    )
    return BROKEN


def environment(more: dict[str, str]) -> dict[str, str]:
    """Return the environment variables for the previous release's tests, including `more`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN) and name not in FOREIGN_NAMES
    }
    # `python` must be this interpreter, with its packages.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {**kept, "PATH": path, **more}


if __name__ == "__main__":
    sys.exit(main())
