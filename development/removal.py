"""Remove optional features from a working tree, as optional_features.toml describes them.

`make start` and `make remove` share this code. It needs the standard library only, and leaves the
formatting of the changed files to `make format`.
"""

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# A link of a document, and a path of the application in it.
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
CODE_PATH = re.compile(r"`((?:app|tests|assets|alembic)/[\w./-]+)`")
DESCRIPTION = Path(__file__).with_name("optional_features.toml")


class UnknownFeatureError(Exception):
    """There is no optional feature with this name. The message lists the names."""


@dataclass(frozen=True)
class Feature:
    """An optional feature. optional_features.toml explains the attributes."""

    name: str
    title: str
    paths: Sequence[str]
    needs: Sequence[str] = ()
    tables: Sequence[str] = ()
    names: Mapping[str, Sequence[str]] | None = None
    lines: Mapping[str, Sequence[str]] | None = None
    npm: Sequence[str] = ()
    urls: Sequence[str] = ()


Features = Mapping[str, Feature]


def read_features(description: Path = DESCRIPTION) -> Features:
    """Return all optional features by name, in the order of the description."""
    tables = tomllib.loads(description.read_text("utf-8"))
    return {name: Feature(name, **table) for name, table in tables.items()}


def present(root: Path, features: Features) -> list[str]:
    """Return the names of the features that the working tree has: the first path of each exists."""
    return [name for name, feature in features.items() if any(root.glob(feature.paths[0]))]


def select(words: str, features: Features) -> list[str]:
    """Return the names in a list like `links,api`, in the order of the description.

    `all` and `none` are lists, too.

    Raises:
        UnknownFeatureError: one of the names is unknown.
    """
    names = [word for word in re.split(r"[,\s]+", words.strip().lower()) if word]
    if names in (["all"], ["none"]):
        return list(features) if names == ["all"] else []
    for name in names:
        if name not in features:
            raise UnknownFeatureError(
                f"{name!r} is not an optional feature. Choose from {', '.join(features)},"
                " or use all or none."
            )
    return [name for name in features if name in names]


def with_needed(names: Iterable[str], features: Features) -> list[str]:
    """Return the features and everything they build on, in the order of the description."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += features[name].needs
    return [name for name in features if name in found]


def with_dependents(names: Iterable[str], features: Features) -> list[str]:
    """Return the features and everything that builds on them, in the order of the description."""
    gone = set(names)
    return [name for name in features if gone & set(with_needed([name], features))]


def remove(root: Path, removed: Iterable[Feature], *, has_tables: bool) -> list[str]:
    """Remove features from a working tree.

    Args:
        root: the root of the working tree.
        removed: the features, with all that build on them.
        has_tables: whether a database has the features' tables already. If so, their migrations
            stay; otherwise they are deleted.

    Returns:
        The migrations that stay, relative to the root.
    """
    kept: list[str] = []
    for feature in removed:
        delete_paths(root, feature.paths)
        for pattern, names in (feature.names or {}).items():
            for path in sorted(root.glob(pattern)):
                edit(path, partial(without_names, names=names))
        delete_lines(root, feature.lines or {})
        remove_npm_packages(root, feature.npm)
        for migration in sorted(each for pattern in feature.tables for each in root.glob(pattern)):
            if has_tables:
                kept.append(str(migration.relative_to(root)))
            else:
                delete_migration(migration)
    return kept


def repair_documents(root: Path, removed: Iterable[Feature], commit: str) -> None:
    """Remove dead links from the documents, and say which of their examples and pages are gone.

    Args:
        root: the root of the working tree.
        removed: the features that were removed.
        commit: a commit that has all examples.
    """
    urls = [url for feature in removed for url in feature.urls]
    for page in [*sorted((root / "docs").glob("*.md")), *root.glob("AGENTS.md")]:
        edit(page, partial(_repaired, page=page, root=root, urls=urls, commit=commit))


def _repaired(text: str, page: Path, root: Path, urls: Sequence[str], commit: str) -> str:
    def link(found: re.Match[str]) -> str:
        target = found[2].partition("#")[0]
        is_local = bool(target) and "://" not in target
        return found[1] if is_local and not (page.parent / target).exists() else found[0]

    text = LINK.sub(link, text)
    heading, _, rest = text.partition("\n")
    missing = [path for path in CODE_PATH.findall(text) if not _exists(root, path)]
    notes = [f"This application does not have `{url}`." for url in urls if f"`{url}" in text]
    if missing:
        example = next((path for path in missing if path.endswith(".py")), missing[0])
        notes.append(
            "The page follows examples that this application does not have. To read one, run"
            f"\n> `git show {commit[:12]}:{example}`."
        )
    if not notes or notes[-1].partition("\n")[0] in text:
        return text
    return f"{heading}\n\n> {' '.join(notes)}\n{rest}"


def _exists(root: Path, path: str) -> bool:
    """Return whether a documented path exists, or is one that a build or a reader creates."""
    return (root / path).exists() or path.startswith(("app/static", "app/notes", "app/manifest"))


def delete_paths(root: Path, patterns: Iterable[str]) -> None:
    """Delete the files and directories that match, and the directories that become empty."""
    for path in sorted(each for pattern in patterns for each in root.glob(pattern)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        for parent in path.parents:
            if parent == root or any(parent.iterdir()):
                break
            parent.rmdir()


def delete_lines(root: Path, lines: Mapping[str, Iterable[str]]) -> None:
    """Delete the lines of files that match a pattern. Files that do not exist are skipped."""
    for name, patterns in lines.items():
        unwanted = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))

        def keep(text: str, unwanted: re.Pattern[str] = unwanted) -> str:
            return "".join(
                line for line in text.splitlines(keepends=True) if not unwanted.search(line)
            )

        if (root / name).is_file():
            edit(root / name, keep)


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Rewrite a file if `change` returns another text."""
    text = path.read_text("utf-8")
    changed = change(text)
    if changed != text:
        path.write_text(changed, "utf-8")


def without_names(text: str, names: Iterable[str]) -> str:
    """Return Python code without these names in imports and in tuples and lists of names.

    Only the comma-separated forms are known: `from app import a, b`, `[a, b]`, `(a, b)`, and one
    name per line.
    """
    for name in names:
        # A line of its own, as the only imported name or in parentheses.
        text = re.sub(rf"^ *(?:from [\w.]+ import )?{name},?\n", "", text, flags=re.MULTILINE)
        text = re.sub(rf"\((\w+), {name}\)", r"(\1,)", text)
        text = re.sub(rf"(?<=\w), {name}\b(?!\.)", "", text)
        text = re.sub(rf"(?<=[\[( ]){name}, (?=\w)", "", text)
    return text


def delete_migration(path: Path) -> None:
    """Delete a migration; the next one then follows the previous one."""
    text = path.read_text("utf-8")
    found = dict(re.findall(r'^(revision|down_revision) = "(\w+)"$', text, re.MULTILINE))
    path.unlink()
    for other in path.parent.glob("*.py"):
        edit(
            other,
            lambda text: text.replace(
                f'down_revision = "{found["revision"]}"',
                f'down_revision = "{found["down_revision"]}"',
            ).replace(f"Revises: {found['revision']}\n", f"Revises: {found['down_revision']}\n"),
        )


def remove_npm_packages(root: Path, packages: Collection[str]) -> None:
    """Remove packages from package.json, and from the lock file with all that only they need."""
    if not packages:
        return
    manifest = json.loads((root / "package.json").read_text("utf-8"))
    lock = json.loads((root / "package-lock.json").read_text("utf-8"))
    for dependencies in (manifest["dependencies"], lock["packages"][""]["dependencies"]):
        for package in packages:
            dependencies.pop(package, None)
    needed = set(_needed_packages(lock["packages"]))
    lock["packages"] = {key: each for key, each in lock["packages"].items() if key in needed}
    write_json(root / "package.json", manifest)
    write_json(root / "package-lock.json", lock)


def _needed_packages(packages: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of the root package and of all packages that it needs."""
    seen: set[str] = set()
    waiting = [""]
    while waiting:
        key = waiting.pop()
        if key in seen or key not in packages:
            continue
        seen.add(key)
        yield key
        for kind in ("dependencies", "optionalDependencies", "peerDependencies"):
            for name in packages[key].get(kind, {}):
                # A package's own copy is in its directory; a shared one is in a directory above.
                above = key
                while f"{above}/node_modules/{name}".lstrip("/") not in packages and above:
                    above = above.rpartition("/node_modules/")[0]
                waiting.append(f"{above}/node_modules/{name}".lstrip("/"))


def write_json(path: Path, content: Any) -> None:
    """Write a file as npm formats it."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
