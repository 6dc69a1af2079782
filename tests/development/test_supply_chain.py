"""`make audit` and `make sbom`, with pip-audit, cyclonedx-py and npm.

The vulnerability services are servers of the test, because the real ones give no stable answers.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from app.settings import ROOT
from development.audit import PIP_AUDIT, parse_pip_audit
from development.sbom import CYCLONEDX
from quart_upsun.testing.programs import require

UV = [sys.executable, "-m", "uv", "tool", "run", "--quiet"]
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
sys.exit(str(JsonStrictValidator(SchemaVersion.V1_5).validate_str(sys.stdin.read()) or "") or None)
"""


@pytest.fixture(scope="module")
def tools() -> None:
    """Download pip-audit and cyclonedx-py, or skip without a network."""
    require("npm")
    for command in (["pip-audit", "--version"], ["cyclonedx-py", "--version"]):
        source = PIP_AUDIT if command[0] == "pip-audit" else CYCLONEDX
        result = subprocess.run(
            [*UV, "--from", source.replace("@", "=="), *command], capture_output=True, text=True
        )
        if result.returncode != 0:
            pytest.skip(f"cannot download {command[0]}: {result.stderr.strip()}")


class Service(ThreadingHTTPServer):
    """A vulnerability service in the formats of OSV and npm."""

    advisories: dict[str, Any]
    """The response for npm."""
    vulnerable = ""
    """The only Python package with a vulnerability."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        found: dict[str, Any] = self.server.advisories
        if not self.path.startswith("/-/npm/"):
            name = json.loads(body)["package"]["name"]
            found = {"vulns": [osv(name)]} if name == self.server.vulnerable else {}
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def osv(name: str) -> dict[str, Any]:
    """Return a vulnerability of all versions before 999, in the OSV format."""
    events = [{"introduced": "0"}, {"fixed": "999"}]
    return {
        "id": "PYSEC-2099-1",
        "aliases": ["CVE-2099-1"],
        "summary": "A test",
        "modified": "2099-01-01T00:00:00Z",
        "published": "2099-01-01T00:00:00Z",
        "affected": [
            {
                "package": {"name": name, "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": events}],
            }
        ],
    }


ESBUILD = {
    "id": 1,
    "url": "https://example.com/advisory",
    "title": "A test",
    "severity": "high",
    "vulnerable_versions": "*",
}


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(("127.0.0.1", 0), Handler) as server:
        server.advisories = {}
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def audit(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "development.audit", *options],
        cwd=ROOT,
        env={**os.environ, "npm_config_fetch_retries": "0", **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


def audit_with(service: Service) -> subprocess.CompletedProcess[str]:
    options = ("--vulnerability-service", "osv", "--osv-url", service.url)
    return audit(*options, npm_config_registry=service.url)


@pytest.mark.usefixtures("tools")
def test_audit_of_packages_without_vulnerabilities(service: Service) -> None:
    result = audit_with(service)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["0", "0"]
    assert lines[0].startswith("Python packages: ")
    assert lines[1].startswith("npm packages: ")


@pytest.mark.usefixtures("tools")
def test_audit_names_each_vulnerability(service: Service) -> None:
    service.vulnerable = "quart"
    service.advisories = {"esbuild": [ESBUILD]}
    result = audit_with(service)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("quart 0.")
    assert lines[0].endswith(": PYSEC-2099-1, CVE-2099-1, fixed in 999")
    assert "esbuild: A test (high), https://example.com/advisory" in lines
    assert sum(line.endswith("known vulnerabilities: 1") for line in lines) == 2


@pytest.mark.usefixtures("tools")
def test_audit_fails_if_the_service_does_not_answer(service: Service) -> None:
    service.advisories = {"esbuild": [ESBUILD]}
    options = ("--vulnerability-service", "osv", "--osv-url", "http://127.0.0.1:1/")
    result = audit(*options, npm_config_registry="http://127.0.0.1:1/")
    assert result.returncode == 2
    python, npm = result.stderr.splitlines()
    assert python.startswith("Python packages: not checked: ")
    assert npm.startswith("npm packages: not checked: ")
    assert "known vulnerabilities" not in result.stdout
    # A vulnerability counts even if other packages could not be checked.
    assert audit(*options, npm_config_registry=service.url).returncode == 1


def test_unknown_packages_count_as_not_checked() -> None:
    """pip-audit itself reports success if the service knows none of the packages."""
    known = {"name": "quart", "version": "1", "vulns": []}
    unknown = {"name": "ours", "skip_reason": "Dependency not found"}
    report = parse_pip_audit(json.dumps({"dependencies": [known, unknown]}), "")
    assert report.checked == 1
    assert report.failure.startswith("1 of 2 not checked")
    assert not parse_pip_audit(json.dumps({"dependencies": [known]}), "").failure


def test_audit_without_a_network_says_so(tmp_path: Path) -> None:
    result = audit(
        UV_OFFLINE="1",
        UV_CACHE_DIR=str(tmp_path),
        npm_config_registry="http://127.0.0.1:1/",
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    python, npm = result.stderr.splitlines()
    assert python.startswith("Python packages: not checked: ")
    assert npm.startswith("npm packages: not checked: ")


@pytest.mark.usefixtures("tools")
def test_sbom_is_valid_and_reproducible(tmp_path: Path) -> None:
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    for file in files:
        command = [sys.executable, "-m", "development.sbom", str(file)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    text = files[0].read_text()
    assert text == files[1].read_text()
    validation = subprocess.run(
        [
            *(*UV, "--from", CYCLONEDX, "--with", "cyclonedx-python-lib[json-validation]"),
            *("python", "-c", VALIDATE),
        ],
        input=text,
        capture_output=True,
        text=True,
    )
    assert (validation.returncode, validation.stderr) == (0, "")

    document = json.loads(text)
    packages = {each["purl"].partition("?")[0] for each in document["components"]}
    locked = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = [line.split()[0] for line in requirements if line[:1].isalnum()]
    assert packages == {
        *(f"pkg:pypi/{each.replace('==', '@')}" for each in pinned),
        *(
            f"pkg:npm/{name.rpartition('node_modules/')[2].replace('@', '%40')}@{each['version']}"
            for name, each in locked.items()
            if name
        ),
    }
    assert all(
        each.get("hashes") or each["externalReferences"][0]["hashes"]
        for each in document["components"]
    )
    [root] = [each for each in document["dependencies"] if each["ref"] == "root-component"]
    names = {each["bom-ref"]: each["name"] for each in document["components"]}
    assert {"quart", "esbuild"} <= {names[ref] for ref in root["dependsOn"]}
    assert "werkzeug" not in {names[ref] for ref in root["dependsOn"]}


def test_sbom_without_a_network_says_so(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "development.sbom", str(tmp_path / "sbom.json")],
        cwd=ROOT,
        env={**os.environ, "UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("cyclonedx-py failed: ")
    assert not (tmp_path / "sbom.json").exists()
