"""Checks of the Git working tree before a command rewrites it, and the record of `make start`."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

# State of a command that Git has not finished -> the command, relative to the Git directory.
UNFINISHED = {
    "MERGE_HEAD": "merge",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "BISECT_LOG": "bisect",
}
MAX_PATHS_SHOWN = 5
SECTION = "tool.quart-upsun"


class WorkingTreeError(Exception):
    """The working tree is not ready; nothing was changed. The message is one sentence or two."""


def git(root: Path, *arguments: str) -> str:
    """Run git, and return what it prints, without the final newline.

    Raises:
        WorkingTreeError: git is not installed, or fails.
    """
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise WorkingTreeError("Git is required, but not installed.") from None
    if done.returncode != 0:
        raise WorkingTreeError(done.stderr.strip() or f"git {arguments[0]} failed.")
    return done.stdout.rstrip("\n")


def require_clean(root: Path) -> str:
    """Return the current commit, to which `git reset --hard` can return.

    Raises:
        WorkingTreeError: the directory is not the root of a Git repository with a commit, a Git
            command is unfinished, or there are uncommitted changes.
    """
    commit_all = "git add --all && git commit -m 'First commit'"
    try:
        top = Path(git(root, "rev-parse", "--show-toplevel"))
    except WorkingTreeError as error:
        if "not installed" in str(error):
            raise
        raise WorkingTreeError(
            f"{root} is not a Git repository, so nothing could be undone."
            f" Run `git init && {commit_all}`."
        ) from None
    if top.resolve() != root.resolve():
        raise WorkingTreeError(
            f"{root} is a directory of the repository {top}. Copy it out of there, and run"
            f" `git init && {commit_all}`."
        )
    try:
        commit = git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    except WorkingTreeError:
        raise WorkingTreeError(f"Nothing is committed yet. Run `{commit_all}`.") from None
    directory = root / git(root, "rev-parse", "--git-dir")
    for name, command in UNFINISHED.items():
        if (directory / name).exists():
            raise WorkingTreeError(
                f"A {command} is not finished. Finish it, or run"
                f" `git {command} {'reset' if command == 'bisect' else '--abort'}`."
            )
    changed = git(root, "status", "--porcelain", "--untracked-files=all").splitlines()
    if changed:
        shown = ", ".join(line[3:] for line in changed[:MAX_PATHS_SHOWN])
        more = f" and {len(changed) - MAX_PATHS_SHOWN} more" * (len(changed) > MAX_PATHS_SHOWN)
        raise WorkingTreeError(
            f"There are uncommitted changes: {shown}{more}. Commit them, or run `git stash -u`."
        )
    return commit


def require_identity(root: Path) -> str:
    """Return the name of the author of the next commit.

    Raises:
        WorkingTreeError: Git does not know who commits.
    """
    try:
        git(root, "var", "GIT_COMMITTER_IDENT")
        return git(root, "var", "GIT_AUTHOR_IDENT").partition(" <")[0]
    except WorkingTreeError:
        raise WorkingTreeError(
            "Git does not know who you are. Run `git config --global user.name 'Your name'` and"
            " `git config --global user.email you@example.com`."
        ) from None


def read_record(root: Path) -> dict[str, Any] | None:
    """Return what `make start` recorded in pyproject.toml; None in an application not started.

    The keys are `release`, the version of the toolkit; `started`, a date; and `keep`, the optional
    features.
    """
    tool = tomllib.loads((root / "pyproject.toml").read_text("utf-8")).get("tool", {})
    record: dict[str, Any] | None = tool.get("quart-upsun")
    return record


def record_kept(pyproject: str, keep: list[str]) -> str:
    """Return the text of pyproject.toml with another list of optional features."""
    names = ", ".join(f'"{name}"' for name in keep)
    return re.sub(
        rf"(?<=^\[{re.escape(SECTION)}\]\n)((?:[^\[\n].*\n)*?)keep = \[.*\]",
        rf"\1keep = [{names}]",
        pyproject,
        count=1,
        flags=re.MULTILINE,
    )
