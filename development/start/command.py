"""The steps of `make start`."""

import argparse
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn
from urllib.parse import urlsplit

from development import removal, steps
from development.start.answers import (
    DEFAULT_KEEP,
    LICENSES,
    PROPRIETARY,
    AnswerError,
    Answers,
    ask,
)
from development.start.rewrite import (
    RewriteError,
    lines_of_python,
    release_of,
    remove_itself,
    rewrite,
    set_data_aside,
)
from development.steps import StepError, step
from development.working_tree import (
    WorkingTreeError,
    git,
    read_record,
    require_clean,
    require_identity,
)

ROOT = Path(__file__).parents[2]
LOG = Path(".data/start.log")
VARIABLES = ("NAME", "TITLE", "AUTHOR", "LICENSE", "KEEP")
REFUSED, FAILED, INTERRUPTED = 2, 1, 130


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Start an application; return the exit code. Nothing is changed if it is 2."""
    features = removal.read_features(root / "development" / "optional_features.toml")
    given = parse(arguments, features)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        try:
            require_not_started(root)
            author = require_identity(root)
            commit = require_clean(root)
            require_stopped(root)
            answers = ask(given, features, author, interactive=sys.stdin.isatty())
            release = release_of(root)
            (root / LOG).parent.mkdir(exist_ok=True)
            (root / LOG).write_text("")
            with step("packages"):
                run(root, "make", "python-packages", "npm-packages")
        except (AnswerError, WorkingTreeError, removal.UnknownFeatureError) as error:
            print(error, file=sys.stderr)
            return REFUSED
        except StepError as error:
            print(error, "Nothing was changed.", sep="\n", file=sys.stderr)
            return REFUSED
        except (KeyboardInterrupt, EOFError):
            print("\nStopped. Nothing was changed.", file=sys.stderr)
            return INTERRUPTED
        report_needed(given, answers, features)
        undo = f"git reset --hard {commit[:12]} && git clean -fdq"
        moved: list[tuple[str, str]] = []
        try:
            start(root, answers, commit, moved)
        except (RewriteError, WorkingTreeError, StepError) as error:
            print(error, file=sys.stderr)
            return fail(undo, moved)
        except KeyboardInterrupt:
            print("\nStopped.", file=sys.stderr)
            fail(undo, moved)
            return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    report(root, answers, release, commit, moved)
    return 0


def parse(arguments: list[str] | None, features: removal.Features) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="make start",
        usage="make start NAME=my-service [TITLE=…] [AUTHOR=…] [LICENSE=…] [KEEP=…]",
        description=(
            "Turn the starter into your own application: rename it, remove what you do not keep,"
            " run lint and tests, and commit. On a terminal it asks for what is missing, unless"
            " NAME and KEEP are given."
        ),
        epilog="Optional features:\n"
        + "\n".join(f"  {name:<10} {feature.title}" for name, feature in features.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", metavar="NAME", help="name of the package, such as my-service")
    parser.add_argument("--title", metavar="TITLE", help="name for people (default: from NAME)")
    parser.add_argument("--author", metavar="AUTHOR", help="default: the name in Git's settings")
    parser.add_argument(
        "--license", metavar="LICENSE", help=f"{', '.join(LICENSES)} (default: {PROPRIETARY})"
    )
    parser.add_argument(
        "--keep",
        metavar="KEEP",
        help=f"all, none, or optional features: links,api (default: {DEFAULT_KEEP})",
    )
    return parser.parse_args(arguments)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def require_not_started(root: Path) -> None:
    """Raise WorkingTreeError if `make start` has run in this repository."""
    if (record := read_record(root)) is None:
        return
    if git(root, "status", "--porcelain"):
        raise WorkingTreeError(
            "An earlier `make start` did not finish. Undo it with"
            " `git reset --hard && git clean -fdq`, and try again."
        )
    raise WorkingTreeError(f"This application was started on {record['started']} already.")


def require_stopped(root: Path) -> None:
    """Raise WorkingTreeError if the embedded PostgreSQL of this repository is running."""
    for file in (root / ".data" / "postgres").rglob("postmaster.pid"):
        lines = file.read_text().splitlines()
        if lines and lines[0].isdecimal() and is_running(int(lines[0])):
            raise WorkingTreeError("`make run` is still running. Stop it, and try again.")


def is_running(pid: int) -> bool:
    """Return whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True


def report_needed(given: argparse.Namespace, answers: Answers, features: removal.Features) -> None:
    """Print the features that are kept only because others build on them."""
    asked = removal.select(given.keep, features) if given.keep is not None else answers.keep
    for name in answers.keep:
        if name not in asked:
            users = [each for each in asked if name in removal.with_needed([each], features)]
            print(f"{name} is kept as well, because {' and '.join(users)} builds on it.")


def start(root: Path, answers: Answers, commit: str, moved: list[tuple[str, str]]) -> None:
    """Rewrite the working tree, check it, and commit it.

    Raises:
        StepError, RewriteError, WorkingTreeError: it did not work. The tree is changed.
    """
    lock = (root / "package-lock.json").read_bytes()
    with step("rewrite"):
        moved += set_data_aside(root)
        rewrite(root, answers, commit, datetime.now(UTC).date())
        mark_npm_packages_installed(root, lock)
    with step("format"):
        run(root, "make", "format")
    with step("lint"):
        run(root, "make", "lint")
    with step("test"):
        run(root, "make", "test")
    with step("commit"):
        remove_itself(root)
        git(root, "add", "--all")
        message = f"Start {answers.name} from quart-upsun {release_of(root)}"
        git(root, "commit", "--quiet", "--no-verify", "--message", message)


def mark_npm_packages_installed(root: Path, previous_lock: bytes) -> None:
    """Keep the installed npm packages: the new lock file has a subset of them."""
    installed = root / "node_modules" / ".installed.json"
    if installed.exists() and installed.read_bytes() == previous_lock:
        written = installed.with_suffix(".new")
        written.write_bytes((root / "package-lock.json").read_bytes())
        written.replace(installed)


def run(root: Path, *command: str) -> None:
    """Run a program; raise StepError if it fails."""
    steps.run(root, LOG, *command, variables=VARIABLES)


def undo_data(moved: list[tuple[str, str]]) -> str:
    """Return the commands that move the local databases back."""
    return "".join(f" && rm -rf {name} && mv {target} {name}" for name, target in moved)


def fail(undo: str, moved: list[tuple[str, str]]) -> int:
    """Print how to undo an unfinished start; return the exit code."""
    print(
        f"Nothing was committed, and the changes are left for you to look at. To undo them, run\n"
        f"  {undo}{undo_data(moved)}",
        file=sys.stderr,
    )
    return FAILED


def report(
    root: Path, answers: Answers, release: str, commit: str, moved: list[tuple[str, str]]
) -> None:
    """Print what remains, and what comes next."""
    files = [root / name for name in git(root, "ls-files", "-z").split("\0") if name]
    package = sorted((root / "app").rglob("*.py"))
    print(
        f"\n{answers.title} is started from quart-upsun {release}:"
        f" {len(files)} files, {lines_of_python(package):,} lines of Python in app/."
        f"\nOptional features: {', '.join(answers.keep) or 'none'}."
    )
    for name, target in moved:
        print(f"The starter's local data in {name} was moved to {target}.")
    if (url := origin(root)) is not None:
        print(
            f"The remote origin is {url}. If that is the starter, set your own:"
            " `git remote set-url origin …`."
        )
    print(
        "Run `make run` to see it."
        f" To undo the start, run\n  git reset --hard {commit[:12]}{undo_data(moved)}"
    )


def origin(root: Path) -> str | None:
    """Return the URL of the remote `origin` without credentials, or None."""
    try:
        url = git(root, "remote", "get-url", "origin")
    except WorkingTreeError:
        return None
    parts = urlsplit(url)
    if parts.scheme and "@" in parts.netloc:
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return url
