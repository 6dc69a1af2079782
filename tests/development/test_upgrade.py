"""`make upgrade`, from the release in this repository to made-up ones."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.settings import ROOT
from development.upgrade import fetching
from development.upgrade.command import main
from rehearsal.tests.sample import commit, git
from tests.development.clone import environment, running
from tests.development.next_release import (
    MIGRATION,
    TEAM_MIGRATION,
    archive,
    edit,
    make_release,
    make_remote,
    start,
)
from tests.migrations.recipes import alembic_in

# The slow tests use the same directories.
pytestmark = pytest.mark.xdist_group("upgrade")
TESTS = (
    "-n 0 tests/features/bookmarks/test_bookmark_file.py tests/features/test_login_limits.py"
    " tests/features/test_migrations.py::test_upgrade_and_downgrade_leave_no_drift"
)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A started application that no test changes."""
    return start(tmp_path_factory.mktemp("upgrade") / "started")


@pytest.fixture
def application(started: Path, tmp_path: Path) -> Path:
    """A started application for one test."""
    return Path(shutil.copytree(started, tmp_path / "an application", symlinks=True))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Release 0.2.0, unpacked."""
    return make_release(tmp_path_factory.mktemp("release") / "unpacked")


@pytest.fixture(scope="module")
def remote(release: Path) -> str:
    """The URL of a Git remote with the releases 0.2.0 and 0.10.0."""
    return make_remote(release.with_name("remote"), release)


def state(root: Path) -> tuple[str, str]:
    """Return the commit of a working tree, and its uncommitted changes."""
    return git(root, "rev-parse", "HEAD"), git(root, "status", "--porcelain")


def recorded(root: Path) -> str:
    record = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["quart-upsun"]
    return str(record["release"])


Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run an upgrade that is refused; return the message."""

    def run(root: Path, *arguments: str, release: str = "") -> str:
        before = state(root)
        assert main([*arguments, "--release", release], root) == 2
        assert state(root) == before
        assert not (root / "build").exists()
        message = capsys.readouterr().err.strip()
        assert message
        assert len(message.splitlines()) == 1, message
        return message

    return run


def test_upgrade_replaces_packages_migrates_and_tests(
    application: Path, release: Path, empty_database: str
) -> None:
    before, _ = state(application)
    cache = ROOT / ".mypy_cache"  # most files are unchanged since the last `make lint`
    if cache.is_dir():
        shutil.copytree(cache, application / cache.name)
    command = ("make", "upgrade", f"FROM={release}", f'ARGS=--tests "{TESTS}"')
    with running(application, *command) as run:
        assert run.wait(900) == 0, run.output + log(application)

    # One commit, with everything in it.
    commit_after, changes = state(application)
    assert changes == ""
    assert git(application, "rev-parse", "HEAD~1") == before
    assert git(application, "log", "-1", "--format=%s") == "Upgrade to release 0.2.0"
    assert recorded(application) == "0.2.0"
    assert f"Undo: git reset --hard {before[:12]}" in run.output
    assert (application / "rehearsal" / "brand_new.py").exists()
    assert not (application / "embedded_postgres" / "tests").exists()
    assert re.search(
        r"embedded_postgres/tests/ +left out: the application does not have it", run.output
    )
    for package in ("quart_upsun", "rehearsal", "embedded_postgres", "development"):
        for path in (release / package).rglob("*.py"):
            relative = path.relative_to(release)
            if relative.parts[:2] != ("embedded_postgres", "tests"):
                assert (application / relative).read_bytes() == path.read_bytes()

    # The migration follows the team's own, and the schema is complete.
    text = (application / MIGRATION).read_text()
    assert 'down_revision = "5e1fc0de0001"' in text
    assert "Revises: 5e1fc0de0001\n" in text
    for arguments in (("upgrade", "head"), ("check",)):
        result = alembic_in(application, empty_database, *arguments)
        assert result.returncode == 0, result.stderr
    assert "Running upgrade 5e1fc0de0001 -> 5e1fc0de0002" in log(application)

    # The deprecated function still works, and the tests show who uses it.
    output = log(application)
    assert re.search(r"=+ \d+ passed, \d+ warnings in ", output)
    assert "ToolkitDeprecationWarning: quart_upsun.text.clean_lines() is deprecated" in output
    assert "removed in release 0.3.0; use quart_upsun.text.clean_text()." in output

    # What is left to do, with the places.
    advice = run.output.partition("To do by hand:")[2]
    assert "quart_upsun.text.clean_lines is deprecated until 0.3.0" in advice
    for name in ("app/bookmarks/bookmark_file.py", "app/links/api.py"):
        lines = (application / name).read_text().splitlines()
        for number, line in enumerate(lines, 1):
            assert (f"{name}:{number}\n" in advice) == ("clean_lines" in line)
    assert "quart_upsun.http.unused" not in advice
    assert "The variable MAIL_URL is now SMTP_URL" in advice
    assert re.search(r"docs/accounts-and-mail\.md:\d+\n", advice)
    compared = "git diff --no-index Makefile build/upgrade/0.2.0/Makefile"
    assert f"Install the new hook. Compare: `{compared}`" in advice
    assert (application / "build/upgrade/0.2.0/Makefile").exists()
    assert "no-such-file" not in advice
    assert "The macro" not in advice
    assert re.search(r"The footer has another class\.\n +app/templates/\S+:\d+\n", advice)
    assert re.search(r"✓ tests +\d+\.\d s", run.output)

    # A second time there is nothing newer.
    again = subprocess.run(
        [*command], cwd=application, env=environment(), capture_output=True, text=True, check=False
    )
    assert again.returncode == 2
    assert "already uses release 0.2.0" in again.stderr
    assert state(application) == (commit_after, "")


def log(application: Path) -> str:
    return (application / "build" / "upgrade" / "output.log").read_text()


@pytest.mark.parametrize("form", ["release.tar.gz", "release.zip", "remote", "checkout"])
def test_upgrade_from_archives_and_git(
    application: Path, remote: str, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = Path(remote.removeprefix("file://"))
    source, arguments = remote, ["--release", "v0.2.0"]
    if form == "checkout":
        source = str(repository)
    elif form != "remote":
        source, arguments = str(archive(repository, tmp_path / form)), []
    assert main(["--from", source, "--no-tests", *arguments], application) == 0
    assert recorded(application) == "0.2.0"
    assert "✓ migrations" in capsys.readouterr().out
    for package in ("embedded_postgres", "development"):
        listed = git(application, "ls-tree", "-r", "HEAD", package)
        expected = git(repository, "ls-tree", "-r", "v0.2.0", package)
        kept = [line for line in expected.splitlines() if f"\t{package}/tests/" not in line]
        assert listed.splitlines() == kept

    # The newest tag, for which 0.2.0 is required first.
    assert main(["--from", remote, "--no-tests"], application) == 0
    assert recorded(application) == "0.10.0"
    advice = capsys.readouterr().out
    # Its end was announced by the release before.
    assert (
        "quart_upsun.text.clean_lines no longer exists; use quart_upsun.text.clean_text" in advice
    )


def test_check_reports_and_changes_nothing(
    application: Path, release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(application)
    assert main(["--from", str(release), "--check"], application) == 0
    assert state(application) == before
    assert not (application / "build").exists()
    output = capsys.readouterr().out
    assert "Release 0.1.0 -> 0.2.0" in output
    assert re.search(r"quart_upsun/ +4 files changed, 0 added, 0 removed", output)
    assert re.search(r"rehearsal/ +1 files changed, 1 added, 0 removed", output)
    assert MIGRATION in output
    assert "app/links/api.py:" in output
    assert "Nothing was changed." in output


def test_upgrade_takes_over_requirements(
    application: Path,
    release: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requirements that the application has changed are left to the team.

    So are optional dependencies, except those of tests.
    """
    source = Path(shutil.copytree(release, tmp_path / "release"))
    edit(
        source / "quart_upsun" / "pyproject.toml",
        ('"aiosmtplib>=5.1"', '"aiosmtplib>=9999"'),
        ('"lxml>=6.1"', '"lxml>=6.9"'),
        ('"aiodns>=4.0"', '"no-such-package-of-this-test[extra]>=1"'),
        ('ptpython = ["ptpython>=3"]', 'ptpython = ["ptpython>=3", "optional-of-this-test>=1"]'),
        ('"aiosmtpd>=1.4"', '"aiosmtpd>=1.4", "tests-of-this-test>=1"'),
    )
    edit(source / "rehearsal" / "pyproject.toml", ('"jsonschema>=4.26"', '"jsonschema>=4.27"'))
    edit(application / "pyproject.toml", ('"lxml>=6.1"', '"lxml>=6.0"'))
    commit(application, {}, "Another bound")
    locks = (application / "requirements.txt").read_bytes()
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    assert main(["--from", str(source), "--no-tests"], application) == 1
    output = capsys.readouterr().out
    assert "aiosmtplib>=5.1 -> aiosmtplib>=9999" in output
    assert "new: no-such-package-of-this-test[extra]>=1" in output
    assert "pyproject.toml requires lxml>=6.0, and the release lxml>=6.9." in output
    assert "The release no longer requires aiodns." in output
    assert "The lock files could not be compiled" in output
    project = tomllib.loads((application / "pyproject.toml").read_text())["project"]
    required = project["dependencies"]
    assert {"aiosmtplib>=9999", "no-such-package-of-this-test[extra]>=1", "lxml>=6.0"} <= set(
        required
    )
    dev = project["optional-dependencies"]["dev"]
    assert {"jsonschema>=4.27", "tests-of-this-test>=1"} <= set(dev)
    assert "optional-of-this-test>=1" not in [*required, *dev]
    assert (application / "requirements.txt").read_bytes() == locks
    assert git(application, "status", "--porcelain") == ""


def test_drift_after_the_upgrade_is_reported(
    application: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(release, tmp_path / "release"))
    edit(
        source / MIGRATION, ('op.add_column("mails", sa.Column("subject", sa.String(200)))', "pass")
    )
    assert main(["--from", str(source), "--no-tests"], application) == 1
    captured = capsys.readouterr()
    assert 'make migration m="upgrade"' in captured.out
    assert "add_column" in captured.err


def test_refuses_an_application_that_was_not_started(
    tmp_path: Path, release: Path, refuse: Refuse
) -> None:
    commit(tmp_path, {"pyproject.toml": "[tool.other]\n"})
    assert "Run `make start NAME=my-service` first." in refuse(tmp_path, "--from", str(release))
    for record in ("started = 2026-11-30", "release = 'v1'"):
        commit(tmp_path, {"pyproject.toml": f"[tool.quart-upsun]\n{record}\n"})
        assert 'release = "0.1.0"' in refuse(tmp_path, "--from", str(release))
    commit(tmp_path, {"pyproject.toml": "not TOML"})
    assert "pyproject.toml cannot be read" in refuse(tmp_path, "--from", str(release))


def test_refuses_a_dirty_tree(application: Path, release: Path, refuse: Refuse) -> None:
    (application / "app" / "forgotten.py").write_text("\n")
    assert "uncommitted changes: app/forgotten.py" in refuse(application, "--from", str(release))


def test_refuses_changed_package_files(application: Path, release: Path, refuse: Refuse) -> None:
    base = git(application, "rev-parse", "HEAD~1")
    files = {"quart_upsun/text.py": "# ours\n", "rehearsal/ours.py": "\n", "app/ours.py": "\n"}
    commit(application, files, "Our changes")
    message = refuse(application, "--from", str(release))
    assert "your changes in quart_upsun/text.py, rehearsal/ours.py." in message
    assert f"git checkout {base[:12]} -- quart_upsun/text.py" in message
    git(application, "rm", "--quiet", "rehearsal/ours.py")
    git(application, "checkout", base, "--", "quart_upsun/text.py")
    commit(application, {}, "Moved to app/")
    assert main(["--from", str(release), "--check"], application) == 0


def test_refuses_a_shallow_clone(
    application: Path, release: Path, tmp_path: Path, refuse: Refuse
) -> None:
    clone = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{application}", str(clone))
    git(clone, "config", "user.name", "Ada")
    git(clone, "config", "user.email", "ada@example.com")
    assert "git fetch --unshallow" in refuse(clone, "--from", str(release))


def test_refuses_several_heads(application: Path, release: Path, refuse: Refuse) -> None:
    text = (application / TEAM_MIGRATION).read_text().replace("5e1fc0de0001", "5e1fc0de0009")
    commit(application, {"alembic/versions/20991230_5e1fc0de0009_other.py": text})
    message = refuse(application, "--from", str(release))
    assert "2 heads" in message
    assert "merge heads" in message


def test_refuses_a_release_that_is_not_newer(
    application: Path, release: Path, tmp_path: Path, refuse: Refuse
) -> None:
    assert "already uses release 0.1.0" in refuse(application, "--from", str(ROOT))
    edit(application / "pyproject.toml", ('release = "0.1.0"', 'release = "0.3.0"'))
    commit(application, {}, "Upgrade")
    message = refuse(application, "--from", str(release))
    assert "uses release 0.3.0, and 0.2.0 is older" in message


def test_refuses_to_skip_a_required_release(application: Path, remote: str, refuse: Refuse) -> None:
    message = refuse(application, "--from", remote)
    assert "0.10.0 cannot be reached directly from 0.1.0. Upgrade with RELEASE=0.2.0" in message


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.9.9", "has no release 0.9.9. Choose one of 0.2.0, 0.10.0 with RELEASE="),
        ("latest", "RELEASE must be a version such as 0.2.0, got 'latest'."),
    ],
)
def test_refuses_an_unknown_release(
    started: Path, remote: str, refuse: Refuse, version: str, expected: str
) -> None:
    assert expected in refuse(started, "--from", remote, release=version)


def test_refuses_another_release_than_asked_for(
    started: Path, release: Path, refuse: Refuse
) -> None:
    message = refuse(started, "--from", str(release), release="0.3.0")
    assert "FROM contains release 0.2.0, not 0.3.0." in message


def test_refuses_sources_that_are_not_releases(
    started: Path, tmp_path: Path, refuse: Refuse
) -> None:
    assert "FROM is required" in refuse(started, "--from", "")
    assert "/nowhere does not exist. Set FROM to" in refuse(started, "--from", "/nowhere")
    assert "cannot be read: File name too long" in refuse(started, "--from", "x" * 300)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "it has no quart_upsun/pyproject.toml" in refuse(started, "--from", str(empty))
    text = tmp_path / "notes.zip"
    text.write_text("not an archive")
    assert "is not an archive" in refuse(started, "--from", str(text))
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as zipped:
        zipped.writestr("another-1.0/pyproject.toml", "[project]\nname = 'another'\n")
    assert "is not a release of quart-upsun" in refuse(started, "--from", str(other))


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("rehearsal/pyproject.toml", '"0.2.0"', '"0.2.1"', "but rehearsal is 0.2.1"),
        ("rehearsal/pyproject.toml", '"upsun-rehearse"', '"other"', "is not upsun-rehearse"),
        ("quart_upsun/pyproject.toml", '"0.2.0"', '"two"', "pyproject.toml: version: String"),
        ("quart_upsun/pyproject.toml", '">=3.11"', '">=3.99"', "requires Python >=3.99"),
        ("quart_upsun/releases.toml", '"0.2.0"', '"0.2.5"', "has no notes on 0.2.0"),
        ("quart_upsun/releases.toml", "format = 1", "format = 2", "a format that this"),
        ("quart_upsun/releases.toml", "format = 1", "format =", "is not valid TOML"),
        ("quart_upsun/releases.toml", "settings = ", "setings = ", "setings: Extra inputs"),
        ("quart_upsun/releases.toml", '"rehearsal", ', '"../other", ', "packages.1: String should"),
        ("quart_upsun/releases.toml", '"rehearsal", ', '"missing", ', "package missing is missing"),
        ("quart_upsun/releases.toml", "_subject_of", "_gone", "_gone_mails.py is missing"),
    ],
)
def test_refuses_an_inconsistent_release(
    started: Path,
    release: Path,
    tmp_path: Path,
    refuse: Refuse,
    file: str,
    old: str,
    new: str,
    expected: str,
) -> None:
    source = Path(shutil.copytree(release, tmp_path / "release"))
    edit(source / file, (old, new))
    assert expected in refuse(started, "--from", str(source))


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for info, content in members:
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        (tarfile.TarInfo("../outside.txt"), "'../outside.txt' leads out of it"),
        (tarfile.TarInfo("/tmp/outside.txt"), "leads out of it"),
        (tarfile.TarInfo("a/../../outside.txt"), "leads out of it"),
        (link("a", "/etc", tarfile.SYMTYPE), "'a' is a link or a special file"),
        (link("a", "b", tarfile.LNKTYPE), "'a' is a link or a special file"),
        (link("a", "", tarfile.FIFOTYPE), "'a' is a link or a special file"),
    ],
)
def test_refuses_an_unsafe_archive(
    started: Path, tmp_path: Path, refuse: Refuse, member: tarfile.TarInfo, expected: str
) -> None:
    unsafe = tar(tmp_path / "unsafe.tar.gz", (member, b""))
    message = refuse(started, "--from", str(unsafe))
    assert "is not safe to unpack" in message
    assert expected in message
    assert not (tmp_path / "outside.txt").exists()


def test_refuses_an_unsafe_zip_archive(started: Path, tmp_path: Path, refuse: Refuse) -> None:
    path = tmp_path / "unsafe.zip"
    for name, mode in (("../outside.txt", 0o100644), ("a", 0o120777)):
        with zipfile.ZipFile(path, "w") as zipped:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            zipped.writestr(info, "/etc")
        assert "is not safe to unpack" in refuse(started, "--from", str(path))
    assert not (tmp_path / "outside.txt").exists()


def test_refuses_an_archive_that_is_too_large(
    started: Path, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MAX_BYTES", 2**20)
    large = tar(tmp_path / "large.tar.gz", (tarfile.TarInfo("zeros"), bytes(2**20 + 1)))
    assert large.stat().st_size < 10_000
    assert "more than 20,000 files or 1 MB" in refuse(started, "--from", str(large))


def test_refuses_a_damaged_archive(
    started: Path, remote: str, tmp_path: Path, refuse: Refuse
) -> None:
    whole = archive(Path(remote.removeprefix("file://")), tmp_path / "whole.tar.gz").read_bytes()
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "cannot be unpacked" in refuse(started, "--from", str(cut))


@pytest.fixture
def silent_remote() -> Iterator[str]:
    """The URL of a Git remote that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}/repository"


def test_refuses_a_remote_that_does_not_answer(
    started: Path, silent_remote: str, refuse: Refuse
) -> None:
    begun = time.monotonic()
    for scheme in ("git", "http"):
        url = f"{scheme}://{silent_remote}"
        message = refuse(started, "--from", url, "--timeout", "1")
        assert f"{url} did not answer within 1 seconds." in message
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("scheme", ["http", "git"])
def test_refuses_an_unreachable_remote_without_showing_its_password(
    started: Path, refuse: Refuse, scheme: str
) -> None:
    message = refuse(started, "--from", f"{scheme}://ada:s3cret@127.0.0.1:1/repository")
    assert message.startswith(f"{scheme}://127.0.0.1:1/repository cannot be read: ")
    assert "s3cret" not in message
    assert "ada" not in message


def test_refuses_a_remote_that_runs_a_program(
    started: Path, tmp_path: Path, refuse: Refuse
) -> None:
    proof = tmp_path / "proof"
    assert "not allowed" in refuse(started, "--from", f"ext://sh -c 'touch {proof}'")
    assert "does not exist" in refuse(started, "--from", f"ext::sh -c 'touch {proof}'")
    assert not proof.exists()


def test_refuses_a_remote_without_releases(started: Path, tmp_path: Path, refuse: Refuse) -> None:
    commit(tmp_path, {"README.md": "Another project\n"})
    git(tmp_path, "tag", "v2-beta")
    message = refuse(started, "--from", f"file://{tmp_path}")
    assert "has no tags of releases" in message


def test_files_are_restored_if_the_commit_fails(application: Path, release: Path) -> None:
    """For instance because a signature fails."""
    git(application, "config", "commit.gpgsign", "true")
    git(application, "config", "gpg.program", "false")
    before = state(application)
    assert main(["--from", str(release), "--no-tests"], application) == 2
    assert state(application) == before
    assert not (application / "rehearsal" / "brand_new.py").exists()


def test_files_are_restored_if_a_file_cannot_be_written(
    application: Path, release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(application, {"build": "a file where the release is kept\n"})
    before = state(application)
    assert main(["--from", str(release), "--no-tests"], application) == 2
    assert "because a file cannot be written: " in capsys.readouterr().err
    assert state(application) == before


def test_exit_code_says_that_lint_or_tests_fail(
    application: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(release, tmp_path / "release"))
    (source / "rehearsal" / "brand_new.py").write_text("import os\n")
    assert main(["--from", str(source), "--tests=--no-such-option"], application) == 1
    captured = capsys.readouterr()
    assert "`make lint` fails." in captured.out
    assert "`make test` fails." in captured.out
    assert "F401" in captured.err
    assert "--no-such-option" in captured.err
    assert recorded(application) == "0.2.0"


def test_help_names_every_option() -> None:
    command = [sys.executable, "-m", "development.upgrade", "--help"]
    shown = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "make upgrade FROM=" in shown
    for option in ("--check", "--no-tests", "--tests", "--timeout", "--release"):
        assert option in shown
