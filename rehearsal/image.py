"""Build the image: check out the commit and run the build hook."""

import asyncio
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from rehearsal.configuration import Application, Configuration
from rehearsal.findings import Finding, Severity
from rehearsal.locks import locked
from rehearsal.sandbox import Container, Result, remove
from rehearsal.tree import Tree
from rehearsal.variables import build_variables

BUILD_SECONDS = 1800
MEGABYTE = 1024 * 1024
# Metadata, stored next to the image and not visible in it.
DONE = "built.json"


class BuildError(Exception):
    """The build hook failed, so there is no image and no deploy."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"the build hook ended with exit code {result.code}")
        self.result = result


@dataclass(frozen=True)
class Interpreter:
    """The Python on this machine that is used instead of the image's."""

    path: str
    version: str


@dataclass(frozen=True)
class Image:
    """A built application, which is read-only."""

    release: str
    """`PLATFORM_TREE_ID`"""
    top: Path
    """The root of the checked-out repository, on this machine."""
    application: str
    configuration: Configuration
    programs: Path
    """The directory with the image's interpreter."""
    megabytes: float
    seconds: float
    reused: bool

    @property
    def description(self) -> Application:
        return self.configuration.applications[self.application]

    @property
    def directory(self) -> Path:
        """Return the application's directory, on this machine."""
        return self.top / self.description.directory


class Images:
    """The images on this machine, and the settings that all builds share."""

    def __init__(self, state: Path, *, bwrap: str | None, entropy: str) -> None:
        self.state = state
        self.bwrap = bwrap
        self.entropy = entropy

    async def build(
        self,
        tree: Tree,
        configuration: Configuration,
        name: str,
        *,
        log: Path,
        show: Callable[[str], None],
        hold: AsyncExitStack,
        again: bool = False,
        variant: str = "",
    ) -> Image:
        """Build the image of a tree, or reuse the existing one, as the platform does.

        Args:
            tree: the commit.
            configuration: the commit's configuration.
            name: the name of the application.
            log: the file for the build hook's output.
            show: called with each line of the output.
            hold: the image is not removed until this stack is closed.
            again: build even if there is an image already.
            variant: images with different variants are not shared.

        Raises:
            BuildError: the build hook failed.
        """
        application = configuration.applications[name]
        python = find_python(application.type)
        key = hashlib.sha256(
            repr((tree.id, name, python, bool(self.bwrap), self.entropy, variant)).encode()
        ).hexdigest()[:16]
        images = self.state / "images"
        images.mkdir(parents=True, exist_ok=True)
        current = images / f"{key}.current"
        async with locked(images / f"{key}.lock"):
            built = images / current.read_text() if current.exists() else None
            reused = built is not None and (built / DONE).exists() and not again
            if built is not None and reused:
                place = built
            else:
                # In a new directory, because another rehearsal may be using the previous image.
                place = images / f"{key}-{secrets.token_hex(4)}"
                await self._make(place, tree, configuration, name, log, show, python)
                current.write_text(place.name)
            hold.callback(os.close, in_use(place))
            for old in images.glob(f"{key}-*"):
                if old != place and not is_used(old):
                    await asyncio.to_thread(remove, old)
        facts = json.loads((place / DONE).read_text())
        return Image(
            release=tree.id,
            top=place / "app",
            application=name,
            configuration=configuration,
            programs=place / "image" / "bin",
            megabytes=facts["megabytes"],
            seconds=facts["seconds"],
            reused=reused,
        )

    async def _make(
        self,
        place: Path,
        tree: Tree,
        configuration: Configuration,
        name: str,
        log: Path,
        show: Callable[[str], None],
        python: Interpreter,
    ) -> None:
        """Check out the tree and run the build hook."""
        tree.export(place / "app")
        programs = link_interpreter(place / "image" / "bin", python)
        try:
            result = await self._run_hook(place, configuration, name, tree.id, programs, log, show)
        except BuildError:
            await asyncio.to_thread(remove, place)
            raise
        size = await asyncio.to_thread(measure, place / "app")
        facts = {"seconds": result.seconds if result else 0.0, "megabytes": size}
        (place / DONE).write_text(json.dumps(facts))

    async def _run_hook(
        self,
        place: Path,
        configuration: Configuration,
        name: str,
        release: str,
        programs: Path,
        log: Path,
        show: Callable[[str], None],
    ) -> Result | None:
        application = configuration.applications[name]
        hook = application.hooks.build
        if not hook:
            return None
        cache = self.state / "cache"
        cache.mkdir(exist_ok=True)
        directory = place / "app" / application.directory
        container = Container(
            tree=directory,
            variables=build_variables(
                configuration,
                name,
                release=release,
                entropy=self.entropy,
                directory="/app" if self.bwrap else str(directory),
                cache="/cache" if self.bwrap else str(cache),
            ),
            bwrap=self.bwrap,
            read_only=False,
            binds={"/cache": cache},
            read_only_binds={"/image/bin": programs},
            path=search_path(programs, self.bwrap),
        )
        result = await container.run(hook, log=log, seconds=BUILD_SECONDS, show=show)
        if result.code != 0:
            raise BuildError(result)
        return result


def in_use(place: Path) -> int:
    """Lock an image against removal; return the descriptor, whose closing releases the lock."""
    descriptor = os.open(place / "in-use", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_used(place: Path) -> bool:
    """Return whether a rehearsal is using an image."""
    descriptor = os.open(place / "in-use", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def search_path(programs: Path, bwrap: str | None) -> tuple[str, ...]:
    """Return the container's PATH for the image's programs, including Node and curl."""
    tools = [shutil.which(name) for name in ("node", "npm", "curl", "jq")]
    own = "/image/bin" if bwrap else str(programs)
    return (own, *dict.fromkeys(os.path.dirname(path) for path in tools if path))


def find_python(type_: str) -> Interpreter:
    """Return the interpreter of the application's Python version, or else the current one."""
    language, _, version = type_.partition(":")
    own = Interpreter(
        getattr(sys, "_base_executable", sys.executable),
        "{}.{}".format(*sys.version_info[:2]),
    )
    if language != "python" or version == own.version:
        return own
    candidates = [
        shutil.which(f"python{version}"),
        # The first one may be a pyenv shim for a version that is not active.
        *map(str, Path.home().glob(f".pyenv/versions/{version}*/bin/python{version}")),
    ]
    for candidate in filter(None, candidates):
        code = "import sys; print(sys._base_executable, '%d.%d' % sys.version_info[:2])"
        result = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        path, _, found = result.stdout.strip().rpartition(" ")
        if result.returncode == 0 and found == version:
            return Interpreter(path, version)
    return own


def check_python(application: Application) -> list[Finding]:
    """Return a note if the image's runtime is not available on this machine."""
    language, _, version = application.type.partition(":")
    python = find_python(application.type)
    if language != "python":
        message = f"{application.type} images are not available: this machine's programs are used"
        fix = ""
    elif python.version != version:
        message = f"Python {version} is not installed, so Python {python.version} is used"
        fix = f"install Python {version}"
    else:
        return []
    return [Finding("build", message, fix=fix, severity=Severity.NOTE)]


def link_interpreter(directory: Path, python: Interpreter) -> Path:
    """Create the directory with the image's interpreter."""
    directory.mkdir(parents=True)
    for name in ("python", "python3", f"python{python.version}"):
        program = directory / name
        # Not a symbolic link: a virtual environment would refer to it, and it is only temporary.
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(python.path)} "$@"\n')
        program.chmod(0o755)
    return directory


def measure(directory: Path) -> float:
    """Return the size of all files, in megabytes."""
    total = 0
    for root, _, files in os.walk(directory):
        for name in files:
            total += os.lstat(os.path.join(root, name)).st_size
    return total / MEGABYTE


def hidden_by_mounts(image: Image) -> list[Finding]:
    """Find files of the image that a mount hides at runtime."""
    found = []
    for key in image.description.mounts:
        path = image.directory / key.strip("/")
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
        if files:
            place = image.configuration.place("applications", image.application, "mounts", key)
            found.append(
                Finding(
                    "build",
                    f"the mount {key} hides {len(files)} {'file' if len(files) == 1 else 'files'}"
                    f" of the image, such as {files[0].relative_to(image.directory)}",
                    consequence="the running container does not see them",
                    fix="write to another directory in the build hook, and copy the files in the"
                    " deploy hook",
                    file=place.file,
                    line=place.line,
                )
            )
    return found


def freeze(image: Image) -> None:
    """Remove write permissions, if there is no read-only bind mount."""
    for root, directories, files in os.walk(image.directory):
        for name in (*directories, *files):
            path = os.path.join(root, name)
            if not os.path.islink(path):
                os.chmod(path, os.stat(path).st_mode & ~0o222)
    os.chmod(image.directory, os.stat(image.directory).st_mode & ~0o222)


def fingerprint(image: Image) -> str:
    """Return a digest of the paths, sizes and times of the image's files, except in mounts."""
    mounts = {str(image.directory / key.strip("/")) for key in image.description.mounts}
    digest = hashlib.sha256()
    for root, directories, files in os.walk(image.directory):
        directories[:] = sorted(d for d in directories if os.path.join(root, d) not in mounts)
        for name in sorted(files):
            status = os.lstat(os.path.join(root, name))
            digest.update(repr((root, name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()
