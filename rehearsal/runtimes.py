"""The programs of an image: its language runtimes, and what stands in for them on this machine.

Sources, read on 2026-11-29 in the platform's documentation of 2026-08-17: `pip` is in all Python
images, `npm`, `npx`, `bun` and `corepack` are in Node.js images, `jq` is in all images; hooks in
the documentation use `bash`, `curl`, `git`, `rsync` and `wget` without installing them. Templates
of the platform run what `pip install` has put into `/app/.global/bin`, which is on PATH.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zipfile import ZipFile

from rehearsal.checks import shell
from rehearsal.configuration import Application, Configuration
from rehearsal.findings import Finding, Severity
from rehearsal.locks import locked

# The programs that an image has without installing them, by the language of the image.
PROGRAMS = {
    "": ("bash", "curl", "git", "jq", "rsync", "wget"),
    "python": ("pip", "python"),
    "nodejs": ("bun", "corepack", "node", "npm", "npx"),
    "php": ("composer", "php"),
    "ruby": ("bundle", "gem", "ruby"),
    "golang": ("go",),
    "java": ("java", "mvn"),
    "rust": ("cargo",),
    "dotnet": ("dotnet",),
    "elixir": ("elixir", "mix"),
    "perl": ("perl",),
    "bun": ("bun",),
    "clojure": ("clojure",),
    "lisp": ("sbcl",),
}
# The program that shows whether this machine has a runtime, and how it is installed.
RUNTIMES = {
    "nodejs": ("node", "nodejs and npm"),
    "ruby": ("ruby", "ruby and bundler"),
    "golang": ("go", "golang"),
    "java": ("java", "default-jdk and maven"),
    "rust": ("cargo", "cargo"),
    "dotnet": ("dotnet", ""),
    "elixir": ("elixir", "elixir"),
    "perl": ("perl", "perl"),
    "bun": ("bun", ""),
    "clojure": ("clojure", "clojure"),
    "lisp": ("sbcl", "sbcl"),
}
# What the interpreter tells about itself.
DESCRIBE = """
import json, site, sys, sysconfig
print(json.dumps([sys._base_executable, "%d.%d" % sys.version_info[:2], site.getsitepackages(),
    sysconfig.get_path("stdlib")]))
"""
UV_SECONDS = 300
DEBIAN_WHEELS = Path("/usr/share/python-wheels")


@dataclass(frozen=True)
class Interpreter:
    """A Python interpreter of this machine that stands in for the image's."""

    path: str
    version: str
    """Major and minor version, such as `3.13`."""
    packages: tuple[str, ...]
    """The directories of packages that are installed on this machine, and not in the image."""
    library: str
    """The directory of the standard library."""

    @property
    def is_managed(self) -> bool:
        """Return whether pip refuses to install packages for it; see PEP 668."""
        return Path(self.library, "EXTERNALLY-MANAGED").exists()

    def bundled(self) -> list[Path]:
        """Return the files of pip, and of what else comes with Python itself.

        They are the installed ones, or else wheels; none if there is no pip.
        """
        names = ["pip", "pip-*.dist-info"]
        if tuple(map(int, self.version.split("."))) < (3, 12):
            names += ["setuptools", "setuptools-*", "pkg_resources", "_distutils_hack"]
            names += ["distutils-precedence.pth"]
        for directory in map(Path, self.packages):
            if (directory / "pip").is_dir():
                return [path for name in names for path in directory.glob(name)]
        for directory in (Path(self.library, "ensurepip", "_bundled"), DEBIAN_WHEELS):
            if wheels := sorted(directory.glob("pip-*.whl")):
                return wheels
        return []


@dataclass(frozen=True)
class Python:
    """The image's Python: the directories that the containers of an image get."""

    programs: Path
    """Contains `python`, `pip` and their variants."""
    replaced: Mapping[str, Path]
    """What replaces the directories of packages that are installed on this machine."""
    interpreter: Interpreter


def runtimes(application: Application) -> dict[str, str]:
    """Return the versions of the image's runtimes by their language, the primary one first.

    A composable image has several. A version is "" if the configuration does not name one.
    """
    stack = application.stack
    if not stack:
        language, _, version = application.type.partition(":")
        return {language: version}
    items = stack.get("runtimes") or [] if isinstance(stack, Mapping) else stack
    names = [str(next(iter(item), "") if isinstance(item, Mapping) else item) for item in items]
    pairs = [name.partition("@")[::2] for name in names]
    # A list, the older form, has packages as well.
    return {language: version for language, version in pairs if language in PROGRAMS}


def find_python(application: Application, state: Path | None = None) -> Interpreter:
    """Return the interpreter of the image's version, or else the one with the nearest version.

    Args:
        application: the application.
        state: the directory in which uv may install a missing version; None to not install any.
    """
    wanted = runtimes(application).get("python", "")
    own = describe(getattr(sys, "_base_executable", sys.executable))
    if own is None:
        raise RuntimeError(f"{sys.executable} does not describe itself")
    if wanted in {"", own.version}:
        return own
    found = {python.version: python for python in installed(wanted)}
    if wanted not in found and state is not None:
        found |= {python.version: python for python in brought(wanted, state)}
    found.setdefault(own.version, own)
    return found[min(found, key=lambda version: (distance(version, wanted), version))]


def distance(version: str, wanted: str) -> int:
    """Return how many minor versions two versions of Python are apart."""
    try:
        major, minor = map(int, version.split("."))
        other_major, other_minor = map(int, wanted.split("."))
    except ValueError:  # not a version, which the validation reports
        return 0
    return 100 * abs(major - other_major) + abs(minor - other_minor)


def installed(wanted: str) -> Iterator[Interpreter]:
    """Yield the Pythons on this machine, the wanted version alone if it is among them."""
    names = {f"python3.{minor}" for minor in range(9, 20)} | {f"python{wanted}"}
    others: list[Interpreter] = []
    for name in sorted(names, key=lambda name: name != f"python{wanted}"):
        version = name.removeprefix("python")
        candidates = [
            *Path.home().glob(f".pyenv/versions/{version}*/bin/{name}"),
            *Path.home().glob(f".local/share/uv/python/cpython-{version}.*/bin/{name}"),
            # Last, because it may be a pyenv shim for a version that is not active.
            *map(Path, filter(None, [shutil.which(name)])),
        ]
        for candidate in candidates:
            python = describe(str(candidate))
            if python and python.version == version:
                if version == wanted:
                    yield python
                    return
                others.append(python)
                break
    yield from others


def brought(wanted: str, state: Path) -> Iterator[Interpreter]:
    """Let uv install a version of Python, if this machine has uv, and yield it."""
    uv = shutil.which("uv")
    if uv is None:
        return
    place = state / "pythons"
    command = [uv, "python", "install", "--no-bin", "--install-dir", str(place), wanted]
    try:
        subprocess.run(command, capture_output=True, timeout=UV_SECONDS)
    except subprocess.TimeoutExpired:
        return
    for path in place.glob(f"cpython-{wanted}.*/bin/python{wanted}"):
        python = describe(str(path))
        if python:
            yield python


@cache
def describe(path: str) -> Interpreter | None:
    """Return an interpreter by its path; None if it does not run."""
    # Without this user's packages, and without variables that add others.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        result = subprocess.run(
            [path, "-s", "-c", DESCRIBE], capture_output=True, text=True, env=environment
        )
        executable, version, packages, library = json.loads(result.stdout)
    except (OSError, ValueError):
        return None
    return Interpreter(executable, version, tuple(packages), library)


async def prepare_python(python: Interpreter, state: Path) -> Python:
    """Create the directories with the image's Python, which all images share.

    The packages that this machine has installed for the interpreter are hidden: the image has pip
    and nothing else.
    """
    files = python.bundled()
    key = hashlib.sha256(repr((python, files)).encode()).hexdigest()[:8]
    place = state / "runtimes" / f"python{python.version}-{key}"
    place.parent.mkdir(parents=True, exist_ok=True)
    async with locked(place.with_suffix(".lock")):
        if not (place / "complete").exists():
            shutil.rmtree(place, ignore_errors=True)
            link_interpreter(place / "bin", python)
            install(files, place / "packages")
            (place / "empty").mkdir()
            (place / "complete").touch()
    directories = [directory for directory in python.packages if Path(directory).is_dir()]
    replaced = {}
    if files:  # otherwise the image would have no pip
        replaced = dict.fromkeys(directories, place / "empty")
        replaced |= dict.fromkeys(directories[:1], place / "packages")
    prefix = Path(python.library).parents[1]
    if prefix.is_relative_to(state):  # a directory that containers may not see
        replaced = {str(prefix): prefix, **replaced}
    return Python(place / "bin", replaced, python)


def install(files: list[Path], directory: Path) -> None:
    """Copy packages, or unpack their wheels, into a directory."""
    directory.mkdir()
    for file in files:
        if file.suffix == ".whl":
            with ZipFile(file) as wheel:
                wheel.extractall(directory)
        elif file.is_dir():
            shutil.copytree(file, directory / file.name)
        else:
            shutil.copy2(file, directory)


def link_interpreter(directory: Path, python: Interpreter) -> Path:
    """Create the directory with the image's interpreter and its pip."""
    directory.mkdir(parents=True)
    path = shlex.quote(python.path)
    for name in ("python", "python3", f"python{python.version}"):
        # Not a symbolic link: a virtual environment would refer to it, and it is only temporary.
        write_program(directory / name, f"exec {path}")
    for name in ("pip", "pip3", f"pip{python.version}"):
        write_program(directory / name, f"exec {path} -m pip")
    return directory


def link_pythons(directory: Path, application: Application) -> None:
    """Create the directory of the Pythons that uv may choose in a build.

    On the platform uv downloads the version that a project asks for.
    """
    directory.mkdir()
    if re.search(r"\buv\b", application.hooks.build or ""):
        for python in installed(""):
            write_program(directory / f"python{python.version}", f"exec {shlex.quote(python.path)}")


def write_program(path: Path, command: str) -> None:
    path.write_text(f'#!/bin/sh\n{command} "$@"\n')
    path.chmod(0o755)


def search_path(programs: str, directory: str) -> tuple[str, ...]:
    """Return the directories on an image's PATH, before those of the system.

    Args:
        programs: the directory of the image's Python, in the container.
        directory: the application's directory, in the container.
    """
    tools = [shutil.which(name) for name in ("node", "npm", "curl", "jq")]
    return (
        *(f"{directory}/.global/{name}" for name in ("bin", "vendor/bin")),
        f"{directory}/.local/bin",
        programs,
        *dict.fromkeys(os.path.dirname(path) for path in tools if path),
    )


def check_runtimes(
    configuration: Configuration, name: str, python: Interpreter
) -> tuple[list[Finding], list[str]]:
    """Compare the image's runtimes and programs with this machine's.

    Returns:
        The findings, and what is missing here and may be the cause of a failure.
    """
    application = configuration.applications[name]
    keys = ("applications", name, "stack" if application.stack else "type")
    place = configuration.place(*keys)
    found: list[Finding] = []
    missing: list[str] = []

    def add(severity: Severity, message: str, fix: str, doubt: str = "") -> None:
        found.append(
            Finding("build", message, fix=fix, severity=severity, file=place.file, line=place.line)
        )
        missing.extend([doubt] if doubt else [])

    for number, (language, version) in enumerate(runtimes(application).items()):
        if language == "python":
            if version not in {"", python.version}:
                add(
                    Severity.NOT_REHEARSED,
                    f"Python {version} is not on this machine: Python {python.version} stands in"
                    " for it",
                    f"install Python {version}, or uv, which can install it",
                    f"Python {version}",
                )
            if not python.bundled():
                add(
                    Severity.NOT_REHEARSED,
                    f"the image's pip is not on this machine: Python {python.version} is installed"
                    " without ensurepip",
                    "install it (Debian package: python3-venv)",
                    "pip",
                )
            continue
        if language == "php":
            add(
                Severity.NOT_REHEARSED,
                f"PHP {version} is not rehearsed: this version does not run PHP-FPM",
                "rehearse the other applications, and deploy this one to a preview",
                f"PHP {version}",
            )
            continue
        program, packages = runtime_program(language)
        here = shutil.which(program)
        if here is None:
            package = f" (Debian packages: {packages})" if packages else ""
            add(
                Severity.NOT_REHEARSED,
                f"{' '.join(filter(None, (language, version)))} is not on this machine",
                f"install it{package}",
                language,
            )
        elif not (own := version_of(here)).startswith(f"{version}."):
            add(
                Severity.NOTE,
                f"this machine's {program} {own} is used instead of {version}".rstrip(),
                f"install {program} {version} to test with it",
                # Another runtime than the primary one usually runs in the build only.
                "" if number else f"{program} {version}",
            )
    for program in sorted(asked(configuration, name) - {"pip", "python"}):
        if shutil.which(program) is None:
            add(
                Severity.NOT_REHEARSED,
                f"`{program}`, which the image has, is not on this machine",
                f"install {program}",
                program,
            )
    return found, missing


def runtime_program(language: str) -> tuple[str, str]:
    """Return the program of a runtime, and the Debian packages to install; see `RUNTIMES`."""
    return RUNTIMES.get(language, (language, ""))


def is_rehearsable(application: Application) -> bool:
    """Return whether this machine has the image's primary runtime, so that its code can run."""
    for language in runtimes(application):
        if language == "python":
            return True
        if language == "php":
            return False
        return shutil.which(runtime_program(language)[0]) is not None
    return True


def asked(configuration: Configuration, name: str) -> set[str]:
    """Return the programs that the commands of an application use and its image has by itself."""
    application = configuration.applications[name]
    own = {program for key in ("", *runtimes(application)) for program in PROGRAMS.get(key, ())}
    hooks = application.hooks
    texts = [hooks.build, hooks.deploy, hooks.post_deploy, application.web.commands.start]
    texts += [worker.commands.start for worker in application.workers.values()]
    used = set()
    for text in filter(None, texts):
        used |= {command.program[0] for command in shell.read(text).commands if command.program}
    return own & used


@cache
def version_of(program: str) -> str:
    """Return the version that a program prints; "" if it does not print one."""
    argument = "version" if Path(program).name == "go" else "--version"
    result = subprocess.run([program, argument], capture_output=True, text=True)
    for word in result.stdout.split():
        if word.strip("vgo")[:1].isdigit():
            return word.strip("vgo")
    return ""
