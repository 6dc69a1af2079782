"""Find the places in an application that use a name of the toolkit."""

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from development.working_tree import git

# Compiled or generated; their content follows from other files.
NOT_SEARCHED = re.compile(r"(^|/)(requirements[\w-]*\.txt|package-lock\.json|CHANGELOG\.md)$")


@dataclass(frozen=True, order=True)
class Place:
    """A line of a file."""

    path: str
    line: int
    is_certain: bool = True
    """Whether the line is known to use the name, and not only one that looks like it."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" + ("" if self.is_certain else " (perhaps)")


class Files:
    """The application's text files outside the replaced packages, read once."""

    def __init__(self, root: Path, packages: Sequence[str]) -> None:
        self.texts: dict[str, str] = {}
        for name in git(root, "ls-files", "-z").split("\0"):
            path = root / name
            if (
                not name
                or name.partition("/")[0] in packages
                or NOT_SEARCHED.search(name)
                or path.is_symlink()
                or not path.is_file()
            ):
                continue
            try:
                self.texts[name] = path.read_text("utf-8")
            except UnicodeDecodeError:  # an image
                continue
        self.trees: dict[str, ast.Module] = {}
        self.unreadable: list[str] = []
        for name, text in self.texts.items():
            if not name.endswith(".py") or "quart_upsun" not in text:
                continue
            try:
                self.trees[name] = ast.parse(text)
            except SyntaxError:
                self.unreadable.append(name)

    def uses(self, dotted: str) -> list[Place]:
        """Return where Python code uses a name of the toolkit, such as `quart_upsun.text.clean`.

        A method, such as `quart_upsun.database.Database.read`, is found by its own name, because
        the class of an object is not known.
        """
        owner, _, name = dotted.rpartition(".")
        if owner.rpartition(".")[2][:1].isupper():
            return self.contains(rf"\.{name}\b", is_certain=False, ending=".py")
        found = {
            Place(path, line)
            for path, tree in self.trees.items()
            for line, used in used_names(tree)
            if is_same(used, dotted)
        }
        return sorted(found)

    def contains(self, pattern: str, *, is_certain: bool = True, ending: str = "") -> list[Place]:
        """Return the lines that match a regular expression."""
        return [
            Place(path, number, is_certain)
            for path, text in sorted(self.texts.items())
            if path.endswith(ending)
            for number, line in enumerate(text.splitlines(), 1)
            if re.search(pattern, line)
        ]


def is_same(used: str, dotted: str) -> bool:
    """Return whether two names are the same, or one is a package's name for its module's name.

    `quart_upsun.jobs.enqueue` is the name in the package of `quart_upsun.jobs.queue.enqueue`.
    """
    module, _, name = dotted.rpartition(".")
    used_module, _, used_name = used.rpartition(".")
    return used_name == name and f"{module}.".startswith(f"{used_module}.")


def used_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield each use of an imported name: the line, and the full name."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names[alias.asname or alias.name] = full
                yield alias.lineno, full
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            parts = list(chain(node))
            if parts and parts[0] in names:
                yield node.lineno, ".".join((names[parts[0]], *parts[1:]))


def chain(node: ast.expr) -> Iterable[str]:
    """Return the parts of a dotted expression such as `text.clean`; nothing for another one."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (parts := chain(node.value)):
        return [*parts, node.attr]
    return []
