"""Builds the image: the committed tree, and what the build hook makes of it."""

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

from rehearsal.configuration import CONFIG_FILE, Application, Configuration
from rehearsal.findings import Finding, Severity
from rehearsal.locks import locked
from rehearsal.sandbox import Container, Result, remove
from rehearsal.tree import Tree
from rehearsal.variables import build_variables

BUILD_SECONDS = 1800
MEGABYTE = 1024 * 1024
# Read by nobody but us, beside the image.
DONE = "built.json"


class BuildError(Exception):
    """The build hook failed: there is no image, and no deploy."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"the build hook ended with exit code {result.code}")
        self.result = result


@dataclass(frozen=True)
class Interpreter:
    """The Python that stands in for the image's."""

    path: str
    version: str


@dataclass(frozen=True)
class Image:
    """A built application, read-only from then on."""

    release: str
    """`PLATFORM_TREE_ID`"""
    top: Path
    """The tree, on this machine."""
    application: str
    configuration: Configuration
    programs: Path
    """The directory of the image's own programs."""
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
    """The images on this machine, and what builds them share."""

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
        """Build the image of a tree; one that is there already is used again, as on the platform.

        Args:
            tree: what is committed.
            configuration: as it stands there.
            name: the application's.
            log: where the hook's output goes.
            show: called with each line of it.
            hold: the image is not removed before this ends.
            again: build in any case.
            variant: images of another one are not shared.

        Raises:
            BuildError: the hook did.
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
                # Beside the one before, which somebody may be using.
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
        """Check the tree out and run the build hook."""
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
    """Return a descriptor that keeps an image from being removed for as long as it is open."""
    descriptor = os.open(place / "in-use", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_used(place: Path) -> bool:
    """Tell whether any rehearsal uses an image."""
    descriptor = os.open(place / "in-use", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def search_path(programs: Path, bwrap: str | None) -> tuple[str, ...]:
    """Return where a container finds the image's programs, Node and curl among them."""
    brought = [shutil.which(name) for name in ("node", "npm", "curl", "jq")]
    own = "/image/bin" if bwrap else str(programs)
    return (own, *dict.fromkeys(os.path.dirname(path) for path in brought if path))


def find_python(type_: str) -> Interpreter:
    """Find the interpreter that the application's type asks for, or else take our own."""
    language, _, version = type_.partition(":")
    own = Interpreter(
        getattr(sys, "_base_executable", sys.executable),
        "{}.{}".format(*sys.version_info[:2]),
    )
    if language != "python" or version == own.version:
        return own
    candidates = [
        shutil.which(f"python{version}"),
        # The first may be a stand-in of pyenv that runs nothing.
        *map(str, Path.home().glob(f".pyenv/versions/{version}*/bin/python{version}")),
    ]
    for candidate in filter(None, candidates):
        question = "import sys; print(sys._base_executable, '%d.%d' % sys.version_info[:2])"
        answer = subprocess.run([candidate, "-c", question], capture_output=True, text=True)
        path, _, found = answer.stdout.strip().rpartition(" ")
        if answer.returncode == 0 and found == version:
            return Interpreter(path, version)
    return own


def check_python(application: Application) -> list[Finding]:
    """Say so if the image's Python is not on this machine."""
    language, _, version = application.type.partition(":")
    python = find_python(application.type)
    if language != "python":
        message = f"the image {application.type} cannot be rehearsed: programs are this machine's"
    elif python.version != version:
        message = f"Python {version} was not found, so this is rehearsed with {python.version}"
    else:
        return []
    return [Finding("build", message, severity=Severity.NOTE)]


def link_interpreter(directory: Path, python: Interpreter) -> Path:
    """Make the directory of the image's own programs."""
    directory.mkdir(parents=True)
    for name in ("python", "python3", f"python{python.version}"):
        program = directory / name
        # No symbolic link: a virtual environment would be made with that, and it goes away.
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
    """Find what the build has put where a mount will be."""
    found = []
    for key in image.description.mounts:
        path = image.directory / key.strip("/")
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
        if files:
            line = image.configuration.line("applications", image.application, "mounts", key)
            found.append(
                Finding(
                    "build",
                    f"the mount {key} hides {len(files)} files of the image,"
                    f" such as {files[0].relative_to(image.directory)}",
                    consequence="at runtime they are not there",
                    fix="build into another directory, and let the deploy hook copy",
                    file=CONFIG_FILE,
                    line=line,
                )
            )
    return found


def freeze(image: Image) -> None:
    """Take the permission to write away, where no read-only mount does it."""
    for root, directories, files in os.walk(image.directory):
        for name in (*directories, *files):
            path = os.path.join(root, name)
            if not os.path.islink(path):
                os.chmod(path, os.stat(path).st_mode & ~0o222)
    os.chmod(image.directory, os.stat(image.directory).st_mode & ~0o222)


def fingerprint(image: Image) -> str:
    """Return a digest of what lies where in the image, outside its mounts."""
    mounts = {str(image.directory / key.strip("/")) for key in image.description.mounts}
    digest = hashlib.sha256()
    for root, directories, files in os.walk(image.directory):
        directories[:] = sorted(d for d in directories if os.path.join(root, d) not in mounts)
        for name in sorted(files):
            status = os.lstat(os.path.join(root, name))
            digest.update(repr((root, name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()
