"""Measure what a rehearsal costs: memory, processor time, connections; and record its logs."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from rehearsal.findings import Finding, Severity
from rehearsal.instance import Instance, SupervisedProcess
from rehearsal.knowledge import DEFAULT_CPU, DEFAULT_PROFILE, SIZES
from rehearsal.services import Services

SAMPLE_SECONDS = 0.5
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

    @property
    def peak(self) -> float:
        """Return the largest amount of memory, in MB."""
        return max(self.memory, default=0.0)

    @property
    def default_size(self) -> int:
        """Return the container's memory on the first deploy, in MB."""
        return SIZES[self.profile][DEFAULT_CPU]

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

    @property
    def peak_connections(self) -> int:
        return max((count for _, count in self.connections), default=0)

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
                }
                for container in self.containers
            ],
            "connections": self.peak_connections,
            "max_connections": self.max_connections,
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
        self._containers: dict[tuple[int, str], Container] = {}
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
        task = asyncio.create_task(self._run(logs))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            self._read_logs(logs)

    async def _run(self, logs: Path) -> None:
        while True:
            # In a thread, because finding all processes takes some milliseconds.
            await asyncio.to_thread(self._sample_all)
            self._read_logs(logs)
            await self._count_connections()
            await asyncio.sleep(SAMPLE_SECONDS)

    def _sample_all(self) -> None:
        for label, instance in list(self._instances):
            for process in [instance.web, *instance.workers]:
                if process is not None and process.running is not None:
                    self._sample(label, instance, process)

    def _sample(self, label: str, instance: Instance, process: SupervisedProcess) -> None:
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
        name = label if process is instance.web else f"{label}-{process.name}"
        key_of_container = (id(instance), process.name)
        container = self._containers.get(key_of_container)
        if container is None:
            application = instance.application
            worker = application.workers.get(process.name)
            own = worker.container_profile if worker else None
            profile = own or application.container_profile or DEFAULT_PROFILE
            container = Container(name, profile if profile in SIZES else DEFAULT_PROFILE)
            self._containers[key_of_container] = container
            self.costs.containers.append(container)
        passed = now - container.times[-1] if container.times else SAMPLE_SECONDS
        container.times.append(now)
        container.memory.append(memory / MEGABYTE)
        container.cpu.append(used / passed if passed else 0.0)
        container.cpu_seconds += used

    async def _count_connections(self) -> None:
        services = self.services()
        total = limit = 0
        for databases in services.databases if services else ():
            with suppress(Exception):  # refused on purpose, or the server is ending
                async with asyncio.timeout(1):
                    connection = await databases.connect("postgres")
                    try:
                        total += await connection.fetchval(
                            "SELECT count(*) FROM pg_stat_activity"
                            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                        )
                        limit += int(await connection.fetchval("SHOW max_connections"))
                    finally:
                        await connection.close()
        if limit:
            self.costs.connections.append((self.now(), total))
            self.costs.max_connections = limit

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
