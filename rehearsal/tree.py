"""The committed tree, as a push would bring it."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


class TreeError(Exception):
    """Git does not know what was asked for; the message is one sentence."""


@dataclass(frozen=True)
class Tree:
    """One commit of a repository."""

    repository: Path
    revision: str
    """As it was asked for, such as `HEAD` or `v1.2`."""
    commit: str
    id: str
    """Git's name of the content; `PLATFORM_TREE_ID` on the platform."""

    @property
    def title(self) -> str:
        """Return a name for people."""
        short = self.commit[:9]
        return short if self.revision == self.commit else f"{self.revision} ({short})"

    def files(self) -> list[str]:
        """Return the paths of all files in it."""
        names = git(self.repository, "ls-tree", "-r", "--name-only", "-z", self.commit)
        return [name for name in names.split("\0") if name]

    def export(self, directory: Path) -> Path:
        """Write its files into `directory`."""
        directory.mkdir(parents=True)
        # A checkout, not `git archive`, which leaves out what .gitattributes calls export-ignore.
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
        TreeError: this is no repository, or it has no such commit.
    """
    if not repository.is_dir():
        raise TreeError(f"{repository} is no directory.")
    top = Path(git(repository, "rev-parse", "--show-toplevel").strip())
    try:
        commit = git(top, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip()
    except TreeError:
        raise TreeError(f"Git knows no commit {revision!r} here.") from None
    return Tree(top, revision, commit, git(top, "rev-parse", f"{commit}^{{tree}}").strip())


def uncommitted(tree: Tree) -> int:
    """Return how many changed or new files are not part of any commit yet."""
    return len(git(tree.repository, "status", "--porcelain").splitlines())


def git(repository: Path, *arguments: str, **variables: str) -> str:
    """Run git in a repository and return what it prints.

    Raises:
        TreeError: it failed; the message is its last line.
    """
    # What an outer git, such as one that runs a hook, says about repositories is not for this one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        result = subprocess.run(
            # No hook of the user's own runs at our checkouts.
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
