"""Read a commit from Git, as a push would deliver it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


class TreeError(Exception):
    """A Git command failed; the message is one sentence."""


@dataclass(frozen=True)
class Tree:
    """One commit of a repository."""

    repository: Path
    revision: str
    """The revision that the user named, such as `HEAD` or `v1.2`."""
    commit: str
    id: str
    """The hash of the commit's tree; `PLATFORM_TREE_ID` on the platform."""

    @property
    def title(self) -> str:
        """Return a readable name, such as `HEAD (1a2b3c4d5)`."""
        short = self.commit[:9]
        return short if self.revision == self.commit else f"{self.revision} ({short})"

    def files(self) -> list[str]:
        """Return the paths of all files in the commit."""
        names = git(self.repository, "ls-tree", "-r", "--name-only", "-z", self.commit)
        return [name for name in names.split("\0") if name]

    def export(self, directory: Path) -> Path:
        """Check out the commit into `directory`."""
        directory.mkdir(parents=True)
        # Not `git archive`, which omits files with the attribute export-ignore.
        index = directory.with_name(f"{directory.name}.index")
        try:
            git(
                self.repository,
                *("--work-tree", str(directory), "checkout", "--force", self.commit, "--", "."),
                GIT_INDEX_FILE=str(index),
            )
        finally:
            index.unlink(missing_ok=True)
        return directory


def find_tree(repository: Path, revision: str) -> Tree:
    """Find a commit.

    Raises:
        TreeError: `repository` is not in a Git repository, or the commit does not exist.
    """
    if not repository.is_dir():
        raise TreeError(f"{repository} is not a directory.")
    top = Path(git(repository, "rev-parse", "--show-toplevel").strip())
    try:
        commit = git(top, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except TreeError:
        raise TreeError(f"There is no commit {revision!r} in {top}.") from None
    return Tree(top, revision, commit, git(top, "rev-parse", f"{commit}^{{tree}}").strip())


def uncommitted(tree: Tree) -> int:
    """Return the number of files with uncommitted changes, including untracked files."""
    return len(git(tree.repository, "status", "--porcelain").splitlines())


def git(repository: Path, *arguments: str, **variables: str) -> str:
    """Run git in a repository and return its output.

    Raises:
        TreeError: git failed; the message is the last line of its error output.
    """
    # A Git hook that starts the rehearsal sets GIT_* variables for another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        result = subprocess.run(
            # The user's Git hooks must not run for these checkouts.
            ["git", "-c", "core.hooksPath=/dev/null", *arguments],
            cwd=repository,
            env=environment | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
        )
    except FileNotFoundError:
        raise TreeError("git is not installed.") from None
    if result.returncode != 0:
        raise TreeError((result.stderr.strip().splitlines() or ["git failed"])[-1])
    return result.stdout
