"""Publish a release's built assets into the directory that the web server serves.

All instances share the directory, it is served during the copy, and browsers still show pages of
the previous release. So files are added atomically, and removed only after no release of the last
weeks has listed them. A ledger entry, `.releases/<release>.json`, lists the files of a release.
Files that are in no ledger entry are never removed.
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
# Precompressed files, which the web server sends instead of the original.
SIBLINGS = (".gz", ".br")
DIGESTED_NAME = re.compile(r"-[A-Z0-9]{8}\.")
RELEASE_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
TEMPORARY_PATTERN = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
DAY_SECONDS = 24 * 60 * 60
LOCK_SECONDS = 10


class PublishError(Exception):
    """The release cannot be published. The message says why."""


class Entry(NamedTuple):
    """The ledger entry of one release."""

    path: Path
    files: frozenset[str]
    number: int
    """Increases with each release, so that the order does not depend on clocks."""
    last_live: float
    """When the release was last live, in seconds since the epoch."""


def parse_days(text: str) -> int:
    """Parse a number of days, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def publish(source: Path, target: Path, manifest: Path, release: str | None, keep_days: int) -> str:
    """Copy the files of a release, remove old ones, and return a one-line report.

    Args:
        source: the directory with the built files.
        target: the directory that the web server serves. It is created if necessary.
        manifest: the JSON file that maps plain names to the files to publish.
        release: the name of the release. None to use a digest of the manifest.
        keep_days: how long to keep the files of previous releases.

    Raises:
        PublishError: the build, the manifest or the release name is invalid, or the ledger stayed
            locked.
        OSError: a file cannot be read or written.
    """
    text = read_manifest(manifest)
    files = list_files(source, manifest, text)
    release = release or hashlib.sha256(text).hexdigest()[:16]
    if not RELEASE_PATTERN.fullmatch(release):
        raise PublishError(
            f"invalid release name {release!r}: use letters, digits, '.', '_' and '-'"
        )

    ledger = target / LEDGER
    ledger.mkdir(parents=True, exist_ok=True)
    lock = os.open(ledger / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # A shared lock: several processes may copy at once, but none may remove files meanwhile.
        locked = acquire(lock, fcntl.LOCK_SH, LOCK_SECONDS)
        # The ledger comes first, so that files of an interrupted copy are listed, too.
        recorded = record(ledger, release, files)
        new = sum(copy(source / name, target / name) for name in files)
        if not locked:
            notice, removed = "nothing removed: the file system does not support locks", 0
        elif not acquire(lock, fcntl.LOCK_EX, 0):
            notice, removed = "nothing removed: another release is being published", 0
        else:
            notice, removed = remove_old(target, recorded, keep_days)
    finally:
        os.close(lock)
    report = f"published {len(files)} files ({new} new), removed {removed}"
    return f"{report}; {notice}" if notice else report


def read_manifest(path: Path) -> bytes:
    """Return the content of the manifest."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PublishError(f"cannot read the manifest {path}: {error.strerror}") from error


def list_files(source: Path, manifest: Path, text: bytes) -> list[str]:
    """Return the files to publish. Precompressed files come before their original."""
    try:
        names = json.loads(text)
    except ValueError as error:
        raise PublishError(f"the manifest {manifest} is not valid JSON: {error}") from error
    if not isinstance(names, dict) or not names or not all(map(is_safe, names.values())):
        raise PublishError(f"the manifest {manifest} must map names to files")
    files: list[str] = []
    for name in sorted(set(names.values())):
        if not (source / name).is_file():
            raise PublishError(f"{source / name} is missing, but {manifest} lists it")
        files += [name + suffix for suffix in SIBLINGS if (source / (name + suffix)).is_file()]
        files.append(name)
    return files


def is_safe(name: object) -> bool:
    """Tell whether `name` is a relative path that does not leave its directory."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def acquire(lock: int, kind: int, seconds: float) -> bool:
    """Acquire a file lock.

    Returns:
        False if the file system does not support locks, or if `seconds` is 0 and another process
        holds the lock.

    Raises:
        PublishError: another process held the lock for `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not seconds:
                return False
            if time.monotonic() > deadline:
                raise PublishError(
                    f"timed out after {seconds} s: another process holds the ledger's lock"
                ) from None
            time.sleep(0.02)
        except OSError:
            return False
        else:
            return True


def record(ledger: Path, release: str, files: list[str]) -> Path:
    """Write the ledger entry of a release and return its path."""
    path = ledger / f"{release}.json"
    entries, _ = read_ledger(ledger)
    last = max((entry.number for entry in entries), default=0)
    number = last + 1
    named = set(files)
    for entry in entries:
        if entry.path == path:
            # The release was built before. Both builds may have been served.
            named |= entry.files
            if entry.number == last:
                number = last
        elif entry.number == last:
            # The previous release was live until now, so its retention starts now.
            os.utime(entry.path)
    published = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {"number": number, "published": published, "files": sorted(named)}
    write_whole(path, json.dumps(content, indent=1).encode())
    return path


def read_ledger(ledger: Path) -> tuple[list[Entry], list[Path]]:
    """Return the ledger's entries, and the paths of unreadable entries."""
    entries: list[Entry] = []
    broken: list[Path] = []
    for path in sorted(ledger.glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
            published = datetime.datetime.fromisoformat(content["published"]).timestamp()
            number = int(content["number"])
            if not isinstance(content["files"], list) or not all(map(is_safe, content["files"])):
                raise ValueError("not a list of files")
            # The local clock and the file system's may differ. Use the one that keeps files longer.
            last_live = max(published, path.stat().st_mtime)
        except FileNotFoundError:
            continue  # another process has just removed it
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            broken.append(path)
        else:
            entries.append(Entry(path, frozenset(content["files"]), number, last_live))
    return entries, broken


def copy(source: Path, target: Path) -> bool:
    """Copy a file atomically. Return False if `target` is already up to date."""
    content = source.read_bytes()
    try:
        if target.stat().st_size == len(content) and target.read_bytes() == content:
            return False
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, content)
    return True


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new one, never a part."""
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
    """Remove files that no recent release lists.

    Returns:
        A notice, or "", and the number of removed files.
    """
    ledger = target / LEDGER
    entries, broken = read_ledger(ledger)
    directories = {ledger, target}
    directories.update((target / name).parent for entry in entries for name in entry.files)
    # The current entry has the file system's time. The earlier of the two clocks counts, so that a
    # clock that is ahead removes nothing.
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
    """Remove temporary files of killed runs that are more than a day old."""
    for directory in directories:
        if not directory.is_dir():
            continue
        for path in directory.iterdir():
            if TEMPORARY_PATTERN.fullmatch(path.name) and path.stat().st_mtime < now - DAY_SECONDS:
                unlink(path)


def unlink(path: Path) -> bool:
    """Remove a file. Return False if it does not exist."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
