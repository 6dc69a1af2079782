"""A sample project for Upsun, and helpers to rehearse it."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

from rehearsal import lifecycle
from rehearsal.findings import Finding, Severity
from rehearsal.report import Console, Report
from rehearsal.scene import Options

CONFIG = """\
applications:
  web:
    type: "python:3.13"
    container_profile: BALANCED
    mounts:
      public:
        source: storage
        source_path: public
    web:
      upstream:
        socket_family: tcp
      commands:
        start: exec python3 serve.py
      locations:
        "/":
          passthru: true
        "/public":
          root: public
          expires: 1y
    hooks:
      build: |
        set -eu
        mkdir built
        printf 'body { color: green }' >built/style-0123abcd.css
      deploy: |
        set -eu
        cp -R built/. public/
routes:
  "https://{default}/":
    type: upstream
    upstream: "web:http"
"""

SERVE = """\
import http.server, os, signal, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.path.partition("?")[0] in {"/", "/ready"}
        body = b'<link rel="stylesheet" href="/public/style-0123abcd.css"><p>Hello'
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

server = Server(("127.0.0.1", int(os.environ["PORT"])), Handler)
# Keep accepting for a moment: the web server may be forwarding requests.
stop = lambda *_: threading.Timer(0.3, server.shutdown).start()
signal.signal(signal.SIGTERM, stop)
server.serve_forever()
server.server_close()
"""

FILES = {
    ".upsun/config.yaml": CONFIG,
    ".environment": "export GREETING=hello\n",
    "serve.py": SERVE,
    "pyproject.toml": '[tool.rehearsal]\npages = ["/"]\nready = "/ready"\n',
}


def git(directory: Path, *arguments: str) -> str:
    """Run git in a test repository, with a fixed author."""
    # A Git hook that runs the tests sets GIT_* variables for another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    identity = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    return subprocess.run(
        ["git", *identity, "-c", "commit.gpgsign=false", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def commit(directory: Path, files: dict[str, str], message: str = "A change") -> str:
    """Write files, commit all files in the directory, and return the commit."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if not (directory / ".git").exists():
        git(directory, "init", "--quiet", "--initial-branch=main")
    git(directory, "add", "--all", "--force")
    git(directory, "commit", "--quiet", "--allow-empty", "-m", message)
    return git(directory, "rev-parse", "HEAD")


def sample(directory: Path, *changes: tuple[str, str, str], **files: str) -> Path:
    """Create a repository with the sample project.

    Args:
        directory: the repository's directory.
        changes: tuples of a file, an old text in it, and its replacement.
        files: additional files.
    """
    content = FILES | files
    for name, old, new in changes:
        assert old in content[name], old
        content[name] = content[name].replace(old, new)
    directory.mkdir(parents=True, exist_ok=True)
    commit(directory, content)
    return directory


async def rehearse(repository: Path, state: Path, **choices: object) -> Report:
    """Rehearse the last commit of a repository."""
    options = replace(Options(repository=repository, state=state), **choices)  # type: ignore[arg-type]
    complete: list[Report] = []

    async def keep(report: Report) -> None:
        complete.append(report)

    report = await lifecycle.rehearse(options, Console(quiet=True), keep)
    assert complete == [report]
    return report


def errors(report: Report) -> list[Finding]:
    """Return the errors in a report."""
    return [finding for finding in report.findings if finding.severity is Severity.ERROR]


def summary(report: Report) -> str:
    """Return a report as text, for the message of a failed assertion."""
    lines = [f"{stage.name}: {stage.result} {stage.detail}" for stage in report.stages]
    return "\n".join([*lines, *map(str, report.findings), *report.seen])
