"""The asset build: names, manifest, compressed siblings, errors and watching."""

import fcntl
import gzip
import json
import queue
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from quart_upsun.testing.programs import require

ROOT = Path(__file__).resolve().parents[2]
NODE_MODULES = ROOT / "node_modules"
DIGEST = re.compile(r"-[A-Z0-9]{8}(?=\.)")
SECONDS = 120  # for one build on a machine that is busy with other tests
SMALL_STYLES = "$ink: #123456;\nbody { color: $ink; background: url('../img/logo.svg'); }\n"
SMALL_SCRIPT = "document.body.dataset.version = 'one';\n"
READ_BROTLI = """
const fs = require("node:fs"), zlib = require("node:zlib");
for (const file of process.argv.slice(1)) {
  const whole = fs.readFileSync(file.slice(0, -".br".length));
  if (!zlib.brotliDecompressSync(fs.readFileSync(file)).equals(whole)) throw new Error(file);
}
"""

Result = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def node() -> str:
    """Node, with the packages that the build needs."""
    npm = require("npm")
    with (ROOT / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Tests run in several processes.
        if not NODE_MODULES.is_dir():
            subprocess.run([npm, "ci"], cwd=ROOT, check=True, capture_output=True, timeout=600)
    return require("node")


class Build(NamedTuple):
    """Where a build went."""

    outdir: Path
    manifest: Path

    def options(self) -> list[str]:
        return ["--outdir", str(self.outdir), "--manifest", str(self.manifest)]

    def names(self) -> dict[str, str]:
        names: dict[str, str] = json.loads(self.manifest.read_text())
        return names

    def files(self) -> dict[str, bytes]:
        paths = (path for path in self.outdir.rglob("*") if path.is_file())
        return {str(path.relative_to(self.outdir)): path.read_bytes() for path in paths}


class Tree(NamedTuple):
    """A copy of the sources with small ones of our own, which builds in no time."""

    node: str
    root: Path

    def path(self, name: str) -> Path:
        return self.root / "assets" / name

    def run(self, *arguments: str, node_options: tuple[str, ...] = ()) -> Result:
        return subprocess.run(
            [self.node, *node_options, str(self.path("build.mjs")), *arguments],
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    def build(self) -> Build:
        """Build with the default options."""
        result = self.run()
        assert (result.returncode, result.stderr) == (0, "")
        return Build(self.root / "app" / "static", self.root / "app" / "manifest.json")


@pytest.fixture(scope="module")
def shipped(node: str, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The shipped sources, built as a developer and the platform build them."""
    directory = tmp_path_factory.mktemp("shipped")
    build = Build(directory / "static", directory / "app" / "manifest.json")
    subprocess.run(
        [require("npm"), "run", "build", "--", *build.options()],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=SECONDS,
    )
    return build


@pytest.fixture
def tree(node: str, tmp_path: Path) -> Tree:
    root = tmp_path / "tree"
    shutil.copytree(ROOT / "assets", root / "assets")
    (root / "package.json").write_bytes((ROOT / "package.json").read_bytes())
    (root / "node_modules").symlink_to(NODE_MODULES)
    tree = Tree(node, root)
    tree.path("css/main.scss").write_text(SMALL_STYLES)
    tree.path("js/main.js").write_text(SMALL_SCRIPT)
    for name in ("css/docs.css", "js/docs.js"):  # with Swagger UI they take seconds
        tree.path(name).write_text("")
    return tree


def failed(result: Result) -> str:
    """Return the message of a failed build."""
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_the_manifest_maps_sources_to_digested_files(shipped: Build) -> None:
    names = shipped.names()
    assert {"main.css", "main.js", "img/logo.svg", "img/favicon.svg"} <= names.keys()
    assert list(names) == sorted(names)
    for plain, digested in names.items():
        assert DIGEST.sub("", digested) == plain != digested
        assert (shipped.outdir / digested).is_file()


def test_every_file_is_named_or_a_sibling(shipped: Build) -> None:
    named = set(shipped.names().values())
    siblings = {f"{name}{suffix}" for name in named for suffix in (".gz", ".br")}
    assert shipped.files().keys() <= named | siblings


def test_siblings_hold_the_same_bytes(node: str, shipped: Build) -> None:
    files = shipped.files()
    for plain in ("main.css", "main.js", "img/logo.svg"):
        name = shipped.names()[plain]
        assert gzip.decompress(files[f"{name}.gz"]) == files[name]
        assert len(files[f"{name}.br"]) < len(files[f"{name}.gz"]) < len(files[name])
    brotli = [str(shipped.outdir / name) for name in files if name.endswith(".br")]
    subprocess.run([node, "-e", READ_BROTLI, *brotli], check=True, timeout=SECONDS)


def test_the_same_sources_give_the_same_files(node: str, shipped: Build, tmp_path: Path) -> None:
    again = Build(tmp_path / "static", tmp_path / "manifest.json")
    script = str(ROOT / "assets" / "build.mjs")
    subprocess.run(
        [node, script, *again.options()],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=SECONDS,
    )
    assert again.files() == shipped.files()
    assert again.manifest.read_bytes() == shipped.manifest.read_bytes()


def test_styles_and_script_are_minified(shipped: Build) -> None:
    for plain in ("main.css", "main.js"):
        text = (shipped.outdir / shipped.names()[plain]).read_text()
        assert text.count("\n") < 20  # those of the licence


def test_dark_mode_needs_no_script(shipped: Build) -> None:
    css = (shipped.outdir / shipped.names()["main.css"]).read_text()
    assert "prefers-color-scheme:dark" in css.replace(" ", "")


def test_the_lock_file_names_no_host() -> None:
    packages = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    assert all("resolved" not in package for package in packages.values())


def test_images_in_styles_are_digested(tree: Tree) -> None:
    build = tree.build()
    css = (build.outdir / build.names()["main.css"]).read_text()
    assert re.findall(r"url\(\W*(img/.+?)\W*\)", css) == [build.names()["img/logo.svg"]]


def test_what_does_not_get_smaller_is_not_compressed(tree: Tree) -> None:
    tree.path("img/tiny.svg").write_text("<svg/>")
    (tree.path("img/photo.png")).write_bytes(b"\x89PNG" + b"a" * 1000)
    build = tree.build()
    for plain in ("img/tiny.svg", "img/photo.png"):
        name = build.names()[plain]
        assert {file for file in build.files() if file.startswith(name)} == {name}


def test_a_change_renames_one_file_and_removes_the_old_one(tree: Tree) -> None:
    before = tree.build()
    names = before.names()
    foreign = {"main.css", "main-notours.css", "photo-ABCD2345.jpg", "img/note.txt"}
    for name in foreign:
        (before.outdir / name).write_text("mine")
    tree.path("img/favicon.svg").unlink()
    tree.path("js/main.js").write_text("document.body.dataset.version = 'two';\n")
    after = tree.build()
    assert after.names()["main.css"] == names["main.css"]
    assert after.names()["main.js"] != names["main.js"]
    assert "img/favicon.svg" not in after.names()
    left = {file for file in after.files() if not file.endswith((".gz", ".br"))}
    assert left == set(after.names().values()) | foreign
    assert not any(file.startswith(names["main.js"]) for file in after.files())


def test_a_published_directory_keeps_its_files(tree: Tree) -> None:
    before = tree.build()
    (before.outdir / ".releases").mkdir()
    old = before.files()
    tree.path("js/main.js").write_text("document.body.dataset.version = 'two';\n")
    assert old.items() < tree.build().files().items()


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("css/main.scss", "body {\n  color: $missing;\n}\n", "assets/css/main.scss:2:10: "),
        ("css/main.scss", "body {\n  color: red;\n", "assets/css/main.scss:"),
        ("css/main.scss", "a { background: url('../img/no.svg') }", "assets/css/main.scss:"),
        ("js/main.js", "let a = ;\n", "assets/js/main.js:1:9: "),
        ("js/main.js", "import './missing.js';\n", "assets/js/main.js:1:8: "),
        ("img/notes.txt", "not an image", "assets/img/notes.txt "),
    ],
)
def test_an_error_names_the_file_and_changes_nothing(
    tree: Tree, name: str, content: str, place: str
) -> None:
    build = tree.build()
    before = build.files(), build.manifest.read_bytes()
    tree.path(name).write_text(content)
    assert failed(tree.run()).startswith(f"build failed: {place}")
    assert (build.files(), build.manifest.read_bytes()) == before


def test_an_output_that_cannot_be_written(tree: Tree) -> None:
    (tree.root / "file").write_text("no directory")
    message = failed(tree.run("--outdir", str(tree.root / "file" / "static")))
    assert str(tree.root / "file") in message
    assert not (tree.root / "app" / "manifest.json").exists()


def test_missing_packages_are_named_with_the_remedy(tree: Tree) -> None:
    (tree.root / "node_modules").unlink()
    message = failed(tree.run())
    assert "esbuild" in message
    assert "npm ci" in message


def test_an_old_node_is_refused(tree: Tree) -> None:
    old = "Object.defineProperty(process, 'versions', {value: {node: '18.20.0'}})"
    result = tree.run(node_options=("--import", f"data:text/javascript,{old}"))
    assert failed(result) == "build.mjs needs Node 20 or later, and this is Node 18.20.0\n"


@pytest.mark.parametrize("arguments", [["--minify"], ["extra"], ["--outdir"], ["--outdir="]])
def test_wrong_usage(tree: Tree, arguments: list[str]) -> None:
    result = tree.run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "--help" in result.stderr
    assert not (tree.root / "app").exists()


def test_help_names_every_option(tree: Tree) -> None:
    result = tree.run("--help")
    assert (result.returncode, result.stderr) == (0, "")
    for option in ("--outdir", "--manifest", "--watch", "--help"):
        assert option in result.stdout


class Watcher(NamedTuple):
    """A build that watches, and the lines it prints."""

    process: subprocess.Popen[str]
    lines: queue.SimpleQueue[str]

    def line(self) -> str:
        return self.lines.get(timeout=SECONDS)

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.fixture
def watcher(tree: Tree) -> Iterator[Watcher]:
    process = subprocess.Popen(
        [tree.node, str(tree.path("build.mjs")), "--watch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)

    reader = threading.Thread(target=read)
    reader.start()
    yield Watcher(process, lines)
    process.kill()
    reader.join()
    with process:  # closes its pipes
        pass


def test_watching_builds_after_each_change_and_goes_on_after_errors(
    tree: Tree, watcher: Watcher
) -> None:
    build = Build(tree.root / "app" / "static", tree.root / "app" / "manifest.json")
    assert watcher.line().startswith("built ")
    first = build.names()
    tree.path("js/main.js").write_text("let a = ;\n")
    assert watcher.line().startswith("build failed: assets/js/main.js:1:9: ")
    assert build.names() == first
    tree.path("js/main.js").write_text("document.title = 'two';\n")
    assert watcher.line().startswith("built ")
    assert build.names()["main.js"] != first["main.js"]
    # An open page may still ask for the file that it was rendered with.
    assert (build.outdir / first["main.js"]).exists()
    (tree.path("img/new.svg")).write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert watcher.line().startswith("built ")
    assert "img/new.svg" in build.names()
    watcher.close_stdin()
    assert watcher.process.wait(SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watching_ends_on_signals(watcher: Watcher, number: signal.Signals) -> None:
    assert watcher.line().startswith("built ")
    watcher.process.send_signal(number)
    assert watcher.process.wait(SECONDS) == 0


def test_watching_ends_with_its_parent_during_a_build(watcher: Watcher) -> None:
    watcher.close_stdin()
    assert watcher.process.wait(SECONDS) == 0
