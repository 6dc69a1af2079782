"""`make remove`, and the description of the optional features."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from app.settings import ROOT
from development import removal
from tests.development.starter import FEATURES, git, make_starter, started

ALL = tuple(FEATURES)


def remove(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "development.remove", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A started application with all features, which tests do not change for good."""
    return started(tmp_path_factory.mktemp("started") / "full", *ALL)


@pytest.mark.parametrize("name", ALL)
def test_description_matches_the_repository(name: str) -> None:
    """Each path, line and package exists; otherwise, something was moved or renamed."""
    feature = FEATURES[name]
    for pattern in (*feature.paths, *feature.tables):
        assert list(ROOT.glob(pattern)), pattern
    for pattern, names in (feature.names or {}).items():
        texts = [path.read_text() for path in ROOT.glob(pattern)]
        for each in names:
            assert any(removal.without_names(text, [each]) != text for text in texts), pattern
    readme = (ROOT / "development/start/files/README.md").read_text()
    for file, patterns in (feature.lines or {}).items():
        text = readme if file == "README.md" else (ROOT / file).read_text()
        for pattern in patterns:
            assert re.search(pattern, text, re.MULTILINE), (file, pattern)


@pytest.mark.parametrize("name", ALL)
def test_removed_feature_is_not_mentioned(tmp_path: Path, full: Path, name: str) -> None:
    """No file names a path of the feature, except documents, which say where it is."""
    gone = set(removal.with_dependents([name], FEATURES))
    tree = started(tmp_path / "tree", *(each for each in ALL if each not in gone))
    before = set(git(full, "ls-files").splitlines())
    after = set(git(tree, "ls-files").splitlines())
    removed = sorted(before - after)
    assert removed
    assert after < before
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in removed
        if path.startswith(("app/", "tests/")) and path.endswith(".py")
    }
    templates = {
        path.removeprefix("app/templates/") for path in removed if path.startswith("app/templates/")
    }
    left = []
    for path in after:
        text = (tree / path).read_bytes().decode(errors="replace")
        if path.endswith(".py") and not path.startswith("quart_upsun/"):
            imported = set(re.findall(r"^\s*(?:from|import) ([\w.]+)", text, re.MULTILINE))
            left += [(path, module) for module in imported & modules]
        if path.startswith("app/"):
            left += [(path, template) for template in templates if f'"{template}"' in text]
    assert left == []


@pytest.mark.parametrize("name", ["bookmarks", "links", "api", "admin"])
def test_later_removal_leaves_the_same_as_a_start(tmp_path: Path, name: str) -> None:
    later = started(tmp_path / "later", *ALL)
    done = remove(later, name, "--not-deployed")
    assert done.returncode == 0, done.stderr
    gone = removal.with_dependents([name], FEATURES)
    if gone != [name]:
        others = ", ".join(each for each in gone if each != name)
        assert f"Also removed, because they build on it: {others}." in done.stdout
    at_once = started(tmp_path / "at-once", *(each for each in ALL if each not in gone))
    assert contents(later) == contents(at_once)


def contents(root: Path) -> dict[str, bytes]:
    """Return all files except pages with a commit in them."""
    names = git(root, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    return {
        name: (root / name).read_bytes()
        for name in sorted(set(names))
        if (root / name).is_file() and not name.startswith("docs/")
    }


def test_migrations_stay_if_the_tables_may_exist(tmp_path: Path) -> None:
    tree = started(tmp_path / "tree", *ALL)
    versions = sorted((tree / "alembic" / "versions").iterdir())
    done = remove(tree, "bookmarks", "tokens")
    assert done.returncode == 0, done.stderr
    assert "The tables stay" in done.stdout
    assert sorted((tree / "alembic" / "versions").iterdir()) == versions
    undo = re.findall(r"git reset --hard \w+", done.stdout)[0]
    subprocess.run(undo.split(), cwd=tree, check=True, capture_output=True)
    assert git(tree, "status", "--porcelain") == ""


def test_migrations_are_linked_after_one_is_deleted(tmp_path: Path) -> None:
    for names in (["bookmarks"], ["tokens", "api"], ["bookmarks", "tokens"], list(ALL)):
        versions = tmp_path / "-".join(names) / "alembic" / "versions"
        versions.mkdir(parents=True)
        for path in (ROOT / "alembic" / "versions").glob("*.py"):
            (versions / path.name).write_bytes(path.read_bytes())
        for pattern in (each for name in names for each in FEATURES[name].tables):
            for path in versions.parents[1].glob(pattern):
                removal.delete_migration(path)
        texts = [path.read_text() for path in versions.glob("*.py")]
        revisions = {re.findall(r'^revision = "(\w+)"', text, re.M)[0] for text in texts}
        downs = [re.findall(r"^down_revision = (.*)$", text, re.M)[0] for text in texts]
        assert sorted(downs).count("None") == 1
        assert len(set(downs)) == len(downs)
        assert {each.strip('"') for each in downs} - {"None"} < revisions


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "Name a feature: `make remove FEATURE=…`, with one of links,"),
        (["none"], "Name a feature: `make remove FEATURE=…`, with one of links,"),
        (["blog"], "'blog' is not an optional feature. Choose from links,"),
    ],
)
def test_unknown_feature_is_refused(full: Path, words: list[str], expected: str) -> None:
    done = remove(full, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(expected)
    assert git(full, "status", "--porcelain") == ""


def test_removed_feature_and_uncommitted_changes_are_refused(tmp_path: Path) -> None:
    tree = started(tmp_path / "tree", "links")
    gone = remove(tree, "bookmarks")
    assert (gone.returncode, gone.stderr) == (
        2,
        "bookmarks is not part of this application any more.\n",
    )
    (tree / "new.txt").touch()
    changed = remove(tree, "links")
    assert changed.returncode == 2
    assert "There are uncommitted changes: new.txt." in changed.stderr


def test_starter_is_refused(tmp_path: Path) -> None:
    tree = make_starter(tmp_path / "tree")
    done = remove(tree, "links")
    assert done.returncode == 2
    assert done.stderr.startswith("Start your application first, and choose its features:")


def test_record_lists_the_kept_features(full: Path) -> None:
    record = tomllib.loads((full / "pyproject.toml").read_text())["tool"]["quart-upsun"]
    release = tomllib.loads((ROOT / "quart_upsun" / "pyproject.toml").read_text())
    assert record["release"] == release["project"]["version"]
    assert record["keep"] == list(ALL)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from app import api, public, user\n", "from app import public, user\n"),
        ("from app import public, api\n", "from app import public\n"),
        ("from app import api\nx\n", "x\n"),
        ("FEATURES = [public, api, user]\n", "FEATURES = [public, user]\n"),
        ("for module in (views, api):\n", "for module in (views,):\n"),
        ("from app import (\n    api,\n    user,\n)\n", "from app import (\n    user,\n)\n"),
        ("api.init_app(app)\n", "api.init_app(app)\n"),
        ("x(apis, my_api, api.y)\n", "x(apis, my_api, api.y)\n"),
    ],
)
def test_names_are_removed_from_imports_and_tuples(code: str, expected: str) -> None:
    assert removal.without_names(code, ["api"]) == expected


def test_npm_packages_that_nothing_needs_are_removed(tmp_path: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    removal.remove_npm_packages(tmp_path, ["swagger-ui-dist"])
    lock = (tmp_path / "package-lock.json").read_text()
    assert "swagger" not in lock
    assert "@scarf/scarf" not in lock
    before = (ROOT / "package-lock.json").read_text()
    assert before.count('"node_modules/') - lock.count('"node_modules/') == 2


def test_names_of_the_starter_are_left_in_its_packages_only(full: Path) -> None:
    allowed = ("quart_upsun/", "rehearsal/", "embedded_postgres/", "development/")
    left = []
    for name in git(full, "ls-files").splitlines():
        text = (full / name).read_bytes().decode(errors="replace")
        if not name.startswith(allowed):
            left += [
                f"{name}: {line}"
                for line in text.splitlines()
                if re.search(r"quart-upsun|quart upsun", line, re.IGNORECASE)
                and "[tool.quart-upsun]" not in line
                and not re.search(r"`quart-upsun\[\w+\]`", line)  # an extra of the toolkit
                and "started from quart-upsun" not in line
                and "make upgrade FROM=" not in line
            ]
    assert left == []


def test_documents_say_what_the_application_does_not_have(tmp_path: Path, full: Path) -> None:
    lean = started(tmp_path / "lean")
    for page, note in (
        ("accounts-and-mail.md", "\n\n> This application does not have `/admin/`.\n"),
        ("adding-a-feature.md", "\n\n> The page follows examples that this application"),
    ):
        assert note in (lean / "docs" / page).read_text()
        assert note not in (full / "docs" / page).read_text()
    example = re.findall(r"`git show (\w+:[\w/.]+)`", (lean / "docs" / page).read_text())[0]
    assert git(lean, "show", example).startswith('"""')


def test_links_in_documents_work_without_any_feature(tmp_path: Path, full: Path) -> None:
    for tree in (full, started(tmp_path / "lean")):
        pages = [*(tree / "docs").rglob("*.md"), *tree.glob("*.md")]
        assert len(pages) > 10
        for page in pages:
            for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
                assert "://" in target or (page.parent / target).exists(), (page.name, target)
        layout = (tree / "README.md").read_text().partition("## Layout")[2]
        for row in re.findall(r"^\| (`.*?) \|", layout, re.MULTILINE):
            for path in re.findall(r"`([^`]+)`", row):
                assert (tree / path).exists(), path
