"""Each fault is reported in its stage, with a line and a fix."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from rehearsal.findings import Severity, Verdict, verdict
from rehearsal.tests.sample import CONFIG, rehearse, sample, summary

YAML = ".upsun/config.yaml"
START = "start: exec python3 serve.py"

pytestmark = pytest.mark.requires("bwrap", "nginx")


@dataclass(frozen=True)
class Broken:
    """Changes to the sample, and the expected finding."""

    changes: tuple[tuple[str, str, str], ...]
    stage: str
    words: tuple[str, ...]
    line: str = ""
    """A part of the line of the configuration that the finding names."""
    force: bool = False
    """Continue after the validation, which finds the fault first."""
    severity: Severity = Severity.ERROR


BROKEN = {
    "hook that writes outside a mount": Broken(
        ((YAML, "cp -R built/. public/", "cp -R built/. elsewhere/"),),
        "deploy",
        ("exit code 1", "Read-only file system", "a mount or"),
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
        ("listens on port", "$PORT", "502"),
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
        "restart",
        ("exited 5 times", "foreground"),
        "start: python3 serve.py &",
        force=True,
    ),
    "start that crashes": Broken(
        (("serve.py", "import http", "raise SystemExit('no luck')\nimport http"),),
        "restart",
        ("exited 5 times", "exit code 1", "no luck", "502"),
        START,
    ),
    "start that crashes until the deploy hook has run": Broken(
        (
            ("serve.py", "import http", "open('public/style-0123abcd.css')\nimport http"),
            (YAML, "cp -R built/. public/", "sleep 0.5; cp -R built/. public/"),
        ),
        "start",
        ("exited 5 times", "FileNotFoundError", "until the deploy hook has run"),
        START,
        severity=Severity.WARNING,
    ),
    "environment that prints": Broken(
        ((".environment", "export", "echo Welcome\nexport"),),
        "environment",
        ("prints", "Welcome", "rsync"),
    ),
    "environment that sets the port": Broken(
        ((".environment", "export", "export PORT=8888\nexport"),),
        "environment",
        ("changes PORT",),
        force=True,
    ),
    "environment that ends the shell": Broken(
        ((".environment", "export", "exit 0\nexport"),),
        "environment",
        ("ends the shell", "`exit`"),
    ),
    "build that fails": Broken(
        ((YAML, "mkdir built\n", "mkdir built/deep\n"),),
        "build",
        ("exit code 1", "the previous release keeps serving", "built/deep"),
        "build: |",
    ),
    "build into a mount": Broken(
        ((YAML, "mkdir built\n", "mkdir -p built public; touch public/lost\n"),),
        "build",
        ("hides 1 file", "public/lost"),
        "public:",
        severity=Severity.WARNING,
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
        ("the cron tidy", "exit code 4", "untidy"),
        "tidy:",
        severity=Severity.WARNING,
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
        ("the worker queue exited", "exit code 3"),
        "queue:",
    ),
    "post_deploy that fails": Broken(
        ((YAML, "    hooks:\n", "    hooks:\n      post_deploy: exit 5\n"),),
        "post_deploy",
        ("post_deploy", "exit code 5"),
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
        ("requests in flight", "ended before it had answered them"),
        severity=Severity.WARNING,
    ),
    "server that does not handle SIGTERM": Broken(
        (
            (
                "serve.py",
                "        body = ",
                "        import time; time.sleep(0.2)\n        body = ",
            ),
            ("serve.py", "signal.signal(signal.SIGTERM, stop)", ""),
        ),
        "stop",
        ("requests in flight", "the server does not handle the signal"),
        severity=Severity.WARNING,
    ),
    "start without exec": Broken(
        (
            (
                "serve.py",
                "        body = ",
                "        import time; time.sleep(0.2)\n        body = ",
            ),
            (YAML, START, "start: cd . && python3 serve.py"),
        ),
        "stop",
        ("requests in flight", "ended the shell", "put `exec`"),
        severity=Severity.WARNING,
    ),
    "traceback in the log": Broken(
        (
            (
                "serve.py",
                "class Handler",
                "try:\n    1 / 0\nexcept ZeroDivisionError:\n    import traceback\n"
                "    traceback.print_exc()\n\nclass Handler",
            ),
        ),
        "inspect",
        ("traceback", "ZeroDivisionError"),
        severity=Severity.WARNING,
    ),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
async def test_fault_is_reported(broken: Broken, tmp_path: Path) -> None:
    repository = sample(tmp_path / "repository", *broken.changes)
    report = await rehearse(repository, tmp_path / "state", force=broken.force)
    found = [f for f in report.findings if (f.stage, f.severity) == (broken.stage, broken.severity)]
    assert found, summary(report)
    text = "\n".join(str(finding) for finding in found)
    for words in broken.words:
        assert words in text, summary(report)
    if broken.line:
        lines = (repository / YAML).read_text().splitlines()
        assert any(broken.line in lines[finding.line - 1] for finding in found), summary(report)
    # A warning does not decide, unless it is asked to.
    assert report.exit_code == (broken.severity is Severity.ERROR), summary(report)
    assert verdict(report.findings, strict=True) is Verdict.FAILS


async def test_sample_has_no_findings(tmp_path: Path) -> None:
    report = await rehearse(sample(tmp_path / "repository"), tmp_path / "state")
    assert report.exit_code == 0, summary(report)
    assert [finding.severity for finding in report.findings if finding.severity == "warning"] == []


def test_sample_contains_the_replaced_text() -> None:
    assert START in CONFIG
