"""The documentation matches the code."""

import re
from importlib import import_module

import pytest

from app.settings import ROOT, Settings
from benchmarks.report import BEGIN, END
from tests.repository import tracked_files

PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "AGENTS.md",
    "SECURITY.md",
    "rehearsal/README.md",
    "embedded_postgres/README.md",
    "quart_upsun/README.md",
    *PAGES,
]


def read(document: str) -> str:
    return (ROOT / document).read_text()


def section(document: str, title: str) -> str:
    """Return the text of a section, given its heading."""
    _, _, rest = read(document).partition(f"\n## {title}\n")
    assert rest, f"no section {title!r}"
    return rest.partition("\n## ")[0]


# Fields without a variable of the same name.
DERIVED = {"platform", "checkout", "oidc_providers"}


def first_cells(text: str) -> list[str]:
    """Return the names in backticks in the first column of all tables."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [name for cell in rows for name in re.findall(r"`([^`]+)`", cell)]


def exported() -> set[str]:
    """Return the variables that `.environment` sets."""
    code = re.sub(r"^\s*#.*", "", (ROOT / ".environment").read_text(), flags=re.MULTILINE)
    return set(re.findall(r"\b([A-Z][A-Z_]+)=", code)) - {"LC_ALL"}


def test_table_of_variables_is_complete() -> None:
    read = {name.upper() for name in Settings.model_fields if name not in DERIVED}
    listed = first_cells(section("docs/configuration.md", "Variables"))
    assert len(listed) == len(set(listed))
    assert read <= set(listed)
    assert exported() <= set(listed)
    assert set(listed) <= read | exported()


def test_table_of_variables_has_the_correct_defaults() -> None:
    table = section("docs/configuration.md", "Variables")
    for name, field in Settings.model_fields.items():
        if (
            isinstance(field.default, str | int)
            and field.default != ""
            and name not in {"secret_key", "database_url"}
        ):
            default = int(field.default) if isinstance(field.default, bool) else field.default
            assert f"| `{name.upper()}` | `{default}` |" in table, name


def test_environment_file_explains_each_variable() -> None:
    comments = "\n".join(
        line for line in (ROOT / ".environment").read_text().splitlines() if "#" in line
    )
    for name in exported():
        assert re.search(rf"\b{name}\b", comments), f"{name} is not explained in .environment"


def test_make_commands_are_documented() -> None:
    commands = set(re.findall(r"^([a-z-]+):.*?## ", read("Makefile"), re.MULTILINE))
    listed = [
        name.split()[1] for name in first_cells(read("docs/development.md")) if "make" in name
    ]
    assert sorted(listed) == sorted(commands)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_commands_in_documents_exist(document: str) -> None:
    commands = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    named = re.findall(
        r"(?:^|`)(?:[A-Z_]+=\S+ )*make (?:[A-Z]+=\S+ )*([a-z-]+)", read(document), re.M
    )
    for command in named:
        assert command in commands, f"{document} names `make {command}`"


def test_project_layout_is_complete() -> None:
    files = set(tracked_files())
    listed = first_cells(section("README.md", "Project layout"))
    assert len(listed) == len(set(listed))
    for path in listed:
        assert exists(path, files), path
    # The table lists the top level, and the packages and modules of the application.
    names = {path.rstrip("/") for path in listed}
    not_listed = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    not_listed |= {".gitignore", ".npmrc"}
    for name in files:
        top, *rest = name.split("/")
        if top not in not_listed:
            assert top in names, f"{name} is not listed"
        if top == "app":
            assert f"app/{rest[0]}" in names, f"{name} is not listed"


def exists(path: str, files: set[str]) -> bool:
    """Return whether a path is tracked by Git or created by a build."""
    folder = f"{path.rstrip('/')}/"
    return (
        path in files
        or folder in {"app/static/", "build/"}
        or any(name.startswith(folder) for name in files)
    )


# The changelog is history. Recipes that delete files have their own test.
CURRENT = [each for each in DOCUMENTS if each != "CHANGELOG.md" and "git rm" not in read(each)]


@pytest.mark.parametrize("document", CURRENT)
def test_paths_in_documents_exist(document: str) -> None:
    files = set(tracked_files())
    tops = {name.partition("/")[0] for name in files if "/" in name}
    # Benchmark results may name paths that have since been removed.
    text = re.sub(f"{BEGIN}.*?{END}", "", read(document), flags=re.DOTALL)
    for path in re.findall(r"`([\w.-]+/[\w./-]*)`", text):
        if path.partition("/")[0] in tops:
            assert exists(path, files), f"{document} names {path}"


@pytest.mark.parametrize("document", [each for each in PAGES if "decisions" not in each])
def test_readme_links_to_each_page(document: str) -> None:
    assert f"]({document})" in read("README.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_imports_in_examples_exist(document: str) -> None:
    for code in re.findall(r"```python\n(.*?)```", read(document), re.DOTALL):
        imports = re.findall(r"^ *from ((?:app|quart_upsun)\b\S*) import (.+)$", code, re.MULTILINE)
        for module, names in imports:
            for name in (
                names.split(", ") if module != "app.notes" else ()
            ):  # an example feature that does not exist
                if not hasattr(import_module(module), name):
                    import_module(f"{module}.{name}")


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub creates for the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_local_links_and_images_exist(document: str) -> None:
    here = (ROOT / document).parent
    for found in re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", read(document)):
        target = found[0] or found[1]
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = here / path if path else ROOT / document
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.read_text()), target


def test_every_threat_has_a_test() -> None:
    table = read("SECURITY.md").partition("\n## Threats")[2]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    files: dict[str, list[str]] = {}
    for name in tracked_files():
        if re.search(r"(^|/)tests/.*test_\w+\.py$", name) and (ROOT / name).exists():
            files.setdefault(name.rpartition("/")[2], []).append(name)
    for row in rows:
        file, _, test = row.rstrip(" |").rpartition("| ")[2].strip("`").partition("::")
        defined = re.compile(rf"^(async )?def {test}\(", re.MULTILINE)
        assert [name for name in files.get(file, []) if defined.search(read(name))], row


def test_lock_files_contain_no_urls() -> None:
    """Packages are pinned by hash, and can come from any registry."""
    for name in ("requirements.txt", "requirements-dev.txt", "package-lock.json"):
        text = (ROOT / name).read_text()
        assert "://" not in re.sub(r'"url": "https://[^"]+"', "", text), name
        assert "--index-url" not in text
        assert "--find-links" not in text
    assert '"resolved"' not in (ROOT / "package-lock.json").read_text()
    for name in ("requirements.txt", "requirements-dev.txt"):
        requirements = re.findall(r"^[a-z].*$", (ROOT / name).read_text(), re.MULTILINE)
        assert requirements
        assert all(line.endswith("\\") for line in requirements), "a requirement without a hash"


def test_every_module_has_a_docstring() -> None:
    for path in sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "quart_upsun").rglob("*.py")]):
        text = path.read_text()
        assert not text or text.startswith('"""'), path
