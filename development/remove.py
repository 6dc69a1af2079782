"""Remove an optional feature from a started application: `make remove FEATURE=bookmarks`."""

import argparse
import subprocess
import sys
from pathlib import Path

from development import removal
from development.removal import UnknownFeatureError, with_dependents
from development.working_tree import (
    WorkingTreeError,
    read_record,
    record_kept,
    require_clean,
)

ROOT = Path(__file__).parent.parent


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Remove features; return the exit code. Nothing is changed if it is 2."""
    features = removal.read_features(root / "development" / "optional_features.toml")
    parser = argparse.ArgumentParser(
        prog="python -m development.remove",
        description="Remove optional features, and what builds on them, from the application.",
        epilog="\n".join(f"  {name:<10} {each.title}" for name, each in features.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("feature", nargs="*", help="the features to remove:")
    parser.add_argument(
        "--not-deployed",
        action="store_true",
        help="delete the migrations of the features as well: no database has their tables",
    )
    options = parser.parse_args(arguments)
    try:
        gone = check(root, " ".join(options.feature), features)
        commit = require_clean(root)
    except (UnknownFeatureError, WorkingTreeError) as error:
        print(error, file=sys.stderr)
        return 2
    asked = removal.select(" ".join(options.feature), features)
    if dependents := [name for name in gone if name not in asked]:
        print(f"Also removed, because they build on it: {', '.join(dependents)}.")
    remaining = [name for name in removal.present(root, features) if name not in gone]
    migrations = removal.remove(
        root, [features[name] for name in gone], has_tables=not options.not_deployed
    )
    removal.repair_documents(root, [features[name] for name in gone], commit)
    removal.edit(root / "pyproject.toml", lambda text: record_kept(text, remaining))
    for command in (("check", "--fix", "--quiet"), ("format", "--quiet")):
        subprocess.run([sys.executable, "-m", "ruff", *command], cwd=root, check=False)
    print(f"Removed {', '.join(gone)}. See `git status`, and run `make lint` and `make test`.")
    if migrations:
        print(
            f"The tables stay, because databases may have them ({', '.join(migrations)}). Remove"
            ' them with `make migration m="drop the tables"`; docs/adding-a-feature.md says how.'
        )
    print(f"To undo this, run `git reset --hard {commit[:12]}`.")
    return 0


def check(root: Path, words: str, features: removal.Features) -> list[str]:
    """Return the features to remove, with those that build on them.

    Raises:
        UnknownFeatureError: no feature is named, or one that does not exist or was removed.
        WorkingTreeError: this is the starter, not an application started from it.
    """
    if read_record(root) is None:
        raise WorkingTreeError(
            "Start your application first, and choose its features:"
            " `make start NAME=my-service KEEP=links,api`."
        )
    remaining = removal.present(root, features)
    names = removal.select(words, features)
    if not names:
        raise UnknownFeatureError(
            "Name a feature: `make remove FEATURE=…`, with one of"
            f" {', '.join(remaining) or '(none is left)'}."
        )
    for name in names:
        if name not in remaining:
            raise UnknownFeatureError(f"{name} is not part of this application any more.")
    return [name for name in with_dependents(names, features) if name in remaining]


if __name__ == "__main__":
    sys.exit(main())
