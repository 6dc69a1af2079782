"""Programs that tests need beside Python."""

import os
import shutil

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
