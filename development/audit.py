"""Look for known vulnerabilities in the locked packages: `make audit`.

  python -m development.audit [OPTION...]

Options are passed to pip-audit, for instance `--ignore-vuln ID`. pip-audit runs in an environment
of its own, so that its dependencies are not among the locked packages.

Exit code: 0 if no vulnerability is known, 1 if one is, 2 if not all packages could be checked, for
instance without a network.
"""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from app.settings import ROOT

PIP_AUDIT = "pip-audit@2.10.1"
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Report:
    """The result for one kind of packages."""

    checked: int
    """The number of packages."""
    vulnerabilities: list[str] = field(default_factory=list)
    """A line for each vulnerability of a package."""
    failure: str = ""
    """Why packages were not checked."""


def main() -> int:
    """Audit Python and npm packages; return the exit code."""
    reports = {"Python": audit_python(sys.argv[1:]), "npm": audit_npm()}
    for name, report in reports.items():
        for line in report.vulnerabilities:
            print(line)
        if report.failure:
            print(f"{name} packages: {report.failure}", file=sys.stderr)
        else:
            count = len(report.vulnerabilities)
            print(f"{name} packages: {report.checked} checked, known vulnerabilities: {count}")
    if any(report.vulnerabilities for report in reports.values()):
        return 1
    return 2 if any(report.failure for report in reports.values()) else 0


def audit_python(options: list[str]) -> Report:
    """Audit the packages in requirements-dev.txt, which include those of production."""
    command = [sys.executable, "-m", "uv", "tool", "run", "--quiet", PIP_AUDIT]
    # Without pip, which would install the packages to find out what is locked already.
    command += ["--requirement", "requirements-dev.txt", "--disable-pip", "--require-hashes"]
    command += ["--format", "json", "--progress-spinner", "off", *options]
    output, errors = run(command)
    return parse_pip_audit(output, errors)


def audit_npm() -> Report:
    """Audit the packages in package-lock.json."""
    npm = shutil.which("npm")
    if npm is None:
        return Report(0, failure="not checked, because npm is not installed.")
    output, errors = run([npm, "audit", "--json", "--package-lock-only"])
    return parse_npm_audit(output, errors)


def run(command: list[str]) -> tuple[str, str]:
    """Run a program in the repository; return its output and its errors."""
    try:
        result = subprocess.run(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer within {TIMEOUT_SECONDS} seconds"
    return result.stdout, result.stderr


def parse_pip_audit(output: str, errors: str) -> Report:
    """Return the report in pip-audit's JSON.

    pip-audit also exits with 0 if the service knows none of the packages.
    """
    found = parse_json(output)
    if "dependencies" not in found:
        return Report(0, failure=f"not checked: {last_line(errors)}")
    checked = [each for each in found["dependencies"] if "vulns" in each]
    skipped = len(found["dependencies"]) - len(checked)
    vulnerabilities = [
        f"{package['name']} {package['version']}: {', '.join([each['id'], *each['aliases']])},"
        f" fixed in {', '.join(each['fix_versions']) or 'no version'}"
        for package in checked
        for each in package["vulns"]
    ]
    failure = (
        f"{skipped} of {len(found['dependencies'])} not checked, because the vulnerability service"
        " does not know them."
        if skipped
        else ""
    )
    return Report(len(checked), vulnerabilities, failure)


def parse_npm_audit(output: str, errors: str) -> Report:
    """Return the report in npm's JSON, version 2."""
    found = parse_json(output)
    if "vulnerabilities" not in found:
        return Report(0, failure=f"not checked: {found.get('message') or last_line(errors)}")
    vulnerabilities = [
        f"{name}: {advisory['title']} ({advisory['severity']}), {advisory['url']}"
        for name, package in sorted(found["vulnerabilities"].items())
        for advisory in package["via"]
        if isinstance(advisory, dict)  # a string names a vulnerable dependency
    ]
    return Report(found["metadata"]["dependencies"]["total"], vulnerabilities)


def parse_json(text: str) -> dict[str, Any]:
    """Return a JSON object; an empty one if the text is something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def last_line(text: str) -> str:
    """Return the last line of a program's error messages."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^(cause|error|hint): ", "", lines[-1]) if lines else "no output"


if __name__ == "__main__":
    sys.exit(main())
