"""Measure what a rehearsal costs: memory, processor time, connections; and record its logs."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rehearsal.connections import WEB, Counting, Demand, Use, demand
from rehearsal.connections import judge as judge_connections
from rehearsal.findings import Finding, Severity
from rehearsal.instance import Instance, SupervisedProcess
from rehearsal.knowledge import DEFAULT_PROFILE, SIZES, default_memory
from rehearsal.project import Connections
from rehearsal.services import Services

SAMPLE_SECONDS = 0.5
COUNT_SECONDS = 0.2
MAX_LOG_LINES = 500
MAX_LINE_LENGTH = 300
MIN_SECRET_LENGTH = 6
SECRETS = ("PASSWORD", "SECRET", "TOKEN", "ENTROPY", "RELATIONSHIPS", "KEY", "_URL", "DSN")
MEGABYTE = 1024 * 1024


@dataclass
class Container:
    """What a container used, over time."""

    name: str
    profile: str
    times: list[float] = field(default_factory=list)
    """Seconds since the start of the rehearsal."""
    memory: list[float] = field(default_factory=list)
    """In MB. Memory that processes share counts once."""
    cpu: list[float] = field(default_factory=list)
    """In CPUs, since the previous sample."""
    cpu_seconds: float = 0.0
    application: str = ""
    process: str = WEB
    """`web`, or the name of a worker."""
    connections: Use = field(default_factory=Use)
    """To PostgreSQL."""

    @property
    def peak(self) -> float:
        """Return the largest amount of memory, in MB."""
        return max(self.memory, default=0.0)

    @property
    def default_size(self) -> int:
        """Return the container's memory on the first deploy, in MB."""
        return default_memory(self.profile)

    @property
    def smallest_size(self) -> tuple[float, int] | None:
        """Return the CPU and the memory of the smallest size that is large enough."""
        sizes = SIZES[self.profile].items()
        return next(((cpu, size) for cpu, size in sizes if size >= self.peak), None)


@dataclass
class Costs:
    """What a rehearsal cost."""

    containers: list[Container] = field(default_factory=list)
    connections: list[tuple[float, int]] = field(default_factory=list)
    """The open connections to PostgreSQL, over time."""
    max_connections: int = 0
    """The limit of the PostgreSQL server; 0 if there is none."""
    images: dict[str, float] = field(default_factory=dict)
    """The size of each application's image, in MB."""
    previous_images: dict[str, float] = field(default_factory=dict)
    """The sizes in the last rehearsal of this environment."""
    log: list[tuple[float, str, str]] = field(default_factory=list)
    """Log lines: the time, the log's name and the line, without secrets."""
    skipped: int = 0
    """The number of log lines that were left out."""
    reserved_connections: int = 0
    """How many of them are reserved for superusers."""
    other_connections: int = 0
    """The most connections that hooks, crons and others had."""
    demand: Demand | None = None
    """The connections that the project may need in a rolling deploy, if there is one server."""

    @property
    def peak_connections(self) -> int:
        return max((count for _, count in self.connections), default=0)

    @property
    def usable_connections(self) -> int:
        return self.max_connections - self.reserved_connections

    @property
    def uses(self) -> dict[tuple[str, str], Use]:
        """Return the most connections of a container, by its application and process."""
        found: dict[tuple[str, str], Use] = {}
        for container in self.containers:
            use = found.setdefault((container.application, container.process), Use())
            use.add(container.connections.connections, container.connections.processes)
        return {key: use for key, use in found.items() if use.connections}

    def describe_connections(self) -> str:
        """Return the most connections, and how many a rolling deploy may need."""
        text = f"{self.peak_connections} to PostgreSQL at most"
        if self.demand:
            text += (
                f"; a rolling deploy may need {self.demand} = {self.demand.total}"
                f" of {self.usable_connections}"
            )
        return text

    def remember_images(self, file: Path) -> None:
        """Read the sizes of the last rehearsal from a file, and write those of this one."""
        with suppress(OSError, ValueError):
            self.previous_images = json.loads(file.read_text())
        if self.images:
            file.write_text(json.dumps(self.images))

    def document(self) -> dict[str, Any]:
        """Return the numbers as `--json` prints them."""
        return {
            "containers": [
                {
                    "name": container.name,
                    "profile": container.profile,
                    "memory_mb": round(container.peak, 1),
                    "default_size_mb": container.default_size,
                    "smallest_size": container.smallest_size,
                    "cpu_seconds": round(container.cpu_seconds, 2),
                    "connections": container.connections.connections,
                }
                for container in self.containers
            ],
            "connections": self.peak_connections,
            "max_connections": self.max_connections,
            "reserved_connections": self.reserved_connections,
            "demand": self.demand and {**asdict(self.demand), "total": self.demand.total},
            "images_mb": {name: round(size, 1) for name, size in self.images.items()},
            "previous_images_mb": {
                name: round(size, 1) for name, size in self.previous_images.items()
            },
        }


class Recorder:
    """Takes samples of the running containers until the end of the rehearsal."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.costs = Costs()
        self.services: Callable[[], Services | None] = lambda: None
        """Returns the services, once they have been started."""
        self._instances: list[tuple[str, Instance]] = []
        self._containers: dict[str, Container] = {}
        self._counting = Counting()
        self._cpu: dict[tuple[int, float], float] = {}
        """The processor time of each process, by its ID and start time."""
        self._logs: dict[Path, int] = {}
        self._secrets: set[str] = set()

    def judge(self) -> list[Finding]:
        """Return a warning for each container that is too small on its first deploy."""
        return [
            Finding(
                "costs",
                f"the container {container.name} uses up to {container.peak:.0f} MB, but on its"
                f" first deploy it has {container.default_size} MB ({container.profile})",
                consequence="the kernel kills its processes when the memory is used up",
                fix="choose a larger size with `upsun resources:set`, or another container_profile",
                severity=Severity.WARNING,
            )
            for container in self.costs.containers
            if container.peak > container.default_size
        ]

    def now(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.begun

    def watch(self, label: str, instance: Instance) -> None:
        """Measure an instance from now on."""
        self._instances.append((label, instance))
        self.hide(instance.variables)

    def hide(self, variables: Mapping[str, str]) -> None:
        """Keep the values of secret variables out of recorded log lines."""
        for name, value in variables.items():
            if any(word in name for word in SECRETS) and len(value) >= MIN_SECRET_LENGTH:
                self._secrets.add(value)

    @asynccontextmanager
    async def recording(self, logs: Path) -> AsyncIterator[None]:
        """Take samples during the block."""
        tasks = [asyncio.create_task(self._run(logs)), asyncio.create_task(self._count())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await self._counting.close()
            self._read_logs(logs)

    async def _run(self, logs: Path) -> None:
        while True:
            # In a thread, because finding all processes takes some milliseconds.
            await asyncio.to_thread(self._sample_all)
            self._read_logs(logs)
            await asyncio.sleep(SAMPLE_SECONDS)

    def _running(self) -> Iterator[tuple[str, Instance, SupervisedProcess]]:
        """Yield each container that has been started, with its name."""
        for label, instance in list(self._instances):
            for process in [instance.web, *instance.workers]:
                if process and process.running and not process.running.has_ended:
                    name = label if process is instance.web else f"{label}-{process.name}"
                    yield name, instance, process

    def _sample_all(self) -> None:
        for name, instance, process in self._running():
            self._sample(name, instance, process)

    def _sample(self, name: str, instance: Instance, process: SupervisedProcess) -> None:
        now = self.now()
        memory = used = 0.0
        for each in process.processes():
            with suppress(psutil.Error):
                memory += proportional_memory(each)
                key = (each.pid, each.create_time())
                total = sum(each.cpu_times()[:2])
                used += total - self._cpu.get(key, 0.0)
                self._cpu[key] = total
        if not memory:
            return
        container = self._container(name, instance, process)
        passed = now - container.times[-1] if container.times else SAMPLE_SECONDS
        container.times.append(now)
        container.memory.append(memory / MEGABYTE)
        container.cpu.append(used / passed if passed else 0.0)
        container.cpu_seconds += used

    def _container(self, name: str, instance: Instance, process: SupervisedProcess) -> Container:
        """Return the numbers of a container; those of later deploys have the same name."""
        container = self._containers.get(name)
        if container is None:
            application = instance.application
            worker = application.workers.get(process.name)
            own = worker.container_profile if worker else None
            profile = own or application.container_profile or DEFAULT_PROFILE
            container = Container(
                name,
                profile if profile in SIZES else DEFAULT_PROFILE,
                application=instance.image.application,
                process=WEB if process is instance.web else process.name,
            )
            self._containers[name] = container
            self.costs.containers.append(container)
        return container

    async def _count(self) -> None:
        """Count the database connections, more often than the rest, because hooks are short."""
        while True:
            await asyncio.sleep(COUNT_SECONDS)
            services = self.services()
            sample = await self._counting.sample(
                services.databases if services else [],
                {name: process for name, _, process in self._running()},
            )
            if sample is None:
                continue
            costs = self.costs
            costs.connections.append((self.now(), sample.total))
            costs.max_connections = self._counting.limit
            costs.reserved_connections = self._counting.reserved
            costs.other_connections = max(costs.other_connections, sample.others)
            for name, processes in sample.by_container.items():
                if container := self._containers.get(name):  # it has been sampled, too
                    container.connections.add(processes.total(), len(processes))

    def judge_connections(
        self, application: str, instances: int, settings: Connections | None
    ) -> list[Finding]:
        """Return a warning if PostgreSQL has too few connections for a rolling deploy.

        Args:
            application: the application that has several instances.
            instances: how many it may have.
            settings: the connections of its processes, if the project names them.
        """
        services, costs = self.services(), self.costs
        uses = costs.uses
        if services is None or len(services.databases) != 1 or (application, WEB) not in uses:
            return []  # how connections are distributed over several servers is not known
        pool = settings.pool if settings else 0
        for _, instance in self._instances:
            if settings and settings.variable and instance.image.application == application:
                value = instance.variables.get(settings.variable, "")
                pool = int(value) if value.isdecimal() else pool
        costs.demand = demand(
            uses,
            costs.other_connections,
            application=application,
            instances=instances,
            settings=settings,
            pool=pool,
        )
        return judge_connections(
            uses,
            costs.demand,
            costs.usable_connections,
            application=application,
            settings=settings,
        )

    def _read_logs(self, logs: Path) -> None:
        """Record the lines that were added to the logs since the last sample."""
        now = self.now()
        for path in sorted(logs.rglob("*.log")):
            if path.name.endswith("-nginx.log"):
                continue
            try:
                with path.open("rb") as file:
                    file.seek(self._logs.get(path, 0))
                    added = file.read()
            except OSError:
                continue
            end = added.rfind(b"\n") + 1  # an unfinished line is read the next time
            self._logs[path] = self._logs.get(path, 0) + end
            name = path.relative_to(logs).with_suffix("").as_posix()
            for line in added[:end].decode(errors="replace").splitlines():
                self._add_line(now, name, line)

    def _add_line(self, now: float, name: str, line: str) -> None:
        if len(self.costs.log) >= MAX_LOG_LINES:
            self.costs.skipped += 1
            del self.costs.log[0]  # the last lines say the most
        for secret in self._secrets:
            line = line.replace(secret, "•••")
        self.costs.log.append((now, name, line[:MAX_LINE_LENGTH]))


def proportional_memory(process: psutil.Process) -> float:
    """Return the memory of a process in bytes, with its share of what it shares with others."""
    try:
        return float(process.memory_full_info().pss)
    except (AttributeError, psutil.AccessDenied):  # not on Linux, or not our process
        return float(process.memory_info().rss)
