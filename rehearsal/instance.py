"""A running release: its processes, the web server in front of them, and their shutdown."""

import asyncio
import json
import os
import shutil
import signal
from asyncio import Task
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from rehearsal import web_server
from rehearsal.configuration import Application, Location, Mount
from rehearsal.image import PROGRAMS, Image
from rehearsal.knowledge import DEFAULT_CPU, default_memory
from rehearsal.network import accepts
from rehearsal.sandbox import Container, Result, Running

# The platform restarts an exited command without limit; a rehearsal gives up after this many exits.
MAX_EXITS = 5
START_SECONDS = 30
STOP_SECONDS = 15  # then SIGKILL; documented for workers
NGINX_SECONDS = 5
SHELLS = {"bash", "dash", "sh"}
HOOK_SECONDS = 600


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended after a signal."""

    seconds: float
    code: int | None
    killed: bool
    programs: tuple[str, ...] = ()
    """The command lines of the process that got the signal, and of its child processes."""

    @property
    def reached_shell_only(self) -> bool:
        """Return whether a shell got the signal, which does not forward it to its child."""
        names = [Path(program.partition(" ")[0]).name for program in self.programs]
        return len(names) > 1 and names[0] in SHELLS and names[1] not in SHELLS


class SupervisedProcess:
    """A command that is restarted whenever it exits, until it is stopped."""

    def __init__(self, name: str, container: Container, text: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.container = container
        self.codes: list[int] = []
        """The exit codes so far."""
        self.running: Running | None = None
        self._text = text
        self._stopping = False
        self._task: Task[None] | None = None

    async def start(self) -> None:
        self.running = await self.container.start(self.container.shell(self._text), self.log)
        self._task = asyncio.create_task(self._keep(self.running))

    async def _keep(self, running: Running) -> None:
        while True:
            code = await running.wait()
            await running.kill()  # child processes that are still running
            if self._stopping:
                return
            self.codes.append(code)
            if self.is_crash_looping:
                return
            running = await self.container.start(self.container.shell(self._text), self.log)
            self.running = running

    async def restart(self) -> None:
        """Start it again after a crash loop."""
        self.codes.clear()
        await self.start()

    @property
    def is_crash_looping(self) -> bool:
        """Return whether it has exited `MAX_EXITS` times."""
        return len(self.codes) >= MAX_EXITS

    def processes(self) -> list[psutil.Process]:
        return self.running.processes() if self.running else []

    def pids(self) -> list[int]:
        """Return the IDs of its processes, as `Running.pids()` does."""
        return self.running.pids() if self.running else []

    def megabytes(self) -> float:
        """Return the total resident memory of its processes, in MB."""
        total = 0
        for process in self.processes():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total / 1e6

    def listening(self) -> set[int]:
        """Return the TCP ports that its processes listen on."""
        ports = set()
        for process in self.processes():
            with suppress(psutil.Error):
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN:
                        ports.add(int(connection.laddr.port))
        return ports

    async def stop(self) -> ExitStatus:
        """Send SIGTERM, and SIGKILL after `STOP_SECONDS`."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._stopping = True
        killed = False
        if self.running is None or self.is_crash_looping:
            return ExitStatus(0.0, None, killed=False)
        processes = await self.running.begin()
        programs = await asyncio.to_thread(command_lines, processes)
        for process in processes[:1]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        try:
            await self.running.wait(STOP_SECONDS)
        except TimeoutError:
            killed = True
        seconds = loop.time() - begun
        await self.close()
        code = None if killed else self.running.process.returncode
        return ExitStatus(seconds, code, killed, tuple(programs))

    async def close(self) -> None:
        """Kill it, if it is running."""
        self._stopping = True
        if self.running:
            await self.running.kill()
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task


def command_lines(processes: Sequence[psutil.Process]) -> list[str]:
    """Return the command lines of those processes that are still running."""
    programs = []
    for process in processes:
        with suppress(psutil.Error):
            programs.append(" ".join(process.cmdline()))
    return programs


class Instance:
    """A running release: web container and workers."""

    def __init__(
        self,
        image: Image,
        *,
        variables: Mapping[str, str],
        hosts: Mapping[str, str],
        mounts: Mapping[str, Path],
        bwrap: str | None,
        nginx: str | None,
        port: int,
        web_port: int,
        scratch: Path,
        logs: Path,
        label: str,
        number: int = 1,
    ) -> None:
        """Prepare an instance without starting anything.

        Args:
            image: the built image.
            variables: the environment variables of the running container.
            hosts: the addresses of host names that only this instance knows.
            mounts: the directories on this machine, by mount in the configuration.
            bwrap: the path of bubblewrap; None to run without it.
            nginx: the path of nginx; None to run without a web server.
            port: the application's port.
            web_port: the port of the container's web server.
            scratch: a directory for this instance only.
            logs: the directory for `<label>.log` and `<label>-*.log`.
            label: the name of the instance.
            number: which of the release's instances it is.
        """
        self.image = image
        self.label = label
        self.number = number
        self.application: Application = image.description
        self.variables = dict(variables)
        self.hosts = hosts
        self.mounts = mounts
        self.bwrap = bwrap
        self.nginx = nginx
        self.port = port
        self.web_port = web_port
        self.scratch = scratch
        self.log = logs / f"{label}.log"
        self.nginx_log = logs / f"{label}-nginx.log"
        self.read_only_mounts = False
        self.is_serving = False
        """Whether the application has accepted a connection."""
        self.web: SupervisedProcess | None = None
        self.workers: list[SupervisedProcess] = []
        self.worker_ends: dict[str, ExitStatus] = {}
        """How each stopped worker ended."""
        self._nginx: Running | None = None
        scratch.mkdir(parents=True, exist_ok=True)

    @property
    def is_crash_looping(self) -> bool:
        """Return whether the application has exited again and again."""
        return self.web is not None and self.web.is_crash_looping

    @property
    def is_passing(self) -> bool:
        """Return whether the web server passes requests to the application."""
        web = self.application.web
        if not web.locations:
            return bool(web.commands.start)
        return any(self._passes(url, location) for url, location in web.locations.items())

    def _passes(self, url: str, location: Location) -> bool:
        """Return whether a location passes requests to the application.

        `passthru: /index.html` does not, if the file exists: it is the page of a static site.
        """
        for target in (location.passthru, *(rule.passthru for rule in location.rules.values())):
            if isinstance(target, str) and location.root is not None:
                path = target.removeprefix(url).strip("/")
                if not (self.image.directory / location.root.strip("/") / path).is_file():
                    return True
            elif target:
                return True
        return False

    @property
    def is_unix(self) -> bool:
        return self.application.web.upstream.socket_family == "unix"

    @property
    def address(self) -> int | str:
        """Return the port or the Unix socket that the application must listen on."""
        return str(self.scratch / "app.sock") if self.is_unix else self.port

    @property
    def entrance(self) -> int:
        """Return the port that the router sends requests to."""
        return self.web_port if self.nginx else self.port

    def container(self, *, listens: bool = True) -> Container:
        """Return a container as the platform starts it.

        Args:
            listens: whether to set PORT and SOCKET; workers do not get them.
        """
        binds = {"/run/web": self.scratch}
        read_only = {PROGRAMS: self.image.python.programs}
        for key, directory in self.mounts.items():
            target = read_only if self.read_only_mounts else binds
            target[f"/app/{key.strip('/')}"] = directory
        if self.hosts:
            hosts = self.scratch / "hosts"
            own = "".join(f"{address}\t{name}\n" for name, address in self.hosts.items())
            hosts.write_text(Path("/etc/hosts").read_text() + own)
            read_only["/etc/hosts"] = hosts
        limits = self.scratch / "config.json"
        memory = default_memory(self.application.container_profile)
        limits.write_text(json.dumps({"info": {"limits": {"cpu": DEFAULT_CPU, "memory": memory}}}))
        return Container(
            tree=self.image.directory,
            variables={
                name: value
                for name, value in self.variables.items()
                if listens or name not in {"PORT", "SOCKET"}
            },
            bwrap=self.bwrap,
            binds=binds,
            read_only_binds=read_only | {"/run/config.json": limits},
            replaced=self.image.python.replaced,
            path=self.image.search_path(self.bwrap),
        )

    async def start(self, *, with_workers: bool = True) -> None:
        """Start the application, the web server and, if wanted, the workers."""
        commands = self.application.web.commands
        container = self.container()
        if commands.pre_start:  # runs in parallel to `start`, as on the platform
            await container.start(container.shell(commands.pre_start), self.log)
        if commands.start:
            self.web = SupervisedProcess("web", container, commands.start, self.log)
            await self.web.start()
        if self.nginx:
            await self._start_nginx(container, self.nginx)
        for name, worker in self.application.workers.items() if with_workers else ():
            if worker.commands.start:
                log = self.log.with_name(f"{self.log.stem}-{name}.log")
                kept = SupervisedProcess(
                    name, self.container(listens=False), worker.commands.start, log
                )
                self.workers.append(kept)
                await kept.start()

    async def _start_nginx(self, container: Container, program: str) -> None:
        inside = self.bwrap is not None
        scratch = "/run/web" if inside else str(self.scratch)
        upstream = f"unix:{scratch}/app.sock" if self.is_unix else f"127.0.0.1:{self.port}"
        (self.scratch / "nginx.conf").write_text(
            web_server.configuration(
                self.application,
                directory=container.directory,
                port=self.web_port,
                upstream=upstream,
                scratch=scratch,
            )
        )
        arguments = [program, "-e", "stderr", "-p", scratch, "-c", f"{scratch}/nginx.conf"]
        self._nginx = await container.start(container.command(*arguments), self.nginx_log)
        nginx = self._nginx
        if not await accepts(self.web_port, NGINX_SECONDS, lambda: not nginx.has_ended):
            raise RuntimeError(f"nginx failed to start: {self.nginx_log.read_text()[-2000:]}")

    async def is_up(self, seconds: float = START_SECONDS) -> bool:
        """Wait until the application accepts connections; return whether it does."""
        web = self.web
        return web is not None and await accepts(
            self.address, seconds, lambda: not web.is_crash_looping
        )

    async def lose(self) -> int:
        """Kill the web container, as when its host fails; return the number of processes.

        The application is restarted at once. The container accepts connections again after
        `restart_web_server`.
        """
        # The web server first: without the application, it would answer requests with 502.
        server = self._nginx.processes() if self._nginx else []
        application = self.web.processes() if self.web else []
        running = self.web.running if self.web else None
        for processes in (server, application):
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            await asyncio.to_thread(psutil.wait_procs, processes, STOP_SECONDS)
        if running:
            await running.wait()
        if self._nginx:
            await self._nginx.kill()
        return len(server) + len(application)

    async def restart_web_server(self) -> None:
        """Start the web server of a lost container again.

        Raises:
            RuntimeError: it does not start.
        """
        if self.nginx:
            await self._start_nginx(self.container(), self.nginx)

    async def run(
        self,
        text: str,
        log: Path,
        *,
        show: Callable[[str], None],
        seconds: float = HOOK_SECONDS,
    ) -> Result:
        """Run a hook or a cron in a container of its own."""
        return await self.container().run(text, log=log, seconds=seconds, show=show)

    async def stop(self) -> ExitStatus:
        """Stop the application and its workers, then the web server.

        Returns:
            How the application ended.
        """
        stopped = asyncio.gather(*(worker.stop() for worker in self.workers))
        end = await self.web.stop() if self.web else ExitStatus(0.0, None, killed=False)
        self.worker_ends = dict(
            zip((worker.name for worker in self.workers), await stopped, strict=True)
        )
        if self._nginx:
            await self._nginx.stop(signal.SIGQUIT, NGINX_SECONDS)  # nginx's graceful shutdown
        await self.close()
        return end

    async def close(self) -> None:
        """Kill all processes."""
        for kept in filter(None, [self.web, *self.workers]):
            await kept.close()
        if self._nginx:
            await self._nginx.kill()


def mount_source(image: Image, directory: Path, key: str, mount: Mount, number: int) -> Path:
    """Return the directory on this machine that a mount points to.

    With several applications, and for a network storage, files are shared with those mounts that
    have the same owner. Instances share all mounts except those that are local.
    """
    owner = mount.service or image.application
    is_task = image.application in image.configuration.tasks
    if mount.service or is_task or image.configuration.has_several_applications:
        directory /= f"@{owner}"
    if number > 1 and mount.source not in {"storage", "service"}:
        directory /= f"#{number}"
    # Without `source_path` the files are in a directory with the name of the mount.
    path = key if mount.source_path is None else mount.source_path
    return directory.joinpath(*PurePosixPath(path.strip("/")).parts)


def prepare_mounts(
    image: Image, directory: Path, *, bwrap: str | None, number: int = 1
) -> dict[str, Path]:
    """Create the directories of the mounts, and the mount points in the image.

    Args:
        image: the built image.
        directory: the environment's files.
        bwrap: the path of bubblewrap; None to run without it.
        number: which of several instances of the application it is.

    Returns:
        The directories, by mount in the configuration.
    """
    found = {}
    for key, mount in image.description.mounts.items():
        source = mount_source(image, directory, key, mount, number)
        source.mkdir(parents=True, exist_ok=True)
        place = image.directory / key.strip("/")
        if bwrap:
            place.mkdir(parents=True, exist_ok=True)
        elif not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(source, place)
        found[key] = source
    return found
