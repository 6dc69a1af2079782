"""Minimal containers: the application at `/app`, writable mounts, and environment variables.

With bubblewrap each container has its own mount and process namespaces, with or without root.
Without bubblewrap (macOS) commands run in a copy without write permissions, and the report says
what that leaves untested.

Containers share this machine's programs and files, read-only, and its network.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil

from rehearsal.excerpts import cause

# The output of `.environment` is discarded here; inspection.environment_file checks it.
SOURCE_ENVIRONMENT = """
if [ -f ./.environment ]; then . ./.environment >/dev/null 2>&1 </dev/null; fi
exec dash -c "$0"
"""
KILL_SECONDS = 2
BEGIN_SECONDS = 5
POLL_SECONDS = 0.01


@cache
def bubblewrap() -> str | None:
    """Return the path of bubblewrap, if it works on this machine."""
    path = shutil.which("bwrap")
    if path is None:
        return None
    # Some machines have it installed, but do not permit the namespaces that it needs.
    trial = subprocess.run(
        [path, "--ro-bind", "/", "/", "--unshare-pid", "--", "true"], capture_output=True
    )
    return path if trial.returncode == 0 else None


@dataclass(frozen=True)
class Result:
    """The result of a command."""

    code: int
    output: str
    seconds: float
    timed_out: bool = False

    @property
    def ending(self) -> str:
        """Return how a failed command ended, as the end of a sentence."""
        if self.timed_out:
            return f"timed out after {self.seconds:.0f} s"
        return f"failed with exit code {self.code}"

    @property
    def cause(self) -> str:
        """Return the part of the output that explains a failure."""
        return cause(self.output)


@dataclass(frozen=True)
class Container:
    """A container to run commands in."""

    tree: Path
    """The application's directory on this machine."""
    variables: Mapping[str, str]
    bwrap: str | None
    """The path of bubblewrap; None to run without it."""
    read_only: bool = True
    binds: Mapping[str, Path] = field(default_factory=dict)
    """Writable directories, by their path in the container."""
    read_only_binds: Mapping[str, Path] = field(default_factory=dict)
    """Read-only directories and files, by their path in the container."""
    replaced: Mapping[str, Path] = field(default_factory=dict)
    """Read-only directories in place of this machine's, by the path that both have."""
    path: tuple[str, ...] = ()
    """Directories to add to PATH."""

    @property
    def directory(self) -> str:
        """Return the application's directory as commands in the container see it."""
        return "/app" if self.bwrap else str(self.tree)

    def command(self, *program: str) -> list[str]:
        """Return the command line that runs a program in the container."""
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
        covered -= {"/etc"}  # binds there replace single files
        for entry in sorted(Path("/").iterdir()):
            if str(entry) in covered:
                continue
            if entry.is_symlink():
                arguments += ["--symlink", os.readlink(entry), str(entry)]
            elif entry.is_dir():
                arguments += ["--ro-bind", str(entry), str(entry)]
        arguments += ["--tmpfs", "/tmp", "--tmpfs", "/run"]
        # Some machines need it to resolve host names.
        arguments += ["--ro-bind-try", "/run/systemd/resolve", "/run/systemd/resolve"]
        # For an interpreter that is installed in one of the covered directories.
        arguments += ["--ro-bind", sys.base_prefix, sys.base_prefix]
        arguments += ["--ro-bind" if self.read_only else "--bind", str(self.tree), "/app"]
        for target, source in self.binds.items():
            arguments += ["--bind", str(source), target]
        for target, source in [*self.read_only_binds.items(), *self.replaced.items()]:
            arguments += ["--ro-bind", str(source), target]
        return [*arguments, "--chdir", "/app", "--", *program]

    def shell(self, text: str) -> list[str]:
        """Return the command line that runs a hook or command as the platform does."""
        return self.command("dash", "-c", SOURCE_ENVIRONMENT, text)

    def environment(self) -> dict[str, str]:
        """Return all environment variables of a process in the container."""
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
        """Run a hook or command of the configuration and wait for its end.

        Args:
            text: the shell text, for dash.
            log: the file to append the output to.
            seconds: the timeout.
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
        """Start a long-running program; `arguments` come from `command` or `shell`."""
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
    """A long-running program and its child processes."""

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

    def pids(self) -> list[int]:
        """Return the IDs of all processes, those of the sandbox included; Linux only.

        It costs a fraction of `processes()`, but may miss a process while another one ends.
        """
        return [self.process.pid, *descendants(self.process.pid)]

    async def begin(self) -> list[psutil.Process]:
        """Wait until the sandbox has started the program, which gets no signals before.

        Returns:
            The processes, the program first; none if it has ended.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + BEGIN_SECONDS
        while loop.time() < deadline:
            # In a thread: it takes long enough to delay the requests that the gate forwards.
            processes = await asyncio.to_thread(self.processes)
            if processes or self.has_ended:
                return processes
            await asyncio.sleep(POLL_SECONDS)
        return []

    def send(self, number: int) -> None:
        """Send a signal to the program itself, not to the sandbox around it."""
        for process in self.processes()[:1]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    async def wait(self, seconds: float | None = None) -> int:
        """Wait for the program's end; return the exit code.

        Raises:
            TimeoutError: the program is still running after `seconds`.
        """
        async with asyncio.timeout(seconds):
            return await self.process.wait()

    @property
    def has_ended(self) -> bool:
        return self.process.returncode is not None

    async def stop(self, number: int, seconds: float) -> None:
        """Send a signal, and kill the program if it does not end within `seconds`."""
        self.send(number)
        with suppress(TimeoutError):
            await self.wait(seconds)
        await self.kill()

    async def kill(self) -> None:
        """Kill all processes in the container."""
        await kill(self.process)


def processes_inside(pid: int) -> list[psutil.Process]:
    """Return the processes in the sandbox that bubblewrap made as process `pid`, oldest first."""
    with suppress(psutil.NoSuchProcess):
        # The first process in the namespace is bubblewrap itself.
        for first in psutil.Process(pid).children():
            return first.children(recursive=True)
    return []


def descendants(pid: int) -> Iterator[int]:
    """Yield the IDs of a process's descendants, without reading those of all processes."""
    with suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                yield child
                yield from descendants(child)


async def kill(process: asyncio.subprocess.Process) -> None:
    """Kill a process and its process group, and wait for its end."""
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
    """Run a program, wait for its end and log its output; see `Container.run`."""
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
        raise RuntimeError("the process has no stdout pipe")
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
    except ValueError:  # longer than the limit; the rest follows as the next line
        return "…\n"


async def start_helper(*program: str, log: Path) -> Running:
    """Start a program on this machine that ends with this process, even if that is killed."""
    bwrap = bubblewrap()
    if bwrap is not None:
        # In its own process namespace, because a killed nginx leaves its workers running.
        own = ("--die-with-parent", "--unshare-pid", "--dev-bind", "/", "/", "--proc", "/proc")
        program = (bwrap, *own, "--", *program)
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *program, stdin=DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    return Running(process, inside=bwrap is not None)


def allow_removal(directory: Path) -> None:
    """Make `directory` and all directories below it writable again."""
    for root, directories, _ in os.walk(directory):
        for name in directories:
            path = os.path.join(root, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755)  # noqa: S103
    os.chmod(directory, 0o755)  # noqa: S103


def remove(directory: Path) -> None:
    """Remove a directory, even if it has no write permissions."""
    if directory.exists():
        allow_removal(directory)
        shutil.rmtree(directory)
