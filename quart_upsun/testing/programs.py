"""Programs that tests require in addition to Python."""

import os
import re
import shutil
from collections.abc import Iterable

import pytest

# Program -> Debian package
PACKAGES = {
    "bash": "bash",
    "bwrap": "bubblewrap",
    "chromium": "chromium",
    "curl": "curl",
    "dash": "dash",
    "jq": "jq",
    "mariadbd": "mariadb-server",
    "nginx": "nginx-light",
    "node": "nodejs",
    "npm": "npm",
    "openssl": "openssl",
    "pgbouncer": "pgbouncer",
    "redis-server": "redis-server",
}


def find(program: str) -> str | None:
    """Return the path of a program; None if it is not installed."""
    # Debian installs servers in /usr/sbin, which is not in every user's PATH.
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def require(program: str) -> str:
    """Return the path of a program. If it is not installed, skip the test, or fail it in CI."""
    path = find(program)
    if path is not None:
        return path
    message = f"{program} is not installed (Debian package: {PACKAGES[program]})"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


_MISSING = re.compile(r"(\S+) is not installed \(Debian package: (\S+)\)")


def summary(reasons: Iterable[str]) -> list[str]:
    """Summarize why tests were skipped.

    All missing programs are reported in one line, with the command that installs them. Each other
    reason is reported once.

    Args:
        reasons: the reason of each skipped test.
    """
    count, missing, others = 0, dict[str, str](), []
    for reason in reasons:
        if found := _MISSING.search(reason):
            count += 1
            missing[found[1]] = found[2]
        else:
            others.append(f"skipped: {reason.removeprefix('Skipped: ')}")
    lines = sorted(set(others))
    if missing:
        tests = "1 test needs" if count == 1 else f"{count} tests need"
        programs, packages = sorted(missing), sorted(set(missing.values()))
        lines.append(f"{tests} {', '.join(programs)}: apt install {' '.join(packages)}")
    return lines
