"""The command `python -m rehearsal`: messages, exit codes, and cleanup."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from rehearsal import lifecycle
from rehearsal.deploy import BREAKS
from rehearsal.program import program
from rehearsal.tests.sample import CONFIG, commit, git, sample

SECONDS = 60
HERE = Path(__file__).resolve().parents[2]  # where the package can be imported from
SLOW_BUILD = (".upsun/config.yaml", "mkdir built\n", "mkdir built; echo 'building'; sleep 600\n")

pytestmark = pytest.mark.requires("bwrap", "nginx", "dash")


class Command:
    """Run the command in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.repository = directory / "repository"
        self.state = directory / "state"
        # TMPDIR of the command, to find temporary files that it leaves behind.
        self.temporary = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "rehearsal", "-C", str(self.repository)),
                *("--state", str(self.state), *arguments),
            ],
            cwd=HERE,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run the command; return its exit code and output."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=SECONDS)
        assert "Traceback" not in output, output
        return process.returncode, output

    def left(self) -> list[psutil.Process]:
        """Return the processes that the command has started."""
        found = []
        for process in psutil.process_iter():
            try:
                words = [*process.cmdline(), process.cwd()]
            except psutil.Error:
                continue
            own = (str(self.temporary), str(self.state), str(self.repository))
            if any(word.startswith(own) for word in words) and process.pid != os.getpid():
                found.append(process)
        return found

    def assert_clean(self) -> None:
        """Fail if the command has left processes or temporary files."""
        _, alive = psutil.wait_procs(self.left(), timeout=10)
        assert not alive, [process.cmdline() for process in alive]
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    for process in command.left():
        process.kill()
    for path in sorted(command.temporary.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    command.temporary.rmdir()


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Read the output until it contains `words`."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    pytest.fail(f"no {words!r} in the output")


def wait_until(file: Path, words: str) -> None:
    """Wait until a file contains `words`."""
    deadline = time.monotonic() + SECONDS
    while not (file.exists() and words in file.read_text()):
        assert time.monotonic() < deadline, f"no {words!r} in {file}"
        time.sleep(0.02)


def test_help_lists_all_failures_of_break(command: Command) -> None:
    code, output = command.run("--help")
    assert code == 0
    for name, meaning in BREAKS.items():
        assert name in output
        assert meaning in output
    assert "exit codes" in output


@pytest.mark.parametrize("broken", ["database", "migration"])
def test_break_needs_postgresql(command: Command, broken: str) -> None:
    sample(command.repository)
    code, output = command.run("--break", broken)
    assert code == 2, output
    assert f"--break {broken} needs PostgreSQL, and this project uses no services." in output
    relationship = CONFIG.replace("    mounts:", "    relationships: {db: 'db:mysql'}\n    mounts:")
    config = f"{relationship}services: {{db: {{type: 'mariadb:11.8'}}}}\n"
    commit(command.repository, {".upsun/config.yaml": config})
    code, output = command.run("--break", broken)
    assert code == 2, output
    assert "this project uses mariadb." in output


def test_successful_and_failing_deploy(command: Command) -> None:
    sample(command.repository)
    code, output = command.run()
    assert code == 0, output
    assert "would succeed" in output
    assert "Hold window" in output
    command.assert_clean()

    commit(command.repository, {"serve.py": "raise SystemExit('no luck')\n"})
    code, output = command.run()
    assert code == 1, output
    assert "would fail" in output
    line = 1 + CONFIG[: CONFIG.index("start: ")].count("\n")
    assert f".upsun/config.yaml:{line}: " in output
    assert "no luck" in output
    assert f"Logs: {command.state}" in output
    command.assert_clean()


def test_state_in_the_repository_is_ignored_by_git(command: Command) -> None:
    sample(command.repository)
    command.state = command.repository / ".rehearsal"  # the default
    code, output = command.run()
    assert code == 0, output
    assert git(command.repository, "status", "--porcelain", "--untracked-files=all") == ""
    command.assert_clean()


def test_json_is_the_only_output(command: Command) -> None:
    sample(command.repository, (".environment", "export", "echo Welcome\nexport"))
    code, output = command.run("--json")
    document = json.loads(output)
    assert code == 1
    assert document["ok"] is False
    assert {stage["name"] for stage in document["stages"]} >= {"validate", "build", "deploy"}
    (finding,) = [f for f in document["findings"] if f["severity"] == "error"]
    assert finding["place"] == ".environment"
    assert document["hold"]["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-revision"], "no commit 'no-such-revision'"),
        (["--strategy", "rolling"], "--from"),
        (["--from", "HEAD"], "--strategy"),
        (["--clone-of", "production"], "another environment"),
        (["--environment", "copy", "--clone-of", "nowhere"], "nowhere"),
        (["--restore", "no-such.sql"], "no-such.sql is not a file"),
        (["--restore", __file__, "--clone-of", "other"], "both bring the data"),
        (["--rollback", "--break", "kill"], "cannot be combined"),
        (["--deploys", "3"], "--strategy rolling"),
        (["--instances", "3", "--instances-max", "2"], "must not be less"),
        (["--max-connections", "0"], "from 10 to"),
        (["--rollback", "no-such-revision"], "no commit 'no-such-revision'"),
        (["--application", "other"], "--application: web"),
        (["--break", "everything"], "invalid choice"),
        (["--environment", "../outside"], "letters, digits"),
        (["--port", "99999"], "from 0 to 65535"),
        (["--run", "backup"], "KIND:NAME"),
        (["--instances", "0"], "from 1 to 8"),
        (["--state", "/proc/nothing"], "/proc/nothing"),
        (["-C", "/nowhere"], "/nowhere"),
    ],
)
def test_usage_error_exits_with_2(arguments: list[str], words: str, command: Command) -> None:
    sample(command.repository)
    code, output = command.run(*arguments)
    assert code == 2, output
    assert words in output
    command.assert_clean()


def test_no_repository_and_a_wrong_section(command: Command) -> None:
    command.repository.mkdir()
    code, output = command.run()
    assert code == 2
    assert "not a git repository" in output
    sample(command.repository, ("pyproject.toml", "pages", "sides"))
    code, output = command.run()
    assert code == 2
    assert "tool.rehearsal.sides" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interruption_leaves_nothing_running(number: signal.Signals, command: Command) -> None:
    sample(command.repository, SLOW_BUILD)
    process = command.start()
    log = command.state / "environments" / "production" / "logs" / "build.log"
    wait_until(log, "building")
    assert command.left()
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=SECONDS)
    _, alive = psutil.wait_procs(command.left(), timeout=10)
    assert not alive, [process.cmdline() for process in alive]
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "Interrupted" in output
        command.assert_clean()
    # The next rehearsal works.
    git(command.repository, "reset", "--quiet", "--hard")
    commit(command.repository, {"README": "No longer slow\n"})
    config = command.repository / ".upsun" / "config.yaml"
    commit(command.repository, {".upsun/config.yaml": config.read_text().replace("sleep 600", "")})
    code, output = command.run()
    assert code == 0, output
    command.assert_clean()


def test_keep_runs_until_stop(command: Command) -> None:
    sample(command.repository)
    code, output = command.run("--keep")
    assert code == 0, output
    address = output.partition("Still running at ")[2].partition(";")[0]
    assert httpx.get(address, trust_env=False).status_code == 200
    line = output.partition("To stop it: ")[2].partition("\n")[0]
    code, output = command.run()
    assert code == 2, output
    assert "still running" in output
    assert f"`{line}`" in output

    # The printed command works in the same directory.
    result = subprocess.run(["sh", "-c", line], cwd=HERE, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Stopped")
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, trust_env=False)
    command.assert_clean()
    assert command.run("--stop")[0] == 0


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("on the path/upsun-rehearse", "upsun-rehearse"),
        ("here/a place/upsun-rehearse", "'./a place/upsun-rehearse'"),
        ("upsun-rehearse", "{}/upsun-rehearse"),
        ("somewhere/rehearsal/__main__.py", "./python -m rehearsal"),
    ],
)
def test_messages_name_the_command_that_was_run(
    script: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (script, "here/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", str(tmp_path / "on the path"))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / script)])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "here" / "python"))
    assert program() == expected.format(tmp_path)


def test_concurrent_rehearsals_of_an_environment_wait(command: Command) -> None:
    sample(command.repository)
    processes = [command.start() for _ in range(3)] + [command.start("--environment", "other")]
    outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], outputs
    assert any("Waiting for another rehearsal" in output for output in outputs)
    assert "Waiting" not in outputs[3]
    command.assert_clean()


def test_without_isolation(command: Command) -> None:
    sample(command.repository)
    code, output = command.run("--no-isolation")
    assert code == 0, output
    assert "1 note; add --verbose to see them" in output
    assert "not tested" in command.run("--no-isolation", "--verbose")[1]
    # Permissions do not stop root, so the write is found afterwards.
    serve = (command.repository / "serve.py").read_text()
    commit(
        command.repository,
        {"serve.py": f"import os\nos.chmod('.', 0o755)\nopen('written', 'w').close()\n{serve}"},
    )
    code, output = command.run("--no-isolation")
    assert code == 1, output
    assert "wrote to the image" in output, output
    command.assert_clean()


def test_only_leftover_temporary_directories_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    unrelated = tmp_path / "rehearsal-999999-notes"
    unrelated.mkdir()
    (unrelated / "important").touch()
    left = tmp_path / "rehearsal-killed"
    left.mkdir()
    (left / lifecycle.IN_USE).touch()
    in_use = tmp_path / "rehearsal-running"
    in_use.mkdir()
    # Another user may have created a link to a directory, or a link in place of the lock file.
    (tmp_path / "rehearsal-link").symlink_to(left, target_is_directory=True)
    trap = tmp_path / "rehearsal-trap"
    trap.mkdir()
    (trap / lifecycle.IN_USE).symlink_to(left / lifecycle.IN_USE)
    with (in_use / lifecycle.IN_USE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        lifecycle.remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {
        *(unrelated.name, in_use.name, "rehearsal-link", trap.name)
    }
    assert (unrelated / "important").exists()


def test_directories_of_other_users_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    theirs = tmp_path / "rehearsal-theirs"
    theirs.mkdir()
    (theirs / lifecycle.IN_USE).touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    lifecycle.remove_leftovers()
    assert theirs.exists()
