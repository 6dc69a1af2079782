"""Fetch a release from a directory, an archive or a Git remote.

What is fetched comes from outside: archives and remotes are limited in size and time, and links and
paths that lead out of the release are rejected.
"""

import lzma
import os
import re
import signal
import stat
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO, FileIO
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import IO
from urllib.parse import urlsplit

from development.upgrade.release import UpgradeError, key

MAX_BYTES = 200 * 2**20
MAX_FILES = 20_000
URL = re.compile(r"[a-z][a-z0-9+.-]*://|[\w.-]+@[\w.-]+:", re.IGNORECASE)
TAG = re.compile(r"refs/tags/v(\d+\.\d+\.\d+)$", re.MULTILINE)
# Directories of an unpacked release in which nothing of it is.
NOT_RELEASED = {".git", ".venv", "node_modules", "__pycache__", ".data", ".rehearsal", "build"}
DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, RuntimeError, ValueError),
)


def fetch(source: str, version: str | None, target: Path, seconds: float) -> Path:
    """Fetch a release; return its root directory.

    Args:
        source: a directory, an archive (.tar.gz or .zip) or the URL of a Git remote.
        version: the release to fetch from Git; None for the newest one.
        target: an empty directory to fetch it into.
        seconds: the time limit for a Git remote.

    Raises:
        UpgradeError: the source cannot be read, or is not safe to read.
    """
    if URL.match(source):
        clone(source, version, target, seconds)
        return target
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            is_repository = (path / ".git").exists() or (path / "objects").is_dir()
            if is_repository and (version or not (path / "quart_upsun").is_dir()):
                clone(str(path.resolve()), version, target, seconds)
            else:
                copy(path, target)
            return target
        if path.exists():
            unpack(path, target)
            return root_of(target)
    except OSError as error:
        raise UpgradeError(f"{source} cannot be read: {error.strerror}. Check FROM.") from None
    raise UpgradeError(
        f"{source} does not exist. Set FROM to a checkout, an archive (.tar.gz or .zip) or the URL"
        " of a Git remote of quart-upsun."
    )


def root_of(directory: Path) -> Path:
    """Return the only directory in an unpacked archive, if it has one; archives of tags do."""
    found = list(directory.iterdir())
    return found[0] if len(found) == 1 and found[0].is_dir() else directory


def copy(source: Path, target: Path) -> None:
    """Copy the files of a checkout or an unpacked release, without links."""
    if (source / ".git").exists():
        listed = run_git("ls-files", "-z", "--cached", directory=source, seconds=60)
        files = [source / name for name in listed.split("\0") if name]
    else:
        files = list(walk(source))
    members = (
        Member(
            str(path.relative_to(source)),
            path.stat().st_size,
            bool(path.stat().st_mode & stat.S_IXUSR),
            partial(FileIO, path),
        )
        for path in files
        if path.is_file() and not path.is_symlink()
    )
    write(members, target, str(source))


def walk(directory: Path) -> Iterator[Path]:
    for path, directories, names in os.walk(directory):
        directories[:] = sorted(set(directories) - NOT_RELEASED)
        yield from (Path(path) / name for name in sorted(names))


@dataclass(frozen=True)
class Member:
    """A file of a release that is not written yet."""

    name: str
    size: int
    executable: bool
    open: Callable[[], IO[bytes] | None]
    """Open the content; None if there is none."""


def unpack(archive: Path, target: Path) -> None:
    """Unpack an archive, if all of it is safe to unpack.

    Raises:
        UpgradeError: it is not an archive, is damaged or too large, or has links, or paths that
            lead out of it.
    """
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                write(tar_members(tar, archive), target, str(archive))
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                write(zip_members(zipped, archive), target, str(archive))
        else:
            raise UpgradeError(f"{archive} is not an archive. Set FROM to a .tar.gz or .zip file.")
    except DAMAGED as error:
        raise UpgradeError(f"{archive} cannot be unpacked: {error}. Download it again.") from None


def tar_members(tar: tarfile.TarFile, archive: Path) -> Iterator[Member]:
    for each in tar:
        if each.isdir():
            continue
        if not each.isreg():
            raise unsafe(archive, each.name, "is a link or a special file")
        is_executable = bool(each.mode & stat.S_IXUSR)
        yield Member(each.name, each.size, is_executable, partial(tar.extractfile, each))


def zip_members(zipped: zipfile.ZipFile, archive: Path) -> Iterator[Member]:
    for each in zipped.infolist():
        mode = each.external_attr >> 16
        if each.is_dir():
            continue
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise unsafe(archive, each.filename, "is a link or a special file")
        is_executable = bool(mode & stat.S_IXUSR)
        yield Member(each.filename, each.file_size, is_executable, partial(zipped.open, each))


def write(members: Iterator[Member], target: Path, source: str) -> None:
    """Write files; raise UpgradeError if they are too many or too large, or a path leads out."""
    size = 0
    for files, member in enumerate(members, 1):
        size += member.size
        if files > MAX_FILES or size > MAX_BYTES:
            raise UpgradeError(
                f"{source} is not a release of quart-upsun: it has more than {MAX_FILES:,} files or"
                f" {MAX_BYTES // 2**20} MB. Check FROM."
            )
        parts = PurePosixPath(member.name).parts
        if not parts or parts[0].startswith("/") or ".." in parts or "\\" in member.name:
            raise unsafe(source, member.name, "leads out of it")
        path = target.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Reading ends at the announced size for both kinds of archives.
        with member.open() or BytesIO() as content, path.open("wb") as file:
            copyfileobj(content, file)
        path.chmod(0o755 if member.executable else 0o644)


def unsafe(source: Path | str, name: str, reason: str) -> UpgradeError:
    return UpgradeError(
        f"{source} is not safe to unpack: {name!r} {reason}. Download the release again, from a"
        " source that you trust."
    )


def clone(url: str, version: str | None, target: Path, seconds: float) -> None:
    """Fetch a tagged release from a Git remote: the newest one if `version` is None.

    Raises:
        UpgradeError: the remote cannot be reached in time, or does not have the release.
    """
    shown = without_password(url)
    listed = run_git("ls-remote", "--tags", "--refs", "--", url, "v*", seconds=seconds, url=url)
    tags = sorted(TAG.findall(listed), key=key)
    if not tags:
        raise UpgradeError(f"{shown} has no tags of releases, such as v0.2.0. Check FROM.")
    if version and version not in tags:
        raise UpgradeError(
            f"{shown} has no release {version}. Choose one of {', '.join(tags)} with RELEASE=…"
        )
    run_git(
        *("-c", "advice.detachedHead=false", "clone", "--quiet", "--depth=1", "--no-tags"),
        *(f"--branch=v{version or tags[-1]}", "--", url, str(target)),
        seconds=seconds,
        url=url,
    )


def user_of(url: str) -> str:
    """Return the user and password in a URL, which may be an access token."""
    return urlsplit(url).netloc.rpartition("@")[0] if "://" in url else ""


def without_password(url: str) -> str:
    """Return a URL without the user and password."""
    user = user_of(url)
    return url.replace(f"{user}@", "", 1) if user else url


def run_git(
    *arguments: str, seconds: float, directory: Path | None = None, url: str | None = None
) -> str:
    """Run git without a terminal, so that it cannot ask; return its output.

    Raises:
        UpgradeError: it fails, or takes longer than `seconds`.
    """
    # A Git hook sets GIT_* variables for another repository.
    inherited = {name: each for name, each in os.environ.items() if not name.startswith("GIT_")}
    process = subprocess.Popen(
        ["git", *arguments],
        cwd=directory,
        env={**inherited, "GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UpgradeError(
            f"{without_password(url or str(directory))} did not answer within {seconds:g} seconds."
            " Check FROM and the network, or set ARGS='--timeout 600'."
        ) from None
    finally:
        if process.poll() is None:  # with its helper programs, which hold the pipes open
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        if user := user_of(url or ""):  # git shows it for some protocols
            errors = errors.replace(f"{user}@", "")
        lines = [line for line in errors.splitlines() if line.strip()] or ["unknown error"]
        reason = next((line for line in lines if line.startswith("fatal: ")), lines[0])
        raise UpgradeError(
            f"{without_password(url or str(directory))} cannot be read: "
            f"{reason.removeprefix('fatal: ').rstrip('.')}. Check FROM."
        )
    return output
