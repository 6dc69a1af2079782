"""The steps of `make upgrade`."""

import argparse
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from development import steps
from development.steps import StepError, step
from development.upgrade.application import Application, read_application
from development.upgrade.fetching import fetch
from development.upgrade.plan import Plan, make_plan
from development.upgrade.release import UpgradeError, read_release, require_upgradable
from development.working_tree import WorkingTreeError, git

ROOT = Path(__file__).parents[2]
LOG = Path("build/upgrade/output.log")
LOCKS = ("requirements.txt", "requirements-dev.txt", "package-lock.json")
FETCH_SECONDS = 120
LOCK_SECONDS = 300
VARIABLES = ("FROM", "RELEASE")
REFUSED, FAILED, INTERRUPTED = 2, 1, 130


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Upgrade the application; return the exit code. Nothing is changed if it is 2."""
    options = parse(arguments)
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        return upgrade(options, root)
    except (UpgradeError, WorkingTreeError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("\nStopped. Nothing was changed.", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)


def upgrade(options: argparse.Namespace, root: Path) -> int:
    """Upgrade the application; return the exit code.

    Raises:
        UpgradeError: the upgrade is not possible.
        WorkingTreeError: the working tree is not ready, or cannot be committed.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="release-") as directory:
        plan = prepare(options, root, Path(directory))
        if options.check:
            report(plan, [])
            print("Nothing was changed.")
            return 0
        failures = apply(plan)
    try:
        failures += check(plan, options)
    except KeyboardInterrupt:
        failures.append("Stopped early. Run `make lint` and `make test`.")
    report(plan, failures)
    print(f"Upgraded to {plan.release.version} in {time.monotonic() - begun:.0f} s.", end=" ")
    print(f"Undo: git reset --hard {plan.application.commit[:12]}")
    return FAILED if failures else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="make upgrade",
        usage="make upgrade FROM=<directory, archive or Git URL> [RELEASE=0.2.0] [ARGS=--check]",
        description=(
            "Replace the packages that an application does not edit by those of a newer release,"
            " copy its migrations, run lint and tests, and commit. Report what needs a change by"
            " hand."
        ),
    )
    parser.add_argument("--from", dest="source", default="", help="where to get the release")
    parser.add_argument(
        "--release", default="", help="the release (default: the newest one of a Git remote)"
    )
    parser.add_argument(
        "--check", action="store_true", help="only report what the upgrade would change"
    )
    parser.add_argument("--no-tests", action="store_true", help="run neither lint nor tests")
    parser.add_argument("--tests", default="", help="arguments for `make test`")
    parser.add_argument(
        "--timeout",
        type=float,
        default=FETCH_SECONDS,
        metavar="SECONDS",
        help=f"time limit for the Git remote (default: {FETCH_SECONDS})",
    )
    return parser.parse_args(arguments)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def prepare(options: argparse.Namespace, root: Path, directory: Path) -> Plan:
    """Fetch the release, compute the changes and print them.

    Raises:
        UpgradeError: the upgrade is not possible.
        WorkingTreeError: the working tree is not clean.
    """
    application = read_application(root)
    version = options.release.removeprefix("v")
    if not options.source:
        raise UpgradeError(
            "FROM is required: `make upgrade FROM=…` with a checkout, an archive (.tar.gz or .zip)"
            " or the URL of a Git remote of quart-upsun."
        )
    if version and not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise UpgradeError(f"RELEASE must be a version such as 0.2.0, got {options.release!r}.")
    if options.timeout <= 0:
        raise UpgradeError(f"The time limit must be positive, got {options.timeout:g}.")
    with step("fetch"):
        found = fetch(options.source, version or None, directory, options.timeout)
        release = read_release(found, "The source in FROM")
    if version and release.version != version:
        raise UpgradeError(
            f"FROM contains release {release.version}, not {version}. Change FROM or RELEASE."
        )
    require_upgradable(application.release, release)
    with step("compare"):
        plan = make_plan(application, release)
    describe(plan)
    return plan


def describe(plan: Plan) -> None:
    """Print what the upgrade changes by itself."""
    print(f"\nRelease {plan.application.release} -> {plan.release.version}")
    for each in plan.packages:
        print(
            f"  {each.package + '/':<25} {each.changed} files changed, {each.added} added,"
            f" {each.removed} removed"
        )
    for name in plan.left_out:
        print(f"  {name + '/':<25} left out: the application does not have it")
    for line in plan.requirements.changes:
        print(f"  {'pyproject.toml':<25} {line}")
    for migration in plan.migrations:
        print(f"  {'migration':<25} {migration.path}")
    print(flush=True)


def apply(plan: Plan) -> list[str]:
    """Change the files and commit them; restore them if that does not succeed.

    Returns:
        What failed without preventing the upgrade, and what to do.

    Raises:
        UpgradeError: the files could not be written.
    """
    application = plan.application
    root = application.root
    changed = [*(each.package for each in plan.packages), "alembic/versions"]
    try:
        with step("replace"):
            plan.apply()
        failures = lock(plan) if plan.requirements.changes else []
        git(root, "add", "--all", "--", *changed, "pyproject.toml", *present_locks(root))
        # Hooks may run lint, which is allowed to fail until the places below are changed.
        message = f"Upgrade to release {plan.release.version}"
        git(root, "commit", "--quiet", "--no-verify", "--message", message)
    except OSError as error:
        restore(application, changed)
        raise UpgradeError(
            f"Nothing was changed, because a file cannot be written: {error}."
        ) from None
    except BaseException:
        restore(application, changed)
        raise
    return failures


def restore(application: Application, changed: list[str]) -> None:
    """Bring back the files as they were; the tree was clean, so nothing else is lost."""
    git(application.root, "reset", "--quiet", "--hard", application.commit)
    git(application.root, "clean", "-fdq", "--", *changed)


def present_locks(root: Path) -> list[str]:
    return [name for name in LOCKS if (root / name).exists()]


def lock(plan: Plan) -> list[str]:
    """Compile the lock files. If that fails, restore them, and return what to do."""
    try:
        with step("make lock"):
            run(plan, "make", "lock", seconds=LOCK_SECONDS)
        return []
    except StepError:
        root = plan.application.root
        git(root, "checkout", "--quiet", "--", *present_locks(root))
        return [
            "The lock files could not be compiled, which needs a package index. Run `make lock`,"
            f" then `make lint` and `make test`. All output is in {LOG}."
        ]


def check(plan: Plan, options: argparse.Namespace) -> list[str]:
    """Compare the migrations with the models, then run lint and tests.

    Returns:
        What failed, and what to do.
    """
    failures = []
    commands = {
        "packages": (("make", "python-packages"), "Run `make python-packages`."),
        "migrations": (
            (sys.executable, "-m", "development.upgrade.schema"),
            "The migrations do not create what the models describe. Run"
            ' `make migration m="upgrade"` after the changes by hand.',
        ),
    }
    if not options.no_tests:
        commands["lint"] = (("make", "lint"), "`make lint` fails.")
        commands["tests"] = (("make", "test", f"ARGS={options.tests}"), "`make test` fails.")
    for name, (command, advice) in commands.items():
        try:
            with step(name):
                run(plan, *command)
        except StepError as error:
            print(error, file=sys.stderr)
            failures.append(advice)
    return failures


def run(plan: Plan, *command: str, seconds: float | None = None) -> None:
    """Run a program in the application; raise StepError if it fails."""
    root = plan.application.root
    steps.run(root, LOG, *command, variables=VARIABLES, seconds=seconds)


def report(plan: Plan, failures: list[str]) -> None:
    """Print what needs a change by hand, and what failed."""
    advice = [(each.text, each.places) for each in plan.advice]
    advice += [(line, ()) for line in (*plan.requirements.by_hand, *failures)]
    print("\nTo do by hand:" if advice else "\nNothing to do by hand.")
    for text, places in advice:
        print(f"  - {text}")
        for place in places:
            print(f"      {place}")
    print(flush=True)
