"""`make feature`: what it writes, that this passes lint and tests, and wrong input."""

import datetime as dt
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

from app.settings import ROOT
from development.feature import __main__ as command
from development.feature.fields import TYPES, parse_fields
from development.feature.generate import (
    Feature,
    package_modules,
    registered,
    render,
    write_files,
)
from development.feature.mistakes import MistakeError
from development.feature.names import singular
from tests.development.clone import environment, share_packages
from tests.development.starter import git, make_starter

SECONDS = 600
EVERY_TYPE = [
    (f"{name}_{'optional' if mark else 'required'}", f"{name}{mark}")
    for name in TYPES
    for mark in ("", "?")
    if f"{name}{mark}" != "bool?"
]
FIELDS = {
    "notes": "title:str body:text due:date?",
    "samples": " ".join(f"{name}:{kind}" for name, kind in EVERY_TYPE),
    "flags": "done:bool",
}


def feature(name: str = "notes", fields: str = "title:str due:date?", word: str = "") -> Feature:
    return Feature(name, word or singular(name), parse_fields(fields), True, True, True)


def files_of(generated: Feature) -> dict[str, str]:
    return render(ROOT, generated, dt.date(2030, 5, 17))


def make(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=tree,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    tree = make_starter(tmp_path / "a clone")
    share_packages(tree)
    return tree


def status(tree: Path) -> str:
    git = ["git", "status", "--porcelain", "--untracked-files=all"]
    return subprocess.run(git, cwd=tree, capture_output=True, text=True, check=True).stdout


@pytest.mark.long
def test_generated_features_pass_lint_and_tests(clone: Path) -> None:
    """All in one clone: linting it and visiting each of its pages takes a minute."""
    for name, fields in FIELDS.items():
        made = make(clone, "feature", f"NAME={name}", f"FIELDS={fields}")
        assert made.returncode == 0, made.stdout
        written = re.findall(r"^  (?:wrote|changed) +(\S+)$", made.stdout, re.MULTILINE)
        assert sorted(written) == sorted(line[3:] for line in status(clone).splitlines())
        again = make(clone, "feature", f"NAME={name}", f"FIELDS={fields}")
        assert f"NAME={name} is taken by app/{name}: choose another name." in again.stdout
        git(clone, "add", "--all")
        git(clone, "commit", "--quiet", "--message", f"Add {name}")
    cache = ROOT / ".mypy_cache"  # most files are unchanged since the last `make lint`
    if cache.is_dir():
        copytree(cache, clone / cache.name)
    lint = make(clone, "lint")
    assert lint.returncode == 0, lint.stdout
    # The generated tests, and those that visit every route, table and document.
    tests = (
        *(f"tests/features/{name}" for name in FIELDS),
        *("tests/features/test_policy.py", "tests/features/api", "tests/documents"),
        *("tests/features/test_titles.py", "tests/features/test_account.py"),
        *("tests/features/test_sanitize.py", "tests/migrations/test_migrations.py", "tests/unit"),
    )
    tested = make(clone, "test", f"ARGS=-n 0 {' '.join(tests)}")
    assert tested.returncode == 0, tested.stdout


def test_page_of_the_documentation_explains_each_file() -> None:
    page = (ROOT / "docs" / "adding-a-feature.md").read_text()
    files = files_of(feature())
    assert len(files) == 16
    for path in files:
        # A migration and a template are explained with their folder, other files by their name.
        folder, name = str(Path(path).parent), Path(path).name
        mentions = {f"`{each.replace('notes', '<name>')}`" for each in (name, f"{folder}/")}
        assert any(each in page for each in mentions), path
    # The page shows `init_app()` as it is written.
    (shown,) = re.findall(r"```python\n(from quart import Quart\n.*?)```", page, re.DOTALL)
    assert shown in files["app/notes/__init__.py"]
    for name in TYPES:
        assert f"`{name}`" in page, name


@pytest.mark.parametrize(("length", "has_api"), [(14, True), (30, False)])
def test_lines_with_the_longest_names_are_short_enough(length: int, has_api: bool) -> None:
    fields = " ".join(f"{kind.rstrip('?')}_{'x' * 30}:{kind}" for _, kind in EVERY_TYPE[::2])
    longest = Feature("n" * length, "r" * 30, parse_fields(fields), has_api, True, True)
    for path, text in files_of(longest).items():
        if path.endswith(".py"):
            ruff = subprocess.run(
                [sys.executable, "-m", "ruff", "check", "--stdin-filename", path, "-"],
                cwd=ROOT,
                input=text,
                capture_output=True,
                text=True,
            )
            assert ruff.returncode == 0, ruff.stdout


def test_feature_without_an_api_does_not_mention_it() -> None:
    lean = Feature("notes", "note", parse_fields("title:str"), False, False, False)
    files = files_of(lean)
    assert [Path(each).name for each in files if each.startswith("app/notes/")] == package_modules(
        lean
    )
    assert not [path for path in files if "api" in path or "browser" in path]
    assert not re.search(
        r"\bapi\b|ETag|personal_data|personal data", "".join(files.values()), re.IGNORECASE
    )


def test_generated_code_does_not_import_other_features() -> None:
    for path, text in files_of(feature(fields=FIELDS["samples"])).items():
        found = re.findall(r"^ *from app\.(\w+)", text, re.MULTILINE)
        assert {*found} <= {"notes", "user", "extensions", "site"}, path


@pytest.mark.parametrize(
    ("plural", "expected"),
    [
        ("notes", "note"),
        ("categories", "category"),
        ("boxes", "box"),
        ("classes", "class"),
        ("addresses", "address"),
        ("statuses", "status"),
        ("houses", "house"),
        ("people", "person"),
        ("movies", "movie"),
        ("news", "news"),
        ("status", "status"),
        ("note", "note"),
        ("reading_lists", "reading_list"),
    ],
)
def test_singular_forms(plural: str, expected: str) -> None:
    assert singular(plural) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "A name and fields are required: make feature NAME=notes"),
        ({"name": "notes"}, "FIELDS is empty."),
        ({"name": "My Notes"}, "NAME must consist of lower-case letters"),
        ({"name": "class"}, "NAME=class is a word of Python"),
        ({"name": "list"}, "NAME=list is a word of Python"),
        ({"name": "a_very_long_name"}, "NAME must have at most 14 characters"),
        ({"name": "notes", "api": "maybe"}, "API must be yes or no, got 'maybe'."),
        ({"name": "notes", "singular": "Note!"}, "SINGULAR must consist of"),
        ({"name": "public"}, "NAME=public is taken by app/public"),
        ({"name": "settings"}, "NAME=settings is taken by app/settings.py"),
        ({"name": "templates"}, "NAME=templates is taken by app/templates"),
        ({"name": "upsun"}, "NAME=upsun is a name that app/__init__.py uses"),
        ({"name": "users"}, "NAME=users is the name of a table"),
        ({"name": "account"}, "NAME=account is taken by the pages or the API below /account"),
        ({"name": "me"}, "NAME=me is taken by the pages or the API below /me"),
        ({"name": "accounts", "singular": "user"}, "A model named User exists already"),
        ({"name": "bases"}, "would define Base twice"),
        ({"fields": "title"}, "The field 'title' has no type."),
        ({"fields": ":str"}, "The field ':str' has no name."),
        ({"fields": "Title:str"}, "A field's name must consist of"),
        ({"fields": "title:strng"}, "unknown type 'strng'; use str, text, int,"),
        ({"fields": "title:strng"}, "Did you mean title:str?"),
        ({"fields": "price:float"}, "Did you mean price:decimal?"),
        ({"fields": "done:bool?"}, "write done:bool."),
        ({"fields": "title:str title:text"}, "The field 'title' occurs twice"),
        ({"fields": "id:int"}, "Every feature has a field 'id' already"),
        ({"fields": "for:str"}, "The field 'for' is a word of Python"),
        ({"fields": "metadata:str"}, "The field 'metadata' would hide an attribute"),
        ({"fields": "validate:bool"}, "The field 'validate' would hide an attribute"),
        ({"fields": "model_name:str"}, "The field 'model_name' would hide an attribute"),
        ({"fields": "count:int"}, "The field 'count' would hide an attribute"),
        ({"fields": "str:str"}, "The field 'str' would hide a name that the generated code uses"),
        ({"fields": "values:str"}, "The field 'values' would hide a name"),
    ],
)
def test_wrong_input_is_one_sentence_and_changes_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, str],
    words: str,
) -> None:
    # The checkout of a developer may have changes; a test below checks that they are refused.
    monkeypatch.setattr(command, "check_changes", lambda root, paths: None)
    monkeypatch.setattr(command, "write_files", lambda root, files: pytest.fail("it writes"))
    defaults = {"name": "memos", "fields": "title:str"} if "fields" in arguments else {}
    if arguments.get("name") not in {None, "notes"}:
        defaults["fields"] = "title:str"
    options = [f"--{name}={value}" for name, value in (defaults | arguments).items()]
    if arguments.get("api") or arguments.get("singular") == "Note!":
        options.append("--fields=title:str")
    assert command.main(options) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("name", ["date", "type", "text", "order", "format"])
def test_common_names_of_fields_are_accepted(name: str) -> None:
    assert (
        f"    {name}: Mapped[str]"
        in files_of(feature(fields=f"{name}:str day:date"))["app/notes/models.py"]
    )


def test_uncommitted_changes_are_refused(clone: Path) -> None:
    readme = clone / "README.md"
    readme.write_text(readme.read_text() + "\nMore.\n")
    before = status(clone)
    result = make(clone, "feature", "NAME=notes", "FIELDS=title:str")
    assert result.returncode == 2
    assert "README.md has uncommitted changes: commit or stash them first" in result.stdout
    assert "Traceback" not in result.stdout
    assert status(clone) == before


def test_failure_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("before")
    # The last one cannot be written, because its folder is a file.
    files = {"kept.txt": "after", "new/deep/one.txt": "1", "kept.txt/two.txt": "2"}
    with pytest.raises(NotADirectoryError):
        write_files(tmp_path, files)
    assert [each.name for each in tmp_path.iterdir()] == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "before"
    write_files(tmp_path, {"kept.txt": "after", "new/deep/one.txt": "1"})
    assert (tmp_path / "kept.txt").read_text() == "after"
    assert (tmp_path / "new" / "deep" / "one.txt").read_text() == "1"


def test_features_in_several_lines_are_extended(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    registry = tmp_path / "app" / "__init__.py"
    registry.write_text(
        '"""…"""\n\nfrom app import (\n    user,\n)\n\nFEATURES = [\n    user,\n]\n'
    )
    text = registered(tmp_path, feature())
    assert "from app import notes, user\n" in text
    assert "FEATURES = [user, notes]\n" in text
    registry.write_text("FEATURES = None\n")
    with pytest.raises(MistakeError, match="list them in FEATURES"):
        registered(tmp_path, feature())
