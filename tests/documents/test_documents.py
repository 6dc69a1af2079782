"""The documents agree with the code."""

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
    "SECURITY.md",
    "rehearsal/README.md",
    "embedded_postgres/README.md",
    "quart_upsun/README.md",
    *PAGES,
]


def read(document: str) -> str:
    return (ROOT / document).read_text()


def section(document: str, title: str) -> str:
    """Return the text below a heading."""
    _, _, rest = read(document).partition(f"\n## {title}\n")
    assert rest, f"no section {title!r}"
    return rest.partition("\n## ")[0]


# Fields that no variable of their own sets.
DERIVED = {"platform", "checkout"}


def first_cells(text: str) -> list[str]:
    """What stands in backticks in the first cell of each row of the section's tables."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return [name for cell in rows for name in re.findall(r"`([^`]+)`", cell)]


def exported() -> set[str]:
    """The variables that `.environment` sets."""
    code = re.sub(r"^\s*#.*", "", (ROOT / ".environment").read_text(), flags=re.MULTILINE)
    return set(re.findall(r"\b([A-Z][A-Z_]+)=", code)) - {"LC_ALL"}


def test_the_table_of_variables_is_complete() -> None:
    read = {name.upper() for name in Settings.model_fields if name not in DERIVED}
    listed = first_cells(section("docs/configuration.md", "Variables"))
    assert len(listed) == len(set(listed))
    assert read <= set(listed)
    assert exported() <= set(listed)
    assert set(listed) <= read | exported()


def test_defaults_in_the_table_are_true() -> None:
    table = section("docs/configuration.md", "Variables")
    for name, field in Settings.model_fields.items():
        if (
            isinstance(field.default, str | int)
            and field.default != ""
            and name not in {"secret_key", "database_url"}
        ):
            default = int(field.default) if isinstance(field.default, bool) else field.default
            assert f"| `{name.upper()}` | `{default}` |" in table, name


def test_environment_explains_what_it_exports() -> None:
    comments = "\n".join(
        line for line in (ROOT / ".environment").read_text().splitlines() if "#" in line
    )
    for name in exported():
        assert re.search(rf"\b{name}\b", comments), f"{name} is not explained in .environment"


def test_verbs_of_make_are_documented() -> None:
    verbs = set(re.findall(r"^([a-z-]+):.*?## ", read("Makefile"), re.MULTILINE))
    listed = [
        name.split()[1] for name in first_cells(read("docs/development.md")) if "make" in name
    ]
    assert sorted(listed) == sorted(verbs)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_verbs_that_a_document_names_exist(document: str) -> None:
    verbs = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    named = re.findall(
        r"(?:^|`)(?:[A-Z_]+=\S+ )*make (?:[A-Z]+=\S+ )*([a-z-]+)", read(document), re.M
    )
    for verb in named:
        assert verb in verbs, f"{document} names `make {verb}`"


def test_the_map_names_what_exists_and_all_of_it() -> None:
    files = set(tracked_files())
    listed = first_cells(section("README.md", "Project layout"))
    assert len(listed) == len(set(listed))
    for path in listed:
        assert exists(path, files), path
    # The top level, and the packages and modules of the application, are all on the map.
    on_map = {path.rstrip("/") for path in listed}
    not_for_the_map = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    not_for_the_map |= {".gitignore", ".npmrc"}
    for name in files:
        top, *rest = name.split("/")
        if top not in not_for_the_map:
            assert top in on_map, f"{name} is not on the map"
        if top == "app":
            assert f"app/{rest[0]}" in on_map, f"{name} is not on the map"


def exists(path: str, files: set[str]) -> bool:
    """Tell whether a path is in Git, or is built there."""
    folder = f"{path.rstrip('/')}/"
    return (
        path in files
        or folder in {"app/static/", "build/"}
        or any(name.startswith(folder) for name in files)
    )


# The changelog is about the past. A recipe that deletes files has a test of its own.
CURRENT = [each for each in DOCUMENTS if each != "CHANGELOG.md" and "git rm" not in read(each)]


@pytest.mark.parametrize("document", CURRENT)
def test_paths_that_a_document_names_exist(document: str) -> None:
    files = set(tracked_files())
    tops = {name.partition("/")[0] for name in files if "/" in name}
    # The results of benchmarks tell of the time when they were measured.
    text = re.sub(f"{BEGIN}.*?{END}", "", read(document), flags=re.DOTALL)
    for path in re.findall(r"`([\w.-]+/[\w./-]*)`", text):
        if path.partition("/")[0] in tops:
            assert exists(path, files), f"{document} names {path}"


@pytest.mark.parametrize("document", [each for each in PAGES if "decisions" not in each])
def test_the_readme_leads_to_each_page(document: str) -> None:
    assert f"]({document})" in read("README.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_that_examples_import_exist(document: str) -> None:
    for code in re.findall(r"```python\n(.*?)```", read(document), re.DOTALL):
        imports = re.findall(r"^ *from ((?:app|quart_upsun)\b\S*) import (.+)$", code, re.MULTILINE)
        for module, names in imports:
            for name in names.split(", ") if module != "app.notes" else ():  # the reader's feature
                if not hasattr(import_module(module), name):
                    import_module(f"{module}.{name}")


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_local_links_and_pictures_exist(document: str) -> None:
    here = (ROOT / document).parent
    for found in re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", read(document)):
        target = found[0] or found[1]
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = here / path if path else ROOT / document
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.read_text()), target


def test_a_test_stands_behind_every_threat() -> None:
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


def test_nothing_names_a_registry_or_a_machine() -> None:
    """Lock files pin contents by hash; where they come from is the reader's own business."""
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


def test_every_module_says_what_it_holds() -> None:
    for path in sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "quart_upsun").rglob("*.py")]):
        text = path.read_text()
        assert not text or text.startswith('"""'), path
