"""Rewrite the starter's files: the names, and what an application does not own."""

import json
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from development import removal
from development.start.answers import FILES, NO_LICENSE, PROPRIETARY, Answers
from development.working_tree import SECTION

# What tests or documents the starter, the toolkit or the rehearsal rather than an application. The
# packages come with releases, which are tested on their own.
STARTERS = (
    *("benchmarks", ".ci", ".github", "CONTRIBUTING.md"),
    *("docs/performance.md", "docs/scaling.md", "docs/releasing.md", "docs/decisions"),
    "docs/images",
    *("docs/the-guide.md", "assets/css/_home.scss"),
    *("quart_upsun/tests", "rehearsal/tests", "embedded_postgres/tests"),
    *("tests/assets", "tests/deploy", "tests/development", "tests/documents", "tests/migrations"),
    *("tests/from_flask", "tests/flask_application.py", "tests/legacy"),
    *("tests/platform", "tests/process", "tests/repository.py"),
    *(f"tests/unit/test_{name}.py" for name in ("identity", "imports", "settings", "suites")),
)
STARTERS_LINES = {
    "pyproject.toml": (r'^"benchmarks/', r"^exclude = \[\"benchmarks/", r'^  "tests/documents",'),
    "assets/css/main.scss": (r'^@import "home";',),
    "docs/development.md": (r"^\| `make (bench|start)\b",),
}
ITSELF = ("development/start",)


class RewriteError(Exception):
    """A file does not have the expected text: this repository is not the starter as released."""


def rewrite(root: Path, answers: Answers, commit: str, today: date) -> None:
    """Turn the working tree into the application.

    Args:
        root: the root of the working tree.
        answers: what to call it, and what to keep.
        commit: the starter's commit, for references to its files.
        today: the day it is started.

    Raises:
        RewriteError: a file is not as in the starter. The working tree may be changed.
    """
    features = removal.read_features(root / "development" / "optional_features.toml")
    release = release_of(root)
    removed = [each for name, each in features.items() if name not in answers.keep]
    values = {
        "title": answers.title,
        "name": answers.name,
        "release": release,
        "author": answers.author,
        "year": str(today.year),
    }
    write_license(root, answers, values)
    rename(root, answers)
    write_pyproject(root, answers, release, today)
    files = {
        path.relative_to(FILES): path.read_text("utf-8")
        for path in FILES.rglob("*")
        if path.is_file() and path.parent.name != "licenses"
    }
    removal.delete_paths(root, STARTERS)
    removal.delete_lines(root, STARTERS_LINES)
    section = r"^## Starting an application\n(?:.*\n)*?(?=^## )"
    replace(root, "docs/development.md", (section, ""))
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(fill(text, values) if name.suffix == ".md" else text, "utf-8")
    removal.remove(root, removed, has_tables=False)
    removal.repair_documents(root, removed, commit)


def remove_itself(root: Path) -> None:
    """Delete this package, at the very end: until then, it says how to undo an unfinished start."""
    removal.delete_paths(root, ITSELF)


def release_of(root: Path) -> str:
    """Return the version of the toolkit."""
    text = (root / "quart_upsun" / "pyproject.toml").read_text("utf-8")
    return str(tomllib.loads(text)["project"]["version"])


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace `{title}` and the like. Other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)


def replace(root: Path, name: str, *changes: tuple[str, str], flags: int = re.MULTILINE) -> None:
    """Replace patterns in a file; each must occur.

    Raises:
        RewriteError: a pattern does not occur.
    """
    path = root / name
    text = path.read_text("utf-8")
    for pattern, new in changes:
        text, count = re.subn(pattern, new.replace("\\", r"\\"), text, flags=flags)
        if count == 0:
            raise RewriteError(f"{name} has no line like {pattern!r}.")
    path.write_text(text, "utf-8")


def quoted(text: str) -> str:
    """Return a string literal that Python, TOML and JSON read alike."""
    return json.dumps(text, ensure_ascii=False)


def write_license(root: Path, answers: Answers, values: Mapping[str, str]) -> None:
    """Write LICENSE, or delete the starter's."""
    if answers.license == NO_LICENSE:
        (root / "LICENSE").unlink()
        return
    text = (FILES / "licenses" / f"{answers.license}.txt").read_text("utf-8")
    (root / "LICENSE").write_text(fill(text, values), "utf-8")


def rename(root: Path, answers: Answers) -> None:
    """Write the name and title where the starter's are, except for pyproject.toml."""
    replace(
        root,
        "app/settings.py",
        (
            r'^    name: ClassVar\[str\] = ".*"$',
            f"    name: ClassVar[str] = {quoted(answers.name)}",
        ),
        (r'^        default="quart-upsun",$', f"        default={quoted(answers.title)},"),
    )
    table_title = answers.title.replace("|", r"\|").replace("`", "'")
    replace(
        root,
        "docs/configuration.md",
        (r"^\| `SITE_NAME` \| `quart-upsun` \|", f"| `SITE_NAME` | `{table_title}` |"),
    )
    replace(
        root,
        "app/templates/layout.html",
        (r"(?<=\{% block meta_description %\})[^{]*", "{{ site_name }}"),
    )
    replace(
        root,
        ".devcontainer/devcontainer.json",
        (r'^  "name": ".*",$', f'  "name": {quoted(answers.name)},'),
    )
    for name in ("package.json", "package-lock.json"):
        content = json.loads((root / name).read_text("utf-8"))
        for package in (content, *([content["packages"][""]] if "packages" in content else [])):
            package["name"] = answers.name
            package["license"] = (
                "UNLICENSED" if answers.license in (NO_LICENSE, PROPRIETARY) else answers.license
            )
            if package is not content or name == "package.json":
                continue
            del package["license"]  # the lock file has it in the root package only
        removal.write_json(root / name, content)


def write_pyproject(root: Path, answers: Answers, release: str, today: date) -> None:
    """Rename the project, drop the starter's packages, and record what was started."""
    name = "pyproject.toml"
    replace(
        root,
        name,
        (r'^name = "quart-upsun"$', f"name = {quoted(answers.name)}"),
        (r'^version = ".*"$', 'version = "0.1.0"'),
        (
            r'^description = ".*"$',
            f"description = {quoted(answers.title)}\n"
            f"authors = [{{ name = {quoted(answers.author)} }}]",
        ),
        (r'"benchmarks", ', ""),
    )
    if answers.license == NO_LICENSE:
        replace(root, name, (r'^license = ".*"\n', ""), (r"^license-files = .*\n", ""))
    else:
        spdx = "LicenseRef-Proprietary" if answers.license == PROPRIETARY else answers.license
        replace(root, name, (r'^license = ".*"$', f"license = {quoted(spdx)}"))
    tests = [path for path in ("tests/features", "tests/unit") if (root / path).is_dir()]
    paths = "\n".join(f"  {quoted(path)}," for path in tests)
    replace(root, name, (r"^testpaths = \[\n(?:  .*\n)*\]", f"testpaths = [\n{paths}\n]"))
    replace(
        root,
        name,
        (
            r"^# Run by `make test`.*\n(?:#.*\n)*",
            "# Run by `make test`. `make test-all` also runs the slow ones in browser/.\n",
        ),
    )
    keep = ", ".join(quoted(each) for each in answers.keep)
    with (root / name).open("a", encoding="utf-8") as file:
        file.write(
            "\n# Written by `make start`; `make upgrade` reads it.\n"
            f"[{SECTION}]\n"
            f"release = {quoted(release)}\n"
            f"started = {today.isoformat()}\n"
            f"keep = [{keep}]\n"
        )
    write_makefile(root)


def write_makefile(root: Path) -> None:
    """Drop the benchmarks from the Makefile, and `start` from its help."""
    replace(
        root,
        "Makefile",
        (r" bench(?= lock\b)", ""),
        (r"^bench:.*\n(?:\t.*\n)+\n", ""),
        (r"^\ttest ! -d benchmarks/side_by_side .*\n(?:\t\t.*\n)+", ""),
        (r"^start: ## .*$", "start:"),
    )


def set_data_aside(root: Path) -> list[tuple[str, str]]:
    """Move the starter's local databases away, whose migrations are not those of the application.

    Returns:
        What was moved, and where to, relative to the root.
    """
    moved = []
    for name in (".data/postgres", ".rehearsal"):
        source = root / name
        if source.exists():
            target = f".data/before-start/{Path(name).name.lstrip('.')}"
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            if (root / target).exists():
                shutil.rmtree(root / target)
            shutil.move(source, root / target)
            moved.append((name, target))
    return moved


def lines_of_python(paths: Sequence[Path]) -> int:
    """Return the number of lines of Python files."""
    return sum(len(path.read_text("utf-8").splitlines()) for path in paths if path.suffix == ".py")
