"""Containers in small: a directory at `/app`, what may be written to, and the variables.

With bubblewrap, in mount and process namespaces of their own, as root and as anybody else. Where
there is none (macOS), on a copy without write permission: then what is not proven is said.

These containers see this machine's programs and files, read-only, and its network.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil

# The platform runs this at each container start, and its output goes where nobody looks for it;
# what it prints is found by a check of its own.
SOURCE_ENVIRONMENT = """
if [ -f ./.environment ]; then . ./.environment >/dev/null 2>&1 </dev/null; fi
exec dash -c "$0"
"""
KILL_SECONDS = 2


@cache
def bubblewrap() -> str | None:
    """Return the path of bubblewrap, if it works on this machine."""
    path = shutil.which("bwrap")
    if path is None:
        return None
    # Some machines have it, and forbid it the namespaces that it needs.
    trial = subprocess.run(
        [path, "--ro-bind", "/", "/", "--unshare-pid", "--", "true"], capture_output=True
    )
    return path if trial.returncode == 0 else None


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    output: str
    seconds: float
    timed_out: bool = False

    @property
    def ending(self) -> str:
        """Return how it ended, as the end of a sentence."""
        return "does not end" if self.timed_out else f"ends with exit code {self.code}"

    def tail(self, lines: int = 12) -> str:
        """Return the last lines of the output."""
        return "\n".join(self.output.rstrip().splitlines()[-lines:])


@dataclass(frozen=True)
class Container:
    """A place to run commands in."""

    tree: Path
    """The application, on this machine."""
    variables: Mapping[str, str]
    bwrap: str | None
    """None: run on the copy."""
    read_only: bool = True
    binds: Mapping[str, Path] = field(default_factory=dict)
    """Directories that can be written to, by path in the container."""
    read_only_binds: Mapping[str, Path] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    """Directories of programs that the image brings along, on this machine."""

    @property
    def directory(self) -> str:
        """Return where the application lies for the commands in it."""
        return "/app" if self.bwrap else str(self.tree)

    def command(self, *program: str) -> list[str]:
        """Return the arguments that run a program in it."""
        if self.bwrap is None:
            return list(program)
        arguments = [
            self.bwrap,
            *("--die-with-parent", "--unshare-pid", "--proc", "/proc", "--dev", "/dev"),
            "--new-session",
        ]
        covered = {"/app", "/dev", "/proc", "/run", "/tmp"} | {
            f"/{Path(target).parts[1]}" for target in (*self.binds, *self.read_only_binds)
        }
        for entry in sorted(Path("/").iterdir()):
            if str(entry) in covered:
                continue
            if entry.is_symlink():
                arguments += ["--symlink", os.readlink(entry), str(entry)]
            elif entry.is_dir():
                arguments += ["--ro-bind", str(entry), str(entry)]
        arguments += ["--tmpfs", "/tmp", "--tmpfs", "/run"]
        # The name service of some machines lies there.
        arguments += ["--ro-bind-try", "/run/systemd/resolve", "/run/systemd/resolve"]
        # Read-only, and already there for interpreters that live elsewhere.
        arguments += ["--ro-bind", sys.base_prefix, sys.base_prefix]
        arguments += ["--ro-bind" if self.read_only else "--bind", str(self.tree), "/app"]
        for option, paths in {"--bind": self.binds, "--ro-bind": self.read_only_binds}.items():
            for target, source in paths.items():
                arguments += [option, str(source), target]
        return [*arguments, "--chdir", "/app", "--", *program]

    def shell(self, text: str) -> list[str]:
        """Return the arguments that run a command of the configuration as the platform does."""
        return self.command("dash", "-c", SOURCE_ENVIRONMENT, text)

    def environment(self) -> dict[str, str]:
        """Return all variables of a process in it."""
        return {
            "HOME": self.directory,
            "LANG": "C.UTF-8",
            "PATH": os.pathsep.join([*self.path, "/usr/local/bin", "/usr/bin", "/bin"]),
            **self.variables,
        }

    async def run(
        self,
        text: str,
        *,
        log: Path,
        seconds: float,
        show: Callable[[str], None] = lambda line: None,
    ) -> Result:
        """Run a command of the configuration to its end.

        Args:
            text: the command, for dash.
            log: its output is added to this file.
            seconds: how long it may take.
            show: called with each line of output.
        """
        return await run(
            self.shell(text),
            environment=self.environment(),
            directory=self.tree,
            log=log,
            seconds=seconds,
            show=show,
        )

    async def start(self, arguments: list[str], log: Path) -> "Running":
        """Start a program that stays; `arguments` come from `command` or `shell`."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                cwd=self.tree,
                env=self.environment(),
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return Running(process, inside=self.bwrap is not None)


class Running:
    """A program that stays, and what it has started."""

    def __init__(self, process: asyncio.subprocess.Process, *, inside: bool) -> None:
        self.process = process
        self._inside = inside

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the container, the program first."""
        if self._inside:
            return processes_inside(self.process.pid)
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def send(self, number: int) -> None:
        """Send a signal to the program itself, not to the sandbox around it."""
        for process in self.processes()[:1]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    async def wait(self, seconds: float | None = None) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            TimeoutError: it does not come in time.
        """
        async with asyncio.timeout(seconds):
            return await self.process.wait()

    @property
    def has_ended(self) -> bool:
        return self.process.returncode is not None

    async def stop(self, number: int, seconds: float) -> None:
        """Ask it to end, and kill it if it does not."""
        self.send(number)
        with suppress(TimeoutError):
            await self.wait(seconds)
        await self.kill()

    async def kill(self) -> None:
        """End everything in the container at once."""
        await kill(self.process)


def processes_inside(pid: int) -> list[psutil.Process]:
    """Return the processes in the sandbox that bubblewrap made as process `pid`, oldest first."""
    with suppress(psutil.NoSuchProcess):
        # The first process of its namespace is bubblewrap again.
        for first in psutil.Process(pid).children():
            return first.children(recursive=True)
    return []


async def kill(process: asyncio.subprocess.Process) -> None:
    """Kill a process and its session, and wait for its end."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(KILL_SECONDS):
            await process.wait()


async def run(
    arguments: Iterable[str],
    *,
    environment: Mapping[str, str],
    directory: Path,
    log: Path,
    seconds: float,
    show: Callable[[str], None] = lambda line: None,
) -> Result:
    """Run a program to its end, with its output in `log`; see `Container.run`."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    lines: list[str] = []
    timed_out = False
    process = await asyncio.create_subprocess_exec(
        *arguments,
        cwd=directory,
        env=dict(environment),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        start_new_session=True,
        limit=1024 * 1024,
    )
    if process.stdout is None:
        raise RuntimeError("a pipe was asked for")
    try:
        with log.open("a", errors="replace") as output:
            try:
                async with asyncio.timeout(seconds):
                    while line := await _line(process.stdout):
                        output.write(line)
                        output.flush()
                        lines.append(line)
                        show(line.rstrip())
                    await process.wait()
            except TimeoutError:
                timed_out = True
    finally:
        await kill(process)
    code = process.returncode if process.returncode is not None else -signal.SIGKILL
    return Result(code, "".join(lines), loop.time() - begun, timed_out)


async def _line(stream: asyncio.StreamReader) -> str:
    try:
        return (await stream.readline()).decode(errors="replace")
    except ValueError:  # longer than any line of use; the rest of it follows as the next
        return "…\n"


async def start_helper(*program: str, log: Path) -> Running:
    """Start a program on this machine that ends when we do, however we end."""
    bwrap = bubblewrap()
    if bwrap is not None:
        # A namespace of its own, because nginx and its like leave children when they are killed.
        own = ("--die-with-parent", "--unshare-pid", "--dev-bind", "/", "/", "--proc", "/proc")
        program = (bwrap, *own, "--", *program)
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *program, stdin=DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    return Running(process, inside=bwrap is not None)


def allow_removal(directory: Path) -> None:
    """Let the directories below `directory` be written to again."""
    for root, directories, _ in os.walk(directory):
        for name in directories:
            path = os.path.join(root, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755)  # noqa: S103
    os.chmod(directory, 0o755)  # noqa: S103


def remove(directory: Path) -> None:
    """Remove a directory, also one whose permission to write was taken away."""
    if directory.exists():
        allow_removal(directory)
        shutil.rmtree(directory)
