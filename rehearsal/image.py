"""Build the image: check out the commit and run the build hook."""

import asyncio
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from rehearsal.configuration import Application, Configuration
from rehearsal.dependencies import plan
from rehearsal.findings import Finding, Severity, count
from rehearsal.locks import locked
from rehearsal.runtimes import (
    Python,
    find_python,
    is_rehearsable,
    link_pythons,
    prepare_python,
    runtimes,
    search_path,
)
from rehearsal.sandbox import Container, Result, remove
from rehearsal.shapes import Keys
from rehearsal.tree import Tree
from rehearsal.variables import build_variables

BUILD_SECONDS = 1800
MEGABYTE = 1024 * 1024
# Metadata, stored next to the image and not visible in it.
DONE = "built.json"
PROGRAMS = "/image/bin"
PYTHONS = "/image/pythons"


# Files that keep an empty directory in Git.
PLACEHOLDERS = {".gitignore", ".gitkeep", ".keep", "README.md"}


class BuildError(Exception):
    """A command of the build failed, so there is no image and no deploy."""

    def __init__(self, result: Result, command: str, keys: Keys) -> None:
        super().__init__(f"{command} {result.ending}")
        self.result = result
        self.keys = keys
        """The keys below the application that ask for the command."""


@dataclass(frozen=True)
class Image:
    """A built application, which is read-only."""

    release: str
    """`PLATFORM_TREE_ID`"""
    top: Path
    """The root of the checked-out repository, on this machine."""
    application: str
    configuration: Configuration
    python: Python
    """The image's interpreter."""
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

    def search_path(self, bwrap: str | None) -> tuple[str, ...]:
        """Return the directories on a container's PATH."""
        return path_of(self.python, self.directory, bwrap)


class Images:
    """The images on this machine, and the settings that all builds share."""

    def __init__(
        self,
        state: Path,
        *,
        bwrap: str | None,
        entropy: str,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.state = state
        self.bwrap = bwrap
        self.entropy = entropy
        self.variables = variables or {}
        self._pythons: dict[str, Python] = {}
        """By the version in the configuration. Looking for one may let uv install it."""

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
        python = await self.python(application)
        facts = (tree.id, name, python.interpreter, bool(self.bwrap), self.entropy, variant)
        key = hashlib.sha256(repr((*facts, *sorted(self.variables.items()))).encode()).hexdigest()
        key = key[:16]
        images = self.state / "images"
        images.mkdir(parents=True, exist_ok=True)
        current = images / f"{key}.current"
        async with locked(images / f"{key}.lock"):
            existing = images / current.read_text() if current.exists() else None
            reused = existing is not None and (existing / DONE).exists() and not again
            if existing is not None and reused:
                place = existing
            else:
                # In a new directory, because another rehearsal may be using the previous image.
                place = images / f"{key}-{secrets.token_hex(4)}"
                await self._make(place, tree, configuration, name, python, log, show)
                current.write_text(place.name)
            hold.callback(os.close, in_use(place))
            for old in images.glob(f"{key}-*"):
                if old != place and not is_used(old):
                    await asyncio.to_thread(remove, old)
        built = json.loads((place / DONE).read_text())
        return Image(
            release=tree.id,
            top=place / "app",
            application=name,
            configuration=configuration,
            python=python,
            megabytes=built["megabytes"],
            seconds=built["seconds"],
            reused=reused,
        )

    async def python(self, application: Application) -> Python:
        """Return the Python of an application's image."""
        version = runtimes(application).get("python", "")
        if version not in self._pythons:
            found = await asyncio.to_thread(find_python, application, self.state)
            self._pythons[version] = await prepare_python(found, self.state)
        return self._pythons[version]

    async def _make(
        self,
        place: Path,
        tree: Tree,
        configuration: Configuration,
        name: str,
        python: Python,
        log: Path,
        show: Callable[[str], None],
    ) -> None:
        """Check out the tree, install its dependencies and run the build hook."""
        tree.export(place / "app")
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            await self._run(place, configuration, name, tree.id, python, log, show)
        except BuildError:
            await asyncio.to_thread(remove, place)
            raise
        seconds = loop.time() - begun
        size = await asyncio.to_thread(measure, place / "app")
        (place / DONE).write_text(json.dumps({"seconds": seconds, "megabytes": size}))

    async def _run(
        self,
        place: Path,
        configuration: Configuration,
        name: str,
        release: str,
        python: Python,
        log: Path,
        show: Callable[[str], None],
    ) -> None:
        """Run the commands of the build.

        Raises:
            BuildError: one of them failed.
        """
        application = configuration.applications[name]
        if not is_rehearsable(application):
            return
        directory = place / "app" / application.directory
        prepare_home(directory)
        container = await self.container(
            directory, configuration, name, python, release=release, scratch=place
        )
        steps, _ = plan(application, directory)
        commands = [(f"`{step.command}`", step.command, step.keys) for step in steps]
        if application.hooks.build:
            commands.append(("the build hook", application.hooks.build, ("hooks", "build")))
        for command, text, keys in commands:
            result = await container.run(text, log=log, seconds=BUILD_SECONDS, show=show)
            if result.code != 0:
                raise BuildError(result, command, keys)

    async def container(
        self,
        directory: Path,
        configuration: Configuration,
        name: str,
        python: Python,
        *,
        release: str,
        scratch: Path,
    ) -> Container:
        """Return a build container: it has no services, and may write to `directory`.

        Args:
            directory: the directory at `/app`.
            configuration: the commit's configuration.
            name: the name of the application.
            python: the Python of its image.
            release: the hash of the commit's tree.
            scratch: a directory for the links to other Pythons.
        """
        application = configuration.applications[name]
        scratch.mkdir(parents=True, exist_ok=True)
        pythons = scratch / "pythons"
        await asyncio.to_thread(link_pythons, pythons, application)
        cache = self.state / "cache"
        cache.mkdir(exist_ok=True)
        variables = build_variables(
            configuration,
            name,
            release=release,
            entropy=self.entropy,
            directory="/app" if self.bwrap else str(directory),
            cache="/cache" if self.bwrap else str(cache),
            variables=self.variables,
        )
        if python.interpreter.is_managed:
            variables["PIP_BREAK_SYSTEM_PACKAGES"] = "1"
        return Container(
            tree=directory,
            variables=variables,
            bwrap=self.bwrap,
            read_only=False,
            binds={"/cache": cache},
            read_only_binds={PROGRAMS: python.programs, PYTHONS: pythons},
            replaced=python.replaced,
            path=(*path_of(python, directory, self.bwrap), PYTHONS if self.bwrap else str(pythons)),
        )


def prepare_home(directory: Path) -> None:
    """Let Python's user directory be the one of global dependencies, which is on PATH.

    `pip install` puts programs into `~/.local/bin`, and on the platform into `/app/.global/bin`.
    """
    (directory / ".global").mkdir(exist_ok=True)
    local = directory / ".local"
    if not local.exists():
        local.symlink_to(".global")


def path_of(python: Python, directory: Path, bwrap: str | None) -> tuple[str, ...]:
    """Return the directories on the PATH of an image's containers."""
    if bwrap:
        return search_path(PROGRAMS, "/app")
    return search_path(str(python.programs), str(directory))


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
        files = [file for file in files if file.name not in PLACEHOLDERS]
        if files:
            place = image.configuration.place("applications", image.application, "mounts", key)
            found.append(
                Finding(
                    "build",
                    f"the mount {key} hides {count(len(files), 'file')} of the image, such as"
                    f" {files[0].relative_to(image.directory)}",
                    consequence="the running container does not see them",
                    fix="write to another directory in the build hook, and copy the files in the"
                    " deploy hook",
                    severity=Severity.WARNING,
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
