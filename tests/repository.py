"""The files of the repository as they would be pushed, including uncommitted changes."""

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from app.settings import ROOT


def tracked_files() -> list[str]:
    """Return all tracked files and all untracked files that are not ignored."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [name for name in names.split("\0") if name]


def checkout(directory: Path) -> Path:
    """Copy the tracked files into `directory`."""
    for name in tracked_files():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # deleted, but not committed
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
    return directory
