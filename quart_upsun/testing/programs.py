"""Programs that tests need beside Python."""

import os
import re
import shutil
from collections.abc import Iterable

import pytest

# Program -> the Debian package that brings it.
PACKAGES = {
    "bash": "bash",
    "bwrap": "bubblewrap",
    "chromium": "chromium",
    "curl": "curl",
    "dash": "dash",
    "jq": "jq",
    "nginx": "nginx-light",
    "node": "nodejs",
    "npm": "npm",
    "openssl": "openssl",
    "redis-server": "redis-server",
}


def require(program: str) -> str:
    """Return the path of `program`; without it skip the test, or fail it under CI.

    A check that CI skips is a check that nobody runs, so there it is an error.
    """
    # Servers are installed where not everybody looks for programs.
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is not None:
        return path
    message = f"{program} is not installed (Debian package: {PACKAGES[program]})"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


_MISSING = re.compile(r"(\S+) is not installed \(Debian package: (\S+)\)")


def summary(reasons: Iterable[str]) -> list[str]:
    """Return what to say at the end of a run about the tests that were skipped.

    One line for all that need programs, with the command that installs these; the other reasons as
    they are.

    Args:
        reasons: why each test was skipped.
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
