"""What is broken is caught at its stage, with words that help."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from rehearsal.tests.sample import CONFIG, errors, rehearse, sample, told

YAML = ".upsun/config.yaml"
START = "start: exec python3 serve.py"

pytestmark = pytest.mark.requires("bwrap", "nginx")


@dataclass(frozen=True)
class Broken:
    """A change of the sample, and what must be said of it."""

    changes: tuple[tuple[str, str, str], ...]
    stage: str
    words: tuple[str, ...]
    line: str = ""
    """A part of the line of the configuration that is named."""
    force: bool = False
    """Past the validation, which would have caught it earlier."""


BROKEN = {
    "hook that writes outside a mount": Broken(
        ((YAML, "cp -R built/. public/", "cp -R built/. elsewhere/"),),
        "deploy",
        ("exit code", "Read-only file system", "a mount or"),
        "deploy: |",
    ),
    "missing asset": Broken(
        ((YAML, "style-0123abcd", "style-89abcdef"),),
        "probe",
        ("/public/style-0123abcd.css", "404"),
    ),
    "wrong port": Broken(
        (("serve.py", 'int(os.environ["PORT"])', "0"),),
        "start",
        ("listens on port", "requests go to $PORT", "502"),
        START,
    ),
    "unix socket family with a TCP start": Broken(
        ((YAML, "socket_family: tcp", "socket_family: unix"),),
        "start",
        ("$SOCKET", "socket_family: tcp", "502"),
        START,
    ),
    "start in the background": Broken(
        ((YAML, START, "start: python3 serve.py &"),),
        "start",
        ("has ended 5 times", "foreground"),
        "start: python3 serve.py &",
        force=True,
    ),
    "start that crashes": Broken(
        (("serve.py", "import http", "raise SystemExit('no luck')\nimport http"),),
        "start",
        ("has ended 5 times, with exit code 1", "no luck", "502"),
        START,
    ),
    "environment that prints": Broken(
        ((".environment", "export", "echo Welcome\nexport"),),
        "environment",
        ("prints", "Welcome", "rsync"),
    ),
    "environment that sets the port": Broken(
        ((".environment", "export", "export PORT=8888\nexport"),),
        "environment",
        ("PORT", "the platform's"),
        force=True,
    ),
    "environment that ends the shell": Broken(
        ((".environment", "export", "exit 0\nexport"),),
        "environment",
        ("ends there", "no `exit`"),
    ),
    "build that fails": Broken(
        ((YAML, "mkdir built\n", "mkdir built/deep\n"),),
        "build",
        ("exit code 1", "the release before goes on serving", "built/deep"),
        "build: |",
    ),
    "build into a mount": Broken(
        ((YAML, "mkdir built\n", "mkdir -p built public; touch public/lost\n"),),
        "build",
        ("hides 1 files", "public/lost"),
        "public:",
        force=True,
    ),
    "requirement with a wrong hash": Broken(
        (
            (
                YAML,
                "set -eu\n        mkdir",
                "set -eu\n        echo 'THESE PACKAGES DO NOT MATCH THE HASHES'; false\n"
                "        mkdir",
            ),
        ),
        "build",
        ("compile the lock file again",),
        "build: |",
    ),
    "cron that fails": Broken(
        (
            (
                YAML,
                "    hooks:\n",
                "    crons:\n      tidy:\n        spec: 'H * * * *'\n        commands:\n"
                "          start: echo untidy; exit 4\n    hooks:\n",
            ),
        ),
        "crons",
        ("crons tidy ends with exit code 4", "untidy"),
        "tidy:",
    ),
    "worker that ends": Broken(
        (
            (
                YAML,
                "    hooks:\n",
                "    workers:\n      queue:\n        commands:\n          start: exit 3\n"
                "    hooks:\n",
            ),
        ),
        "workers",
        ("the worker queue has ended ", " times, with exit code 3"),
        "queue:",
    ),
    "post_deploy that fails": Broken(
        ((YAML, "    hooks:\n", "    hooks:\n      post_deploy: exit 5\n"),),
        "post_deploy",
        ("post_deploy ends with exit code 5",),
        "post_deploy:",
    ),
    "server that ends at once on SIGTERM": Broken(
        (
            (
                "serve.py",
                "        body = ",
                "        import time; time.sleep(0.2)\n        body = ",
            ),
            (
                "serve.py",
                "stop = lambda *_: threading.Timer(0.3, server.shutdown).start()",
                "stop = lambda *_: os._exit(0)",
            ),
        ),
        "stop",
        ("requests in flight were lost",),
    ),
    "traceback in the log": Broken(
        (
            (
                "serve.py",
                "        found = ",
                "        if 'rehearsal' in self.path: 1 / 0\n        found = ",
            ),
        ),
        "inspect",
        ("traceback", "ZeroDivisionError"),
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_is_caught(broken: Broken, tmp_path: Path) -> None:
    repository = sample(tmp_path / "repository", *broken.changes)
    report = await rehearse(repository, tmp_path / "state", force=broken.force)
    found = [finding for finding in errors(report) if finding.stage == broken.stage]
    assert found, told(report)
    text = "\n".join(str(finding) for finding in found)
    for words in broken.words:
        assert words in text, told(report)
    if broken.line:
        lines = (repository / YAML).read_text().splitlines()
        assert any(broken.line in lines[finding.line - 1] for finding in found), told(report)
    assert report.exit_code == 1


async def test_sample_is_green(tmp_path: Path) -> None:
    report = await rehearse(sample(tmp_path / "repository"), tmp_path / "state")
    assert report.exit_code == 0, told(report)
    assert [finding.severity for finding in report.findings if finding.severity == "warning"] == []


def test_the_sample_has_what_is_changed() -> None:
    assert START in CONFIG
