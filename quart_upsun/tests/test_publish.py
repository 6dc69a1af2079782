"""The deploy step that copies built assets into the directory the web server serves."""

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
    """A built release: its files, their manifest and its name."""

    source: Path
    manifest: Path
    name: str

    def command(self, target: Path, *options: str) -> list[str]:
        paths = [str(self.source), str(target), "--manifest", str(self.manifest)]
        return [*paths, "--release", self.name, *options]


def build(root: Path, name: str, digest: str) -> Release:
    """Lay out a release with a style sheet of its own and a logo that all releases share."""
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
    """The mount, which is not there yet."""
    return tmp_path / "mount" / "static"


def run(
    *arguments: str, env: Mapping[str, str] | None = None, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command, in an interpreter that has first executed the statements `before`."""
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
    """Publish and return the line that the script prints."""
    result = run(*release.command(target, *options))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    return result.stdout.strip()


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence that the script ended with."""
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("publish-assets: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def served(target: Path) -> set[str]:
    """Return the names of all files in the mount, without the ledger's."""
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
    """Set our own clock's record of a release, and leave the file system's as it is."""
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


def test_publishes_a_release_into_a_missing_directory(new: Release, target: Path) -> None:
    assert publish(new, target) == "published 4 files (4 new), removed 0"
    assert served(target) == built(new)
    for name in built(new):
        assert (target / name).read_bytes() == (new.source / name).read_bytes()


def test_a_second_run_touches_no_served_file(new: Release, target: Path) -> None:
    publish(new, target)
    before = {name: (target / name).stat() for name in served(target)}
    assert publish(new, target) == "published 4 files (0 new), removed 0"
    for name, stat in before.items():
        after = (target / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


def test_an_upload_beside_the_manifest_is_not_published(new: Release, target: Path) -> None:
    (new.source / "notes.txt").write_text("left over")
    publish(new, target)
    assert "notes.txt" not in served(target)


@pytest.mark.parametrize("content", ["", "/* ne", "\0" * len("/* new */" * 400)])
def test_a_half_written_copy_is_replaced(new: Release, target: Path, content: str) -> None:
    css = target / "main-NEWNEWNE.css"
    target.mkdir(parents=True)
    css.write_text(content)
    with css.open() as being_served:
        assert publish(new, target) == "published 4 files (4 new), removed 0"
        # A reader that has the file open goes on with what it had: nobody wrote into it.
        assert being_served.read() == content
    assert css.read_bytes() == (new.source / css.name).read_bytes()
    assert served(target) == built(new)


def test_the_previous_release_stays(old: Release, new: Release, target: Path) -> None:
    publish(old, target)
    assert publish(new, target) == "published 4 files (3 new), removed 0"
    assert served(target) == built(old) | built(new)


def test_a_release_counts_until_its_successor_came(
    old: Release, new: Release, target: Path
) -> None:
    publish(old, target)
    age(target, old, days=90)
    assert publish(new, target) == "published 4 files (3 new), removed 0"
    assert served(target) == built(old) | built(new)


def test_files_that_no_recent_release_named_go(
    old: Release, new: Release, newest: Release, target: Path
) -> None:
    publish(old, target)
    publish(new, target)
    age(target, old, days=31)
    assert publish(newest, target) == "published 4 files (3 new), removed 3"
    # The logo stays, because later releases name it, too.
    assert served(target) == built(new) | built(newest)
    assert not entry(target, old).exists()
    assert entry(target, new).exists()


def test_files_stay_for_as_long_as_asked(
    old: Release, new: Release, newest: Release, target: Path
) -> None:
    publish(old, target)
    publish(new, target)
    age(target, old, days=29)
    assert publish(newest, target).endswith("removed 0")
    assert publish(newest, target, "--keep-days", "28").endswith("removed 3")


def test_publishing_again_makes_a_release_recent(
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


def test_both_builds_of_a_release_that_was_built_twice_stay_and_go_together(
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


def test_files_of_others_are_never_touched(
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


def test_a_file_without_a_digest_is_left(
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


@pytest.mark.parametrize("clock", ["ours", "file system"])
def test_one_clock_that_was_wrong_loses_nothing(
    old: Release, new: Release, newest: Release, target: Path, clock: str
) -> None:
    publish(old, target)
    publish(new, target)
    if clock == "ours":
        set_published(target, old, days_ago=20_000)
    else:
        set_modified(entry(target, old), days_ago=20_000)
    publish(newest, target)
    assert served(target) == built(old) | built(new) | built(newest)


def test_our_clock_that_is_ahead_loses_nothing(
    old: Release, new: Release, newest: Release, target: Path
) -> None:
    publish(old, target)
    publish(new, target)
    age(target, old, days=10)
    ahead = f"import time\nnow = time.time\ntime.time = lambda: now() + {400 * DAY}"
    result = run(*newest.command(target), before=ahead)
    assert result.stdout.strip() == "published 4 files (3 new), removed 0"
    assert served(target) == built(old) | built(new) | built(newest)


def test_an_entry_from_the_future_does_not_hide_the_previous_release(
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
def test_a_broken_ledger_entry_loses_nothing(
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


def test_only_stale_temporary_files_of_our_own_go(new: Release, target: Path) -> None:
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


def test_nothing_is_removed_while_another_release_is_published(
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
    """Yield what is wrong with what the web server would now send."""
    for release in releases:
        for name in built(release):
            try:
                content = (target / name).read_bytes()
            except FileNotFoundError:
                continue
            if content != (release.source / name).read_bytes():
                yield f"{name} is half written"
            if name.endswith(".css") and not (target / f"{name}.br").exists():
                yield f"{name} came before its sibling"


def test_processes_that_publish_at_once(
    tmp_path: Path, old: Release, new: Release, target: Path
) -> None:
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
    wrong: list[str] = []
    while any(process.poll() is None for process in processes):
        wrong += watch(target, [old, new])
    for process in processes:
        output, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        assert output.startswith("published 4 files")
    assert wrong == []
    publish(new, target)
    assert served(target) == built(old) | built(new)
    assert {path.name for path in (target / ".releases").iterdir()} == {
        ".lock",
        "old.json",
        "new.json",
    }


def test_a_read_only_source_leaves_a_mount_that_can_be_written(new: Release, target: Path) -> None:
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


def test_a_missing_file_stops_it_before_anything_changes(new: Release, target: Path) -> None:
    (new.source / LOGO).unlink()
    assert f"{LOGO} is missing" in refused(run(*new.command(target)))
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"a": 1}', '{"a": "../a"}', '{"a": "/a"}'],
)
def test_a_broken_manifest_stops_it(new: Release, target: Path, content: str) -> None:
    new.manifest.write_text(content)
    assert str(new.manifest) in refused(run(*new.command(target)))
    assert not target.exists()


def test_a_missing_manifest_stops_it(new: Release, target: Path) -> None:
    new.manifest.unlink()
    assert str(new.manifest) in refused(run(*new.command(target)))


def test_a_target_that_is_no_directory(new: Release, target: Path) -> None:
    target.parent.mkdir()
    target.write_text("a file")
    assert str(target) in refused(run(*new.command(target)))


def test_a_full_disk_leaves_no_half_file(new: Release, target: Path) -> None:
    # The siblings and the ledger fit below this limit, the style sheet does not.
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    assert "cannot publish" in refused(run(*new.command(target), before=limit))
    # Siblings come first, so the server never sends a file before its compressed forms.
    assert served(target) == built(new) - {"main-NEWNEWNE.css"}
    assert publish(new, target) == "published 4 files (1 new), removed 0"


def test_the_release_is_named_by_the_platform(new: Release, target: Path) -> None:
    arguments = (str(new.source), str(target), "--manifest", str(new.manifest))
    assert run(*arguments, env={"PLATFORM_TREE_ID": "3f2a"}).returncode == 0
    assert run(*arguments).returncode == 0
    names = {path.stem for path in (target / ".releases").glob("*.json")}
    assert "3f2a" in names
    assert len(names) == 2
    assert re.fullmatch("[0-9a-f]{16}", (names - {"3f2a"}).pop())


def test_a_release_name_cannot_leave_the_ledger(new: Release, target: Path) -> None:
    command = new.command(target, "--release", "../evil")
    assert "release name" in refused(run(*command))
    assert not target.exists()


@pytest.mark.parametrize("days", ["0", "-1", "many"])
def test_days_must_be_a_positive_number(new: Release, target: Path, days: str) -> None:
    assert run(*new.command(target, "--keep-days", days)).returncode == 2
    assert not target.exists()
