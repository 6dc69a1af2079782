"""The command `publish-assets`, which the deploy hook runs."""

import datetime
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "publish-assets"
DAY = 24 * 60 * 60

LOGO = "img/logo-LOGOLOGO.svg"


class Release(NamedTuple):
    """A built release: files, manifest and name."""

    source: Path
    manifest: Path
    name: str

    def command(self, target: Path, *options: str) -> list[str]:
        paths = [str(self.source), str(target), "--manifest", str(self.manifest)]
        return [*paths, "--release", self.name, *options]


def build(root: Path, name: str, digest: str) -> Release:
    """Create a release with its own style sheet and with the logo of all releases."""
    source = root / name
    css = f"main-{digest}.css"
    for file, content in {
        css: f"/* {name} */" * 400,
        f"{css}.gz": f"gzip of {name}",
        f"{css}.br": f"brotli of {name}",
        LOGO: "<svg/>",
    }.items():
        path = source / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    manifest = root / f"{name}-manifest.json"
    manifest.write_text(json.dumps({"main.css": css, "img/logo.svg": LOGO}))
    return Release(source, manifest, name)


@pytest.fixture
def old(tmp_path: Path) -> Release:
    return build(tmp_path, "old", "OLDOLDOL")


@pytest.fixture
def new(tmp_path: Path) -> Release:
    return build(tmp_path, "new", "NEWNEWNE")


@pytest.fixture
def newest(tmp_path: Path) -> Release:
    return build(tmp_path, "newest", "LATESTLA")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The mount, which does not exist yet."""
    return tmp_path / "mount" / "static"


def run(
    *arguments: str, env: Mapping[str, str] | None = None, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command in a new interpreter, after the statements in `before`."""
    start = ["-m", "quart_upsun"]
    if before:
        run_module = "runpy.run_module('quart_upsun', run_name='__main__', alter_sys=True)"
        start = ["-c", f"import runpy, sys\n{before}\n{run_module}"]
    return subprocess.run(
        [sys.executable, *start, COMMAND, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": os.environ["PATH"], **(env or {})},
    )


def publish(release: Release, target: Path, *options: str) -> str:
    """Publish a release and return the line that the command prints."""
    result = run(*release.command(target, *options))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    return result.stdout.strip()


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """Check that the command failed, and return its error message."""
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("publish-assets: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def served(target: Path) -> set[str]:
    """Return the names of all files in the mount except the ledger's."""
    return {
        str(path.relative_to(target))
        for path in target.rglob("*")
        if path.is_file() and ".releases" not in path.parts
    }


def built(release: Release) -> set[str]:
    return {str(p.relative_to(release.source)) for p in release.source.rglob("*") if p.is_file()}


def entry(target: Path, release: Release) -> Path:
    return target / ".releases" / f"{release.name}.json"


def set_published(target: Path, release: Release, days_ago: float) -> None:
    """Change when a release was published by the local clock, but not its modification time."""
    path = entry(target, release)
    stat = path.stat()
    content = json.loads(path.read_text())
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days_ago)
    path.write_text(json.dumps({**content, "published": moment.isoformat()}))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def set_modified(path: Path, days_ago: float) -> None:
    moment = time.time() - days_ago * DAY
    os.utime(path, (moment, moment))


def age(target: Path, release: Release, days: float) -> None:
    set_published(target, release, days)
    set_modified(entry(target, release), days)


def test_publishes_into_a_missing_directory(new: Release, target: Path) -> None:
    assert publish(new, target) == "published 4 files (4 new), removed 0"
    assert served(target) == built(new)
    for name in built(new):
        assert (target / name).read_bytes() == (new.source / name).read_bytes()


def test_second_run_does_not_touch_served_files(new: Release, target: Path) -> None:
    publish(new, target)
    before = {name: (target / name).stat() for name in served(target)}
    assert publish(new, target) == "published 4 files (0 new), removed 0"
    for name, stat in before.items():
        after = (target / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


def test_files_outside_the_manifest_are_not_published(new: Release, target: Path) -> None:
    (new.source / "notes.txt").write_text("left over")
    publish(new, target)
    assert "notes.txt" not in served(target)


@pytest.mark.parametrize("content", ["", "/* ne", "\0" * len("/* new */" * 400)])
def test_incomplete_copy_is_replaced_atomically(new: Release, target: Path, content: str) -> None:
    css = target / "main-NEWNEWNE.css"
    target.mkdir(parents=True)
    css.write_text(content)
    with css.open() as being_served:
        assert publish(new, target) == "published 4 files (4 new), removed 0"
        # An open file keeps its old content, because the new file has replaced it.
        assert being_served.read() == content
    assert css.read_bytes() == (new.source / css.name).read_bytes()
    assert served(target) == built(new)


def test_files_of_the_previous_release_are_kept(old: Release, new: Release, target: Path) -> None:
    publish(old, target)
    assert publish(new, target) == "published 4 files (3 new), removed 0"
    assert served(target) == built(old) | built(new)


def test_retention_starts_when_a_release_is_replaced(
    old: Release, new: Release, target: Path
) -> None:
    publish(old, target)
    age(target, old, days=90)
    assert publish(new, target) == "published 4 files (3 new), removed 0"
    assert served(target) == built(old) | built(new)


def test_files_of_old_releases_are_removed(
    old: Release, new: Release, newest: Release, target: Path
) -> None:
    publish(old, target)
    publish(new, target)
    age(target, old, days=31)
    assert publish(newest, target) == "published 4 files (3 new), removed 3"
    # Later releases list the logo, too.
    assert served(target) == built(new) | built(newest)
    assert not entry(target, old).exists()
    assert entry(target, new).exists()


def test_keep_days_sets_the_retention(
    old: Release, new: Release, newest: Release, target: Path
) -> None:
    publish(old, target)
    publish(new, target)
    age(target, old, days=29)
    assert publish(newest, target).endswith("removed 0")
    assert publish(newest, target, "--keep-days", "28").endswith("removed 3")


def test_publishing_again_renews_a_release(
    old: Release, new: Release, newest: Release, target: Path
) -> None:
    publish(old, target)
    publish(new, target)
    age(target, old, days=31)
    publish(old, target)
    published = json.loads(entry(target, old).read_text())["published"]
    moment = datetime.datetime.fromisoformat(published)
    assert datetime.datetime.now(datetime.UTC) - moment < datetime.timedelta(minutes=5)
    publish(newest, target)
    assert served(target) == built(old) | built(new) | built(newest)


def test_rebuilt_release_keeps_the_files_of_both_builds(
    tmp_path: Path, old: Release, new: Release, newest: Release, target: Path
) -> None:
    publish(old, target)
    again = build(tmp_path / "again", "old", "REBUILTR")
    publish(again, target)
    publish(new, target)
    assert served(target) == built(old) | built(again) | built(new)
    age(target, old, days=31)
    assert publish(newest, target).endswith("removed 6")
    assert served(target) == built(new) | built(newest)


def test_unknown_files_are_never_removed(
    old: Release, new: Release, newest: Release, target: Path
) -> None:
    publish(old, target)
    others = {"photo-ABCD2345.jpg", "robots.txt", "img/.note.tmp", "main-OTHEROTH.css"}
    for name in others:
        (target / name).write_text("mine")
        set_modified(target / name, days_ago=400)
    publish(new, target)
    age(target, old, days=31)
    assert publish(newest, target).endswith("removed 3")
    assert served(target) == built(new) | built(newest) | others


def test_files_without_a_digest_are_never_removed(
    old: Release, new: Release, newest: Release, target: Path
) -> None:
    (old.source / "robots.txt").write_text("User-agent: *")
    names = json.loads(old.manifest.read_text())
    old.manifest.write_text(json.dumps({**names, "robots.txt": "robots.txt"}))
    publish(old, target)
    publish(new, target)
    age(target, old, days=31)
    assert publish(newest, target).endswith("removed 3")
    assert (target / "robots.txt").exists()


@pytest.mark.parametrize("clock", ["local", "file system"])
def test_one_wrong_clock_removes_nothing(
    old: Release, new: Release, newest: Release, target: Path, clock: str
) -> None:
    publish(old, target)
    publish(new, target)
    if clock == "local":
        set_published(target, old, days_ago=20_000)
    else:
        set_modified(entry(target, old), days_ago=20_000)
    publish(newest, target)
    assert served(target) == built(old) | built(new) | built(newest)


def test_local_clock_ahead_removes_nothing(
    old: Release, new: Release, newest: Release, target: Path
) -> None:
    publish(old, target)
    publish(new, target)
    age(target, old, days=10)
    ahead = f"import time\nnow = time.time\ntime.time = lambda: now() + {400 * DAY}"
    result = run(*newest.command(target), before=ahead)
    assert result.stdout.strip() == "published 4 files (3 new), removed 0"
    assert served(target) == built(old) | built(new) | built(newest)


def test_entry_from_the_future_does_not_hide_the_previous_release(
    old: Release, new: Release, newest: Release, target: Path
) -> None:
    publish(old, target)
    publish(new, target)
    age(target, old, days=-400)
    age(target, new, days=90)
    publish(newest, target)
    assert served(target) == built(old) | built(new) | built(newest)


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"number": 1, "published": "2001-01-01T00:00:00+00:00", "fil',
        "[]",
        '{"number": 1, "published": "yesterday", "files": []}',
        '{"number": 1, "published": "2001-01-01T00:00:00+00:00", "files": "all"}',
        '{"number": 1, "published": "2001-01-01T00:00:00+00:00", "files": ["../a-ABCD2345.css"]}',
        '{"number": 1, "published": "2001-01-01T00:00:00+00:00", "files": ["/a-ABCD2345.css"]}',
    ],
)
def test_unreadable_ledger_entry_removes_nothing(
    old: Release, new: Release, newest: Release, target: Path, content: str
) -> None:
    publish(old, target)
    publish(new, target)
    age(target, old, days=31)
    outside = target.parent / "a-ABCD2345.css"
    outside.write_text("not ours")
    broken = target / ".releases" / "broken.json"
    broken.write_text(content)
    set_modified(broken, days_ago=90)
    line = publish(newest, target)
    assert line.startswith("published 4 files (3 new), removed 0; nothing removed: cannot read ")
    assert "broken.json" in line
    assert served(target) == built(old) | built(new) | built(newest)
    assert outside.exists()


def test_only_own_stale_temporary_files_are_removed(new: Release, target: Path) -> None:
    publish(new, target)
    stale = target / "img" / f".logo.svg.{'a' * 16}.tmp"
    young = target / f".main.css.{'b' * 16}.tmp"
    other = target / ".somebody-else.tmp"
    for path in (stale, young, other):
        path.write_text("half")
    set_modified(stale, days_ago=1.1)
    set_modified(young, days_ago=0.9)
    set_modified(other, days_ago=400)
    publish(new, target)
    assert not stale.exists()
    assert young.exists()
    assert other.exists()


def test_nothing_is_removed_during_another_publish(
    old: Release, new: Release, newest: Release, target: Path
) -> None:
    publish(old, target)
    publish(new, target)
    age(target, old, days=31)
    with (target / ".releases" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert publish(newest, target) == (
            "published 4 files (3 new), removed 0; "
            "nothing removed: another release is being published"
        )
    assert served(target) == built(old) | built(new) | built(newest)
    assert publish(newest, target) == "published 4 files (0 new), removed 3"


def watch(target: Path, releases: list[Release]) -> Iterator[str]:
    """Yield errors in the files that the web server would serve now."""
    for release in releases:
        for name in built(release):
            try:
                content = (target / name).read_bytes()
            except FileNotFoundError:
                continue
            if content != (release.source / name).read_bytes():
                yield f"{name} is incomplete"
            if name.endswith(".css") and not (target / f"{name}.br").exists():
                yield f"{name} was published before its compressed file"


def test_concurrent_publishes(tmp_path: Path, old: Release, new: Release, target: Path) -> None:
    ancient = build(tmp_path, "ancient", "ANCIENTA")
    publish(ancient, target)
    publish(old, target)
    age(target, ancient, days=31)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "quart_upsun", COMMAND, *release.command(target)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for release in (old, new, new, old)
    ]
    errors_found: list[str] = []
    while any(process.poll() is None for process in processes):
        errors_found += watch(target, [old, new])
    for process in processes:
        output, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        assert output.startswith("published 4 files")
    assert errors_found == []
    publish(new, target)
    assert served(target) == built(old) | built(new)
    assert {path.name for path in (target / ".releases").iterdir()} == {
        ".lock",
        "old.json",
        "new.json",
    }


def test_read_only_source_gives_writable_copies(new: Release, target: Path) -> None:
    directories = [new.source, new.source / "img"]
    for name in built(new):
        (new.source / name).chmod(0o444)
    for directory in directories:
        directory.chmod(0o555)
    try:
        assert publish(new, target) == "published 4 files (4 new), removed 0"
        css = target / "main-NEWNEWNE.css"
        assert css.stat().st_mode & 0o200
        css.write_text("half")
        assert publish(new, target) == "published 4 files (1 new), removed 0"
    finally:
        for directory in directories:
            directory.chmod(0o755)


def test_missing_file_fails_before_any_change(new: Release, target: Path) -> None:
    (new.source / LOGO).unlink()
    assert f"{LOGO} is missing" in error_of(run(*new.command(target)))
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"a": 1}', '{"a": "../a"}', '{"a": "/a"}'],
)
def test_invalid_manifest_fails(new: Release, target: Path, content: str) -> None:
    new.manifest.write_text(content)
    assert str(new.manifest) in error_of(run(*new.command(target)))
    assert not target.exists()


def test_missing_manifest_fails(new: Release, target: Path) -> None:
    new.manifest.unlink()
    assert str(new.manifest) in error_of(run(*new.command(target)))


def test_target_that_is_not_a_directory_fails(new: Release, target: Path) -> None:
    target.parent.mkdir()
    target.write_text("a file")
    assert str(target) in error_of(run(*new.command(target)))


def test_full_disk_leaves_no_incomplete_file(new: Release, target: Path) -> None:
    # The compressed files and the ledger are smaller than this limit, the style sheet is larger.
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    assert "cannot publish" in error_of(run(*new.command(target), before=limit))
    # Compressed files come first, so the web server never serves a file without them.
    assert served(target) == built(new) - {"main-NEWNEWNE.css"}
    assert publish(new, target) == "published 4 files (1 new), removed 0"


def test_release_name_comes_from_the_platform(new: Release, target: Path) -> None:
    arguments = (str(new.source), str(target), "--manifest", str(new.manifest))
    assert run(*arguments, env={"PLATFORM_TREE_ID": "3f2a"}).returncode == 0
    assert run(*arguments).returncode == 0
    names = {path.stem for path in (target / ".releases").glob("*.json")}
    assert "3f2a" in names
    assert len(names) == 2
    assert re.fullmatch("[0-9a-f]{16}", (names - {"3f2a"}).pop())


def test_release_name_cannot_contain_a_path(new: Release, target: Path) -> None:
    command = new.command(target, "--release", "../evil")
    assert "release name" in error_of(run(*command))
    assert not target.exists()


@pytest.mark.parametrize("days", ["0", "-1", "many"])
def test_keep_days_must_be_positive(new: Release, target: Path, days: str) -> None:
    assert run(*new.command(target, "--keep-days", days)).returncode == 2
    assert not target.exists()
