"""Render the files of a feature, and write all of them or none.

Everything is rendered, checked and formatted in memory before the first file is written.
"""

import ast
import datetime as dt
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from development.feature.fields import Field
from development.feature.mistakes import MistakeError
from development.feature.names import with_article

TEMPLATES = Path(__file__).parent / "templates"
REGISTRY = "app/__init__.py"
README = "README.md"
# Imports that fit into a line are in one line, also if their template has more names.
SHORT_IMPORTS = "lint.isort.split-on-trailing-comma=false"
README_ROW = re.compile(r"^\| `app/(?!templates/|static/)", re.MULTILINE)


@dataclass(frozen=True)
class Feature:
    """What to generate."""

    name: str
    """The package, the table and the endpoint, such as `reading_notes`."""
    singular: str
    fields: list[Field]
    has_api: bool
    has_personal_data: bool
    has_browser_tests: bool

    @property
    def model(self) -> str:
        """The name of the class, such as `ReadingNote`."""
        return "".join(part.capitalize() for part in self.singular.split("_"))

    @property
    def url(self) -> str:
        return self.name.replace("_", "-")


def variables(feature: Feature) -> dict[str, Any]:
    """Return the variables of the templates."""
    plural = feature.name.replace("_", " ")
    label = feature.singular.replace("_", " ")
    article = with_article(label)
    # The first line of text names a row; without one, its id does.
    named = next((field for field in feature.fields if field.type_name == "str"), None)
    return {
        **vars(feature),
        "url": feature.url,
        "cls": feature.model,
        "plural": plural,
        "plural_label": plural.capitalize(),
        "label": label.capitalize(),
        "label_lower": label,
        "article_lower": article,
        "article_label": article.capitalize(),
        "types": {field.type_name for field in feature.fields},
        "own_texts": [field for field in feature.fields if field.is_own_text],
        "optional_fields": [field for field in feature.fields if field.is_optional],
        "required_fields": [
            field for field in feature.fields if not field.is_optional and field.type_name != "bool"
        ],
        "listed": [
            field for field in feature.fields if field is not named and field.type_name != "text"
        ],
        "title": _title(named, label.capitalize(), ""),
        "page_title": _title(named, label, " | truncate(60)"),
        "wrong_forms": [
            (field.name, _code(value)) for field in feature.fields for value in field.wrong_forms
        ],
    }


def _title(named: Field | None, label: str, suffix: str) -> str:
    """Return template code that names a row: its first line of text, or its id."""
    number = f"{label} {{{{ item.id }}}}"
    if named is None:
        return number
    title = f"{{{{ item.{named.name}{suffix} }}}}"
    if not named.is_optional:
        return title
    return f"{{% if item.{named.name} %}}{title}{{% else %}}{number}{{% endif %}}"


def render(root: Path, feature: Feature, today: dt.date) -> dict[str, str]:
    """Render the new files of a feature, formatted.

    Returns:
        The text of each file by its path below the root.

    Raises:
        MistakeError: a name occurs in the generated code already, or there are several heads.
    """
    environment = Environment(  # noqa: S701 code, not HTML
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["pyjson"] = repr
    revision = secrets.token_hex(6)
    values = variables(feature) | {"revision": revision, "down_revision": head(root)}
    date = f"{today:%Y%m%d}"
    targets = {
        f"alembic/versions/{date}_{revision}_add_{feature.name}.py": "migration.py",
        **{f"app/{feature.name}/{name}": f"package/{name}" for name in package_modules(feature)},
        **{
            f"app/templates/{feature.name}/{name}": f"pages/{name}"
            for name in ("index.html", "new.html", "edit.html", "fields.html")
        },
        f"tests/features/{feature.name}/__init__.py": "tests/__init__.py",
        f"tests/features/{feature.name}/test_views.py": "tests/test_views.py",
    }
    if feature.has_api:
        targets[f"tests/features/{feature.name}/test_api.py"] = "tests/test_api.py"
    if feature.has_browser_tests:
        targets[f"tests/browser/pages_{feature.name}.py"] = "tests/pages.py"
    files = {
        path: environment.get_template(f"{template}.jinja").render(values)
        for path, template in targets.items()
    }
    for path, text in files.items():
        if path.endswith(".py"):
            files[path] = format_python(root, path, text)
            check_names(files[path], feature)
        else:
            files[path] = re.sub(r"\n\n+", "\n", text)
    return files


def package_modules(feature: Feature) -> list[str]:
    """Return the names of the modules of the package, in the order in which to read them."""
    names = ["__init__", "models", "queries", "forms", "views"]
    names += ["api"] if feature.has_api else []
    names += ["personal_data"] if feature.has_personal_data else []
    return [f"{name}.py" for name in names]


def head(root: Path) -> str:
    """Return the latest revision of the migrations.

    Raises:
        MistakeError: there is not exactly one.
    """
    heads = ScriptDirectory(str(root / "alembic")).get_heads()
    if len(heads) != 1:
        raise MistakeError(
            f"The migrations have {len(heads)} heads ({', '.join(heads)}): join them with"
            " `alembic merge heads` first."
        )
    return heads[0]


def registered(root: Path, feature: Feature) -> str:
    """Return the text of `app/__init__.py` with the feature in `FEATURES`.

    Raises:
        MistakeError: the file does not import the features from `app` or has no list `FEATURES`.
    """
    text = (root / REGISTRY).read_text()
    lines = text.splitlines(keepends=True)
    tree = ast.parse(text)
    imports = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "app"]
    lists = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.List)
        and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["FEATURES"]
    ]
    if not imports or not lists:
        raise MistakeError(
            f"{REGISTRY} must import the features from `app` and list them in FEATURES, as in the"
            " original; restore this first."
        )
    names = ", ".join(sorted([*(ast.unparse(each) for each in imports[0].names), feature.name]))
    entries = ", ".join([*(ast.unparse(each) for each in lists[0].elts), feature.name])
    # From the end, so that the positions of the import stay valid.
    for node, new in ((lists[0], f"[{entries}]"), (imports[0], f"from app import {names}")):
        assert node.end_lineno is not None  # noqa: S101 parsed from text
        before = lines[node.lineno - 1].encode()[: node.col_offset].decode()
        after = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
        lines[node.lineno - 1 : node.end_lineno] = [before + new + after]
    return format_python(root, REGISTRY, "".join(lines))


def listed_in_readme(root: Path, feature: Feature) -> str | None:
    """Return the text of the README with a row for the package; None if it has no such table."""
    path = root / README
    text = path.read_text() if path.exists() else ""
    rows = list(README_ROW.finditer(text))
    if not rows:
        return None
    end = text.find("\n", rows[-1].start()) + 1 or len(text)
    plural = feature.name.replace("_", " ")
    kinds = "pages and an API" if feature.has_api else "pages"
    return f"{text[:end]}| `app/{feature.name}/` | {plural}: {kinds} |\n{text[end:]}"


def format_python(root: Path, path: str, text: str) -> str:
    """Return code without unused imports, with sorted imports, and formatted."""
    for arguments in (
        ("check", "--fix-only", "--select", "F401,I", "--config", SHORT_IMPORTS),
        ("format", "--config", "format.skip-magic-trailing-comma=true"),
    ):
        ruff = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "--quiet", "--stdin-filename", path, "-"],
            cwd=root,
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if ruff.returncode:
            raise RuntimeError(f"ruff failed for {path}: {ruff.stderr}\n{text}")
        text = ruff.stdout
    return text


def check_names(text: str, feature: Feature) -> None:
    """Check that names of the user do not hide other names in a generated module.

    Raises:
        MistakeError: one does.
    """
    tree = ast.parse(text)
    bound: set[str] = set()
    for name in _bindings(tree):
        if name in bound:
            raise MistakeError(
                f"The generated code would define {name} twice, because {feature.model!r} is taken:"
                " choose another NAME, or give SINGULAR=."
            )
        bound.add(name)
    fields = {field.name for field in feature.fields}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for name in sorted({*_bindings(node)} & fields & _used(node)):
                raise MistakeError(
                    f"The field {name!r} would hide a name that the generated code uses: choose"
                    " another name for it."
                )


def _bindings(tree: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Yield the names that a module or class defines, imports or assigns."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _used(node: ast.ClassDef) -> set[str]:
    """Return the names that the body of a class uses or defines as methods."""
    found = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    for statement in node.body:
        if not isinstance(statement, ast.FunctionDef):
            found |= {
                each.id
                for each in ast.walk(statement)
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)
            }
    return found


def _code(value: str) -> str:
    """Return the code of a text; a long text repeats one letter."""
    return f'"{value[0]}" * {len(value)}' if len(value) > 100 else repr(value)


def write_files(root: Path, files: Mapping[str, str]) -> None:
    """Write files; if anything fails, restore what was there before.

    Args:
        root: the root of the repository.
        files: the text of each file by its path below the root.
    """
    before = {
        path: (root / path).read_bytes() if (root / path).exists() else None for path in files
    }
    made: list[Path] = []
    try:
        for path, text in files.items():
            target = root / path
            for parent in reversed(target.parents):
                if not parent.exists():
                    parent.mkdir()
                    made.append(parent)
            target.write_text(text, encoding="utf-8", newline="\n")
    except BaseException:
        for path, content in before.items():
            if content is not None:
                (root / path).write_bytes(content)
            elif (root / path).exists():
                (root / path).unlink()
        for directory in reversed(made):
            directory.rmdir()
        raise
