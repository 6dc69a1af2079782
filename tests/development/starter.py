"""Clones of the starter, as its users make them, and trees that `make start` has rewritten."""

import subprocess
import sys
from datetime import date
from pathlib import Path

from development import removal
from development.start.answers import Answers
from development.start.rewrite import remove_itself, rewrite
from tests.development.clone import share_packages
from tests.repository import checkout

FEATURES = removal.read_features()
TODAY = date(2026, 11, 30)


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=root, check=True, capture_output=True, text=True
    ).stdout.strip()


def make_starter(root: Path) -> Path:
    """Copy the repository, with one commit, as "Use this template" does."""
    checkout(root)
    git(root, "init", "--quiet", "--initial-branch=main")
    configure(root)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "Initial commit")
    return root


def make_shallow_clone(root: Path) -> Path:
    """Clone a copy of the repository with its last commit only; its remote is `origin`."""
    source = make_starter(root.with_name("source"))
    git(source, "commit", "--quiet", "--allow-empty", "--message", "Another commit")
    git(root.parent, "clone", "--quiet", "--depth", "1", source.as_uri(), root.name)
    configure(root)
    return root


def configure(root: Path) -> None:
    git(root, "config", "user.name", "Ada Lovelace")
    git(root, "config", "user.email", "ada@example.com")
    git(root, "config", "commit.gpgsign", "false")
    # .gitignore covers these directories, but not symbolic links of the same name.
    (root / ".git" / "info" / "exclude").write_text(".venv\nnode_modules\n")


def install(root: Path) -> None:
    """Link the installed packages into a clone.

    `make start` writes into node_modules, so the packages are linked one by one.
    """
    share_packages(root)
    shared = (root / "node_modules").readlink()
    (root / "node_modules").unlink()
    (root / "node_modules").mkdir()
    for path in shared.iterdir():
        (root / "node_modules" / path.name).symlink_to(path)
    lock = (root / "package-lock.json").read_bytes()
    (root / "node_modules" / ".installed.json").unlink()
    (root / "node_modules" / ".installed.json").write_bytes(lock)


def started(root: Path, *keep: str) -> Path:
    """Return a clone of the starter that was rewritten and committed, but not checked."""
    make_starter(root)
    answers = Answers("my-service", "My service", "Ada Lovelace", "MIT", list(keep))
    rewrite(root, answers, git(root, "rev-parse", "HEAD"), TODAY)
    remove_itself(root)
    for words in (("check", "--fix", "--quiet"), ("format", "--quiet")):
        subprocess.run([sys.executable, "-m", "ruff", *words], cwd=root, check=False)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "Start my-service")
    return root
