"""The documents are held to the code, and the code to the documents."""

import re

import pytest

from app.settings import ROOT, Settings
from tests.repository import tracked_files

README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]


def section(title: str) -> str:
    """Return the text below a heading of the README."""
    _, _, rest = README.partition(f"\n## {title}\n")
    assert rest, f"no section {title!r}"
    return rest.partition("\n## ")[0]


def page(name: str) -> str:
    """Return a page of the documentation."""
    return (ROOT / "docs" / f"{name}.md").read_text()


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
    listed = first_cells(page("configuration"))
    assert len(listed) == len(set(listed))
    assert read <= set(listed)
    assert exported() <= set(listed)
    assert set(listed) <= read | exported()


def test_defaults_in_the_table_are_true() -> None:
    table = page("configuration")
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
    makefile = (ROOT / "Makefile").read_text()
    verbs = set(re.findall(r"^([a-z-]+):.*?## ", makefile, re.MULTILINE))
    listed = {name.split()[1] for name in first_cells(page("development")) if "make" in name}
    assert verbs == listed
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for verb in re.findall(r"`(?:[A-Z]+=\S+ )*make (?:[A-Z]+=\S+ )*([a-z-]+)", text):
            assert verb in verbs, f"{document} names `make {verb}`"


def test_the_map_names_what_exists_and_all_of_it() -> None:
    files = set(tracked_files())
    built = {"app/static/"}
    listed = first_cells(section("The map"))
    for path in listed:
        if path.endswith("/"):
            assert path in built or any(name.startswith(path) for name in files), path
        else:
            assert path in files, path
    # What a reader finds at the top, and the rooms of the application, are all on the map.
    not_for_the_map = {"LICENSE", *(name for name in DOCUMENTS if "/" not in name)}
    hidden = {".gitignore", ".npmrc"}
    for name in files:
        top, _, rest = name.partition("/")
        if top in not_for_the_map | hidden:
            continue
        if top == "app" and rest.count("/") == 0:
            assert name in listed, f"{name} is not on the map"
        elif top == "app":
            assert f"app/{rest.partition('/')[0]}/" in listed, f"{name} is not on the map"
        else:
            assert any(path == name or path.startswith(f"{top}/") for path in listed), (
                f"{name} is not on the map"
            )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_local_links_and_pictures_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)|(?:src|srcset)=\"([^\"]+)\"", text):
        path = target[0] or target[1]
        if not path.startswith("http"):
            assert ((ROOT / document).parent / path).exists(), path


def test_every_page_is_listed_in_the_readme() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{path.name})" in README, path.name


def test_a_test_stands_behind_every_threat() -> None:
    table = (ROOT / "SECURITY.md").read_text().partition("\n## Threats")[2]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    suites = [ROOT / name for name in tracked_files() if re.search(r"(^|/)test_\w+\.py$", name)]
    for row in rows:
        file, _, name = row.rstrip(" |").rpartition("| ")[2].strip("`").partition("::")
        texts = [path.read_text() for path in suites if path.name == file and path.exists()]
        definition = re.compile(rf"^(async )?def {name}\(", re.MULTILINE)
        assert any(definition.search(text) for text in texts), row


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
