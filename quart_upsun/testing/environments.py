"""Virtual environments for programs that have their own packages."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path


def virtual_environment(directory: Path, requirements: Path) -> Path:
    """Create a virtual environment if it does not exist or is outdated; return its interpreter.

    Processes that call it at the same time wait for the one that installs.

    Args:
        directory: the directory of the environment.
        requirements: a lock file with hashes.

    Raises:
        CalledProcessError: the packages cannot be installed, for instance without a network.
    """
    python, installed = directory / "bin" / "python", directory / "installed.txt"
    key = f"{sys.version}\n{requirements.read_text()}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{directory}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Written last, so that an interrupted installation is repeated.
        if not installed.exists() or installed.read_text() != key:
            sys.stderr.write(f"Installing {requirements} into {directory}\n")
            shutil.rmtree(directory, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
            pip = [str(python), "-m", "pip", "install", "-qq", "--require-hashes", "-r"]
            subprocess.run(
                [*pip, str(requirements)],
                env={
                    **os.environ,
                    "PIP_USER": "0",
                    "PIP_ROOT_USER_ACTION": "ignore",
                    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                },
                check=True,
            )
            installed.write_text(key)
    return python
