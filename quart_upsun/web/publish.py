"""Copies a release's built files into the directory that the web server serves.

The directory is shared by all instances and is served while this runs, and pages of the previous
release are still open in browsers. So files are only ever added, each as a whole, and a file goes
away when no release of the last weeks has named it. What each release named stands in a ledger,
`.releases/<release>.json`; a file that stands in no ledger is somebody else's and stays.
"""

import argparse
import datetime
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

LEDGER = ".releases"
# The web server sends these in place of the file they are named after.
SIBLINGS = (".gz", ".br")
DIGESTED_NAME = re.compile(r"-[A-Z0-9]{8}\.")
RELEASE_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
TEMPORARY_PATTERN = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
DAY_SECONDS = 24 * 60 * 60
LOCK_SECONDS = 10


class PublishError(Exception):
    """A reason to stop, in one sentence."""


class Entry(NamedTuple):
    """What the ledger says of one release.

    `number` grows with each release, so that their order needs no clock. `last_live` is in
    seconds since the epoch.
    """

    path: Path
    files: frozenset[str]
    number: int
    last_live: float


def parse_days(text: str) -> int:
    """Parse a number of days, one or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def publish(source: Path, target: Path, manifest: Path, release: str | None, keep_days: int) -> str:
    """Publish the files that `manifest` names, remove old ones, and return a line about it."""
    text = read_manifest(manifest)
    files = list_files(source, manifest, text)
    release = release or hashlib.sha256(text).hexdigest()[:16]
    if not RELEASE_PATTERN.fullmatch(release):
        raise PublishError(f"{release!r} is not a release name of letters, digits, '.', '_', '-'")

    ledger = target / LEDGER
    ledger.mkdir(parents=True, exist_ok=True)
    lock = os.open(ledger / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # Shared: several may copy at once, but nobody removes meanwhile.
        locked = acquire(lock, fcntl.LOCK_SH, LOCK_SECONDS)
        # The ledger before the files: what is only half copied is known, too.
        recorded = record(ledger, release, files)
        new = sum(copy(source / name, target / name) for name in files)
        if not locked:
            notice, removed = "nothing removed: the file system has no locks", 0
        elif not acquire(lock, fcntl.LOCK_EX, 0):
            notice, removed = "nothing removed: another release is being published", 0
        else:
            notice, removed = remove_old(target, recorded, keep_days)
    finally:
        os.close(lock)
    report = f"published {len(files)} files ({new} new), removed {removed}"
    return f"{report}; {notice}" if notice else report


def read_manifest(path: Path) -> bytes:
    """Return the manifest's bytes."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PublishError(f"cannot read the manifest {path}: {error.strerror}") from error


def list_files(source: Path, manifest: Path, text: bytes) -> list[str]:
    """Return the names to publish, in order: each file comes after its siblings."""
    try:
        names = json.loads(text)
    except ValueError as error:
        raise PublishError(f"the manifest {manifest} is not JSON: {error}") from error
    if not isinstance(names, dict) or not names or not all(map(is_safe, names.values())):
        raise PublishError(f"the manifest {manifest} does not map names to files")
    files: list[str] = []
    for name in sorted(set(names.values())):
        if not (source / name).is_file():
            raise PublishError(f"{source / name} is missing, though {manifest} names it")
        files += [name + suffix for suffix in SIBLINGS if (source / (name + suffix)).is_file()]
        files.append(name)
    return files


def is_safe(name: object) -> bool:
    """Tell whether `name` is a path that stays inside the directory it is used in."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def acquire(lock: int, kind: int, seconds: float) -> bool:
    """Take the lock; False when the file system has none or, without `seconds`, it is taken."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not seconds:
                return False
            if time.monotonic() > deadline:
                raise PublishError(
                    f"another process has kept the ledger locked for {seconds} s"
                ) from None
            time.sleep(0.02)
        except OSError:
            return False
        else:
            return True


def record(ledger: Path, release: str, files: list[str]) -> Path:
    """Write the release's ledger entry and return its path."""
    path = ledger / f"{release}.json"
    entries, _ = read_ledger(ledger)
    last = max((entry.number for entry in entries), default=0)
    number = last + 1
    named = set(files)
    for entry in entries:
        if entry.path == path:
            # The same release, perhaps built again: both builds may have been served.
            named |= entry.files
            if entry.number == last:
                number = last
        elif entry.number == last:
            # It was live until now, whenever it was published: its days begin here.
            os.utime(entry.path)
    published = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {"number": number, "published": published, "files": sorted(named)}
    write_whole(path, json.dumps(content, indent=1).encode())
    return path


def read_ledger(ledger: Path) -> tuple[list[Entry], list[Path]]:
    """Return the ledger's entries, and the paths of those that cannot be read."""
    entries: list[Entry] = []
    broken: list[Path] = []
    for path in sorted(ledger.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
            published = datetime.datetime.fromisoformat(content["published"]).timestamp()
            number = int(content["number"])
            if not isinstance(content["files"], list) or not all(map(is_safe, content["files"])):
                raise ValueError("not a list of files")
            # Of two clocks, ours and the file system's, the one that keeps files longer counts.
            last_live = max(published, path.stat().st_mtime)
        except FileNotFoundError:
            continue  # Another process has just removed it.
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            broken.append(path)
        else:
            entries.append(Entry(path, frozenset(content["files"]), number, last_live))
    return entries, broken


def copy(source: Path, target: Path) -> bool:
    """Make `target` a whole copy of `source`; False when it is one already."""
    content = source.read_bytes()
    try:
        if target.stat().st_size == len(content) and target.read_bytes() == content:
            return False
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, content)
    return True


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a reader meets the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_old(target: Path, current: Path, keep_days: int) -> tuple[str, int]:
    """Remove what no recent release named; return a notice, or "", and the number of files."""
    ledger = target / LEDGER
    entries, broken = read_ledger(ledger)
    directories = {ledger, target}
    directories.update((target / name).parent for entry in entries for name in entry.files)
    # The file system's clock has just dated the current entry. If one of the two clocks has
    # jumped ahead, the other one decides.
    now = min(time.time(), current.stat().st_mtime)
    remove_temporary_files(directories, now)
    if broken:
        return f"nothing removed: cannot read {', '.join(map(str, broken))}", 0

    oldest = now - keep_days * DAY_SECONDS
    stale = [entry for entry in entries if entry.path != current and entry.last_live < oldest]
    kept = {name for entry in entries if entry not in stale for name in entry.files}
    named = {name for entry in stale for name in entry.files}
    removed = 0
    for name in sorted(named - kept):
        if DIGESTED_NAME.search(name):
            removed += unlink(target / name)
    for entry in stale:
        unlink(entry.path)
    return "", removed


def remove_temporary_files(directories: Iterable[Path], now: float) -> None:
    """Remove what killed runs left, but not what a running one may still be writing."""
    for directory in directories:
        if not directory.is_dir():
            continue
        for path in directory.iterdir():
            if TEMPORARY_PATTERN.fullmatch(path.name) and path.stat().st_mtime < now - DAY_SECONDS:
                unlink(path)


def unlink(path: Path) -> bool:
    """Remove the file; False when it is not there."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
