"""The asset build: file names, manifest, compressed copies, errors and watch mode."""

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
SECONDS = 120  # for one build, on a machine that runs other tests at the same time
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
    """The path of Node, with the npm packages installed."""
    npm = require("npm")
    with (ROOT / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not NODE_MODULES.is_dir():
            subprocess.run([npm, "ci"], cwd=ROOT, check=True, capture_output=True, timeout=600)
    return require("node")


class Build(NamedTuple):
    """The output of a build."""

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
    """A copy of the sources with small style sheets and scripts, which builds quickly."""

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
def repository_build(node: str, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The build of the repository's own sources with `npm run build`."""
    directory = tmp_path_factory.mktemp("repository")
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
    for name in ("css/docs.css", "js/docs.js"):  # Swagger UI takes seconds to build
        tree.path(name).write_text("")
    return tree


def failed(result: Result) -> str:
    """Assert that the build failed with a one-line message; return the message."""
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_manifest_maps_names_to_digested_files(repository_build: Build) -> None:
    names = repository_build.names()
    assert {"main.css", "main.js", "img/logo.svg", "img/favicon.svg"} <= names.keys()
    assert list(names) == sorted(names)
    for plain, digested in names.items():
        assert DIGEST.sub("", digested) == plain != digested
        assert (repository_build.outdir / digested).is_file()


def test_every_file_is_in_the_manifest_or_a_compressed_copy(repository_build: Build) -> None:
    listed = set(repository_build.names().values())
    copies = {f"{name}{suffix}" for name in listed for suffix in (".gz", ".br")}
    assert repository_build.files().keys() <= listed | copies


def test_compressed_copies_have_the_same_content(node: str, repository_build: Build) -> None:
    files = repository_build.files()
    for plain in ("main.css", "main.js", "img/logo.svg"):
        name = repository_build.names()[plain]
        assert gzip.decompress(files[f"{name}.gz"]) == files[name]
        assert len(files[f"{name}.br"]) < len(files[f"{name}.gz"]) < len(files[name])
    brotli = [str(repository_build.outdir / name) for name in files if name.endswith(".br")]
    subprocess.run([node, "-e", READ_BROTLI, *brotli], check=True, timeout=SECONDS)


def test_builds_are_reproducible(node: str, repository_build: Build, tmp_path: Path) -> None:
    again = Build(tmp_path / "static", tmp_path / "manifest.json")
    script = str(ROOT / "assets" / "build.mjs")
    subprocess.run(
        [node, script, *again.options()],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=SECONDS,
    )
    assert again.files() == repository_build.files()
    assert again.manifest.read_bytes() == repository_build.manifest.read_bytes()


def test_styles_and_scripts_are_minified(repository_build: Build) -> None:
    for plain in ("main.css", "main.js"):
        text = (repository_build.outdir / repository_build.names()[plain]).read_text()
        assert text.count("\n") < 20  # those of the license comment


def test_dark_mode_works_without_a_script(repository_build: Build) -> None:
    css = (repository_build.outdir / repository_build.names()["main.css"]).read_text()
    assert "prefers-color-scheme:dark" in css.replace(" ", "")


def test_lock_file_contains_no_urls() -> None:
    packages = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    assert all("resolved" not in package for package in packages.values())


def test_images_in_styles_are_digested(tree: Tree) -> None:
    build = tree.build()
    css = (build.outdir / build.names()["main.css"]).read_text()
    assert re.findall(r"url\(\W*(img/.+?)\W*\)", css) == [build.names()["img/logo.svg"]]


def test_files_that_do_not_shrink_are_not_compressed(tree: Tree) -> None:
    tree.path("img/tiny.svg").write_text("<svg/>")
    (tree.path("img/photo.png")).write_bytes(b"\x89PNG" + b"a" * 1000)
    build = tree.build()
    for plain in ("img/tiny.svg", "img/photo.png"):
        name = build.names()[plain]
        assert {file for file in build.files() if file.startswith(name)} == {name}


def test_change_renames_one_file_and_removes_the_old_one(tree: Tree) -> None:
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


def test_build_keeps_files_in_a_published_directory(tree: Tree) -> None:
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
def test_error_names_the_file_and_changes_nothing(
    tree: Tree, name: str, content: str, place: str
) -> None:
    build = tree.build()
    before = build.files(), build.manifest.read_bytes()
    tree.path(name).write_text(content)
    assert failed(tree.run()).startswith(f"build failed: {place}")
    assert (build.files(), build.manifest.read_bytes()) == before


def test_error_names_an_unwritable_output_directory(tree: Tree) -> None:
    (tree.root / "file").write_text("no directory")
    message = failed(tree.run("--outdir", str(tree.root / "file" / "static")))
    assert str(tree.root / "file") in message
    assert not (tree.root / "app" / "manifest.json").exists()


def test_error_names_a_missing_package_and_npm_ci(tree: Tree) -> None:
    (tree.root / "node_modules").unlink()
    message = failed(tree.run())
    assert "esbuild" in message
    assert "npm ci" in message


def test_build_rejects_an_old_node(tree: Tree) -> None:
    old = "Object.defineProperty(process, 'versions', {value: {node: '18.20.0'}})"
    result = tree.run(node_options=("--import", f"data:text/javascript,{old}"))
    message = failed(result)
    assert "Node 20 or later" in message
    assert "18.20.0" in message


@pytest.mark.parametrize("arguments", [["--minify"], ["extra"], ["--outdir"], ["--outdir="]])
def test_build_rejects_invalid_arguments(tree: Tree, arguments: list[str]) -> None:
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
    """A build in watch mode, and the lines of its output."""

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
    with process:  # closes the pipes
        pass


def test_watch_rebuilds_after_changes_and_errors(tree: Tree, watcher: Watcher) -> None:
    build = Build(tree.root / "app" / "static", tree.root / "app" / "manifest.json")
    assert watcher.line().startswith("built ")
    first = build.names()
    tree.path("js/main.js").write_text("let a = ;\n")
    assert watcher.line().startswith("build failed: assets/js/main.js:1:9: ")
    assert build.names() == first
    tree.path("js/main.js").write_text("document.title = 'two';\n")
    assert watcher.line().startswith("built ")
    assert build.names()["main.js"] != first["main.js"]
    # An open page may still request the previous file.
    assert (build.outdir / first["main.js"]).exists()
    (tree.path("img/new.svg")).write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    assert watcher.line().startswith("built ")
    assert "img/new.svg" in build.names()
    watcher.close_stdin()
    assert watcher.process.wait(SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_stops_on_signals(watcher: Watcher, number: signal.Signals) -> None:
    assert watcher.line().startswith("built ")
    watcher.process.send_signal(number)
    assert watcher.process.wait(SECONDS) == 0


def test_watch_stops_with_its_parent_during_a_build(watcher: Watcher) -> None:
    watcher.close_stdin()
    assert watcher.process.wait(SECONDS) == 0
