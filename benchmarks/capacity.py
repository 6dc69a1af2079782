"""Calculate what a load needs, and what gives way first.

  python -m benchmarks.capacity --users N [--active SHARE] [--requests N] [--reads SHARE]
      [--hit-rate SHARE] [--streams N] [--jobs N] [--job-ms MS] [--size CPU] [--pool N]
      [--connections N] [--instances N] [--replica] [--json]

Computes instances, processes, database connections, CPU and memory from the measurements in
benchmarks/scaling.json, which `make bench` writes, and the container sizes of Upsun. Then it finds
how far the load can grow before a part gives way, and prints the first two parts.

The load is that of the busiest minute. What is not given is derived from the number of users.

Exit codes: 0 success, 2 invalid arguments or no measurements.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any, NoReturn

from app.settings import Settings
from quart_upsun.platform import ContainerLimits
from quart_upsun.server.serve import processes_for
from rehearsal.knowledge import SIZES

DATA = Path(__file__).with_name("scaling.json")
PROFILE, DATABASE_PROFILE = "BALANCED", "HIGH_MEMORY"  # of `.upsun/config.yaml`, and the default
FIRST_SIZE = 0.5  # of a container on its first deploy
MAX_INSTANCES = 8  # the platform's default limit, in most regions
MAX_CONNECTIONS = 100  # PostgreSQL's default; Upsun does not document its own
RESERVED_CONNECTIONS = 3  # for superusers
DEPLOY_FACTOR = 2  # during a rolling deploy the previous release keeps its connections
MAX_STREAMS = 10_000  # of a process, `Hub.per_process`
USABLE_MEMORY = 0.9
UTILIZATION = 0.7  # of the CPU in the busiest minute

# What is not given is derived with these.
ACTIVE = 0.1  # of the users, on a day
REQUESTS_PER_DAY = 50  # of an active user
MINUTES_PER_DAY = 30  # an active user has a live page open
LOGINS_PER_DAY = 1 / 7  # of an active user
PEAK = 3  # the busiest minute, as a multiple of the average
READS = 0.95
LINKS = 100  # of a user
WARM_LINKS = 20  # of an active user, which the database is to keep in memory
READ_KINDS = ("home", "members", "list", "api")
DAY_SECONDS = 24 * 3600

SEARCH_STEPS = 60  # halvings in the search for the load at which a part gives way
MAX_GROWTH = 1e6


class CapacityError(Exception):
    """The question cannot be answered; the message is one sentence."""


@dataclass(frozen=True)
class Load:
    """The load of the busiest minute."""

    users: float
    active: float
    """Share of the users on a day."""
    requests: float
    """Requests per second that reach the router."""
    reads: float
    """Share of the requests that change nothing."""
    hit_rate: float
    """Share of the requests that the router's cache answers."""
    streams: float
    jobs: float
    """Jobs per second."""

    @property
    def logins(self) -> float:
        """Logins per second."""
        return self.users * self.active * LOGINS_PER_DAY * PEAK / DAY_SECONDS

    @property
    def writes(self) -> float:
        """Writes per second. The router's cache answers only reads."""
        return self.requests * (1 - self.reads)

    @property
    def origin_reads(self) -> float:
        """Reads per second that reach the application."""
        return max(0.0, self.requests * (self.reads - self.hit_rate))

    def times(self, factor: float) -> "Load":
        return replace(
            self,
            users=self.users * factor,
            requests=self.requests * factor,
            streams=self.streams * factor,
            jobs=self.jobs * factor,
        )


def load_of(
    users: float,
    *,
    active: float = ACTIVE,
    requests: float | None = None,
    reads: float = READS,
    hit_rate: float = 0.0,
    streams: float | None = None,
    jobs: float | None = None,
) -> Load:
    """Return the load of a number of users; what is None is derived.

    Raises:
        CapacityError: the cache would have to answer writes.
    """
    if hit_rate > reads:
        raise CapacityError(
            f"The hit rate ({hit_rate:g}) cannot be larger than the share of reads ({reads:g}),"
            " because the router's cache does not answer writes."
        )
    busy = users * active * PEAK / DAY_SECONDS
    requests = busy * REQUESTS_PER_DAY if requests is None else requests
    streams = busy * MINUTES_PER_DAY * 60 if streams is None else streams
    jobs = requests * (1 - reads) if jobs is None else jobs
    return Load(users, active, requests, reads, hit_rate, streams, jobs)


@dataclass(frozen=True)
class Costs:
    """What the measurements say; CPU time in milliseconds, memory in MB."""

    read_ms: float
    write_ms: float
    login_ms: float
    job_ms: float
    read_database_ms: float
    write_database_ms: float
    login_database_ms: float
    job_database_ms: float
    wakeup_ms: float
    """CPU time of PostgreSQL to pass a notification to one more listener."""
    process_mb: float
    worker_mb: float
    stream_mb: float
    bytes_per_link: float
    jobs_per_second: float
    """The best of all numbers of workers."""
    events_per_second: Mapping[int, float]
    """By the number of listening connections."""

    def max_events(self, listeners: float) -> float:
        """Return the notifications per second, interpolated between the measured listeners.

        Beyond the largest measured number it is inversely proportional to the listeners.
        """
        points = sorted(self.events_per_second.items())
        if listeners <= points[0][0]:
            return points[0][1]
        for (few, high), (many, low) in pairwise(points):
            if listeners <= many:
                return high + (low - high) * (listeners - few) / (many - few)
        most, rate = points[-1]
        return rate * most / listeners


def costs(data: Mapping[str, Any]) -> Costs:
    """Return what requests, jobs, events and streams cost, from the measurements."""
    kinds, workers = data["process"]["kinds"], data["workers"]["workers"]
    listeners = {int(count): each for count, each in data["fanout"]["listeners"].items()}
    few, many = min(listeners), max(listeners)
    one_worker = workers[min(workers, key=int)]
    return Costs(
        read_ms=mean(kinds[name]["cpu_ms"] for name in READ_KINDS),
        write_ms=kinds["write"]["cpu_ms"],
        login_ms=kinds["login"]["cpu_ms"],
        job_ms=one_worker["worker_ms"],
        read_database_ms=mean(kinds[name]["database_ms"] for name in READ_KINDS),
        write_database_ms=kinds["write"]["database_ms"],
        login_database_ms=kinds["login"]["database_ms"],
        job_database_ms=one_worker["database_ms"],
        wakeup_ms=max(
            0.0,
            (listeners[many]["database_ms"] - listeners[few]["database_ms"]) / (many - few),
        ),
        process_mb=data["process"]["loaded_mb"],
        worker_mb=max(each["mb"] for each in workers.values()),
        stream_mb=data["streams"]["kb_per_stream"] / 1000,
        bytes_per_link=data["searches"]["bytes_per_link"],
        jobs_per_second=max(each["jobs_per_second"] for each in workers.values()),
        events_per_second={count: each["events_per_second"] for count, each in listeners.items()},
    )


@dataclass(frozen=True)
class Options:
    """The platform, and what of it is used."""

    size: float | None = None
    """CPU of a container; None for the smallest with which `instances` are enough."""
    pool: int = field(
        default_factory=lambda: int(Settings.model_fields["database_pool_size"].default)
    )
    connections: int = MAX_CONNECTIONS
    instances: int = MAX_INSTANCES
    has_replica: bool = False
    """Whether a read replica answers the reads, and the primary does everything else."""


@dataclass(frozen=True)
class Plan:
    """What a load needs."""

    size: float
    container_mb: int
    processes: int
    """Of an instance."""
    instances: int
    instance_mb: float
    """Used memory of an instance."""
    workers: int
    """Worker containers of the same size."""
    listeners: int
    """Connections that PostgreSQL wakes with each notification."""
    events: float
    """Notifications per second."""
    database_cpu: float
    """What PostgreSQL needs, with room for peaks."""
    database_size: float
    """The smallest size that has it, or the largest."""
    database_mb: int
    replica_cpu: float
    """The same of the read replica; 0 without one."""
    replica_size: float
    replica_mb: int
    data_gb: float
    warm_mb: float
    """Data that the database is to keep in memory."""
    connections: int
    deploy_connections: int
    """During a rolling deploy."""
    total_cpu: float
    total_mb: int


def plan(load: Load, measured: Costs, options: Options) -> Plan:
    """Calculate what a load needs.

    Raises:
        CapacityError: the processes of a container do not fit its memory.
    """
    if options.size is None:
        sizes = [size for size in SIZES[PROFILE] if size >= FIRST_SIZE]
        for size in sizes:
            found = plan(load, measured, replace(options, size=size))
            if found.instances <= options.instances:
                break
        return found
    size, container = options.size, SIZES[PROFILE][options.size]
    processes = processes_for(ContainerLimits(container, size))
    stream_room = min(
        (container * USABLE_MEMORY - processes * measured.process_mb) / measured.stream_mb,
        processes * MAX_STREAMS,
    )
    if stream_room < 1:
        raise CapacityError(
            f"A container of {size:g} CPU has {container} MB, which is not enough for {processes}"
            f" processes of {measured.process_mb:g} MB."
        )
    cpu = (
        load.origin_reads * measured.read_ms
        + load.writes * measured.write_ms
        + load.logins * measured.login_ms
    ) / 1000
    instances = max(
        1,
        math.ceil(cpu / (min(size, processes) * UTILIZATION)),
        math.ceil(load.streams / stream_room),
    )
    workers = max(1, math.ceil(load.jobs * measured.job_ms / 1000 / (min(size, 1) * UTILIZATION)))
    listeners = workers + (instances * processes if load.streams else 0)
    events = load.writes + load.jobs
    reads_cpu = load.origin_reads * measured.read_database_ms / 1000 / UTILIZATION
    database_cpu = (
        (
            load.writes * measured.write_database_ms
            + load.logins * measured.login_database_ms
            + load.jobs * measured.job_database_ms
            + events * listeners * measured.wakeup_ms
        )
        / 1000
        / UTILIZATION
    )
    if not options.has_replica:
        database_cpu += reads_cpu
    warm_mb = load.users * load.active * WARM_LINKS * measured.bytes_per_link / 1e6
    database_size = _database_size(database_cpu, warm_mb)
    replica_size = _database_size(reads_cpu, warm_mb) if options.has_replica else 0.0
    # A process has its pool and a connection that listens for events, a worker one for jobs.
    connections = (instances * processes + workers) * (options.pool + 1)
    database_mb = SIZES[DATABASE_PROFILE][database_size]
    replica_mb = SIZES[DATABASE_PROFILE][replica_size] if options.has_replica else 0
    return Plan(
        size=size,
        container_mb=container,
        processes=processes,
        instances=instances,
        instance_mb=processes * measured.process_mb + load.streams / instances * measured.stream_mb,
        workers=workers,
        listeners=listeners,
        events=events,
        database_cpu=database_cpu,
        database_size=database_size,
        database_mb=database_mb,
        replica_cpu=reads_cpu if options.has_replica else 0.0,
        replica_size=replica_size,
        replica_mb=replica_mb,
        data_gb=load.users * LINKS * measured.bytes_per_link / 1e9,
        warm_mb=warm_mb,
        connections=connections,
        deploy_connections=connections * DEPLOY_FACTOR,
        total_cpu=(instances + workers) * size + database_size + replica_size,
        total_mb=(instances + workers) * container + database_mb + replica_mb,
    )


def _database_size(cpu: float, warm_mb: float) -> float:
    """Return the smallest size of a database with this CPU and memory, or the largest size."""
    memory = SIZES[DATABASE_PROFILE]
    sizes = [size for size in memory if size >= FIRST_SIZE]
    enough = (size for size in sizes if size >= cpu and memory[size] * USABLE_MEMORY >= warm_mb)
    return next(enough, sizes[-1])


@dataclass(frozen=True)
class Part:
    """A part that ends at some load."""

    name: str
    use: Callable[[Load, Plan, Costs], float]
    available: Callable[[Plan, Costs, Options], float]
    remedy: str


PARTS = (
    Part(
        "instances",
        lambda load, needed, measured: needed.instances,
        lambda needed, measured, options: options.instances,
        "bigger containers, and the router's cache for anonymous pages",
    ),
    Part(
        "database connections",
        lambda load, needed, measured: needed.deploy_connections,
        lambda needed, measured, options: options.connections - RESERVED_CONNECTIONS,
        "a smaller DATABASE_POOL_SIZE, then a pooler",
    ),
    Part(
        "database CPU",
        lambda load, needed, measured: needed.database_cpu,
        lambda needed, measured, options: max(SIZES[DATABASE_PROFILE]),
        "a read replica, then a second database for a part of the data",
    ),
    Part(
        "replica CPU",
        lambda load, needed, measured: needed.replica_cpu,
        lambda needed, measured, options: max(SIZES[DATABASE_PROFILE]),
        "a second replica",
    ),
    Part(
        "database memory",
        lambda load, needed, measured: needed.warm_mb,
        lambda needed, measured, options: max(SIZES[DATABASE_PROFILE].values()) * USABLE_MEMORY,
        "container_profile HIGHER_MEMORY for the database, then reads from the disk",
    ),
    Part(
        "job queue",
        lambda load, needed, measured: load.jobs,
        lambda needed, measured, options: measured.jobs_per_second,
        "larger jobs, then a queue outside of PostgreSQL",
    ),
    Part(
        "notifications",
        lambda load, needed, measured: needed.events,
        lambda needed, measured, options: measured.max_events(needed.listeners),
        "a publish/subscribe service such as Valkey",
    ),
)


@dataclass(frozen=True)
class Limit:
    """How far a part goes."""

    name: str
    used: float
    available: float
    growth: float | None
    """The load at which it gives way, as a multiple of this load; None if it never does."""
    remedy: str


def growth_until(part: Part, load: Load, measured: Costs, options: Options) -> float | None:
    """Return the multiple of the load up to which a part is enough."""

    def is_enough(factor: float) -> bool:
        grown = load.times(factor)
        needed = plan(grown, measured, options)
        return part.use(grown, needed, measured) <= part.available(needed, measured, options)

    if is_enough(MAX_GROWTH):
        return None
    low, high = math.log(1 / MAX_GROWTH), math.log(MAX_GROWTH)
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_enough(math.exp(middle)) else (low, middle)
    return math.exp(low)


def limits(load: Load, measured: Costs, options: Options) -> list[Limit]:
    """Return all parts, the first to give way first.

    With a size, or the one that the load needs, and not with a bigger one for a bigger load.
    """
    needed = plan(load, measured, options)
    fixed = replace(options, size=needed.size)
    found = [
        Limit(
            part.name,
            part.use(load, needed, measured),
            part.available(needed, measured, options),
            growth_until(part, load, measured, fixed),
            part.remedy,
        )
        for part in PARTS
    ]
    return sorted(found, key=lambda each: math.inf if each.growth is None else each.growth)


def assumptions(options: Options, active: float = ACTIVE) -> list[str]:
    """Return what the calculation assumes, as sentences."""
    return [
        f"On a day {active:.0%} of the users are active, with {REQUESTS_PER_DAY} requests,"
        f" {MINUTES_PER_DAY} minutes on a live page and {LOGINS_PER_DAY:.2g} logins each; the"
        f" busiest minute has {PEAK} times the average.",
        "A read costs the mean of the home page, the members page, a list and the API; each write"
        " publishes an event and enqueues a job.",
        f"A CPU of the platform is as fast as one of the measured machine, and {UTILIZATION:.0%} of"
        " it is used.",
        "A job does nothing but insert a row; `--job-ms` is the CPU time of yours. A worker is one"
        " process.",
        f"A process has {options.pool} pooled connections and one that listens. A rolling deploy"
        " doubles them. The server accepts"
        f" {options.connections}, of which {RESERVED_CONNECTIONS} are reserved.",
        f"A user has {LINKS} links. The database keeps {WARM_LINKS} of each active user in memory.",
    ]


def lines(load: Load, measured: Costs, options: Options) -> list[str]:
    """Return the answer as text."""
    needed = plan(load, measured, options)
    found = limits(load, measured, options)
    room = options.connections - RESERVED_CONNECTIONS

    def warn(is_over: bool) -> str:
        return "  <- too many" if is_over else ""

    answer = [
        f"{load.users:,.0f} users, {load.requests:,.0f} requests/s ({load.reads:.0%} reads,"
        f" {load.hit_rate:.0%} from the router's cache), {load.streams:,.0f} live pages,"
        f" {load.jobs:,.1f} jobs/s",
        "",
        f"application  {needed.instances} x {needed.size:g} CPU, {needed.container_mb:,} MB;"
        f" {needed.processes} processes each, which use {needed.instance_mb:,.0f} MB"
        f"{warn(needed.instances > options.instances)}",
        f"worker       {needed.workers} x {needed.size:g} CPU, {needed.container_mb:,} MB",
        f"database     {needed.database_size:g} CPU, {needed.database_mb:,} MB; needs"
        f" {needed.database_cpu:.2f} CPU and {needed.warm_mb:,.0f} MB; {needed.data_gb:,.1f} GB of"
        f" data{warn(needed.database_cpu > needed.database_size)}",
        *(
            [
                f"replica      {needed.replica_size:g} CPU, {needed.replica_mb:,} MB; needs"
                f" {needed.replica_cpu:.2f} CPU{warn(needed.replica_cpu > needed.replica_size)}"
            ]
            if options.has_replica
            else []
        ),
        f"connections  {needed.connections}, {needed.deploy_connections} during a rolling deploy,"
        f" of {room}{warn(needed.deploy_connections > room)}",
        f"in total     {needed.total_cpu:g} CPU, {needed.total_mb:,} MB",
        "",
    ]
    for order, each in zip(("first", "second"), found, strict=False):
        when = (
            "never"
            if each.growth is None
            else f"at {each.growth:.2g} times this load"
            if each.growth >= 1
            else f"already at {each.growth:.2g} of this load"
        )
        answer.append(
            f"gives way {order}: {each.name}, {when} (now {each.used:,.4g} of"
            f" {each.available:,.4g}). Takes over: {each.remedy}."
        )
    return [
        *answer,
        "",
        "Assumptions:",
        *(f"- {each}" for each in assumptions(options, load.active)),
    ]


def as_data(load: Load, measured: Costs, options: Options) -> dict[str, Any]:
    """Return the answer for programs."""
    return {
        "load": asdict(load),
        "needed": asdict(plan(load, measured, options)),
        "limits": [asdict(each) for each in limits(load, measured, options)],
        "assumptions": assumptions(options, load.active),
    }


def read_costs(path: Path = DATA) -> Costs:
    """Read the measurements.

    Raises:
        CapacityError: the file does not exist or is incomplete.
    """
    try:
        return costs(json.loads(path.read_text()))
    except FileNotFoundError:
        raise CapacityError(f"{path} does not exist; run `make bench`.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CapacityError(f"{path} is incomplete ({error!r}); run `make bench`.") from None


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}\n")


def number(least: float, most: float) -> Callable[[str], float]:
    """Return a type for numbers in a range, for argparse."""

    def parse(text: str) -> float:
        try:
            value = float(text.replace(",", "").replace("_", ""))
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"must be a number from {least:g} to {most:g}, got {text!r}."
            )
        return value

    return parse


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a type for integers in a range, for argparse."""

    def parse(text: str) -> int:
        value = number(least, most)(text)
        if not value.is_integer():
            raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}.")
        return int(value)

    return parse


def container_size(text: str) -> float:
    """Return a size of the profile, for argparse."""
    known = {f"{size:g}": size for size in SIZES[PROFILE]}
    if text not in known:
        raise argparse.ArgumentTypeError(
            f"must be the CPU of a {PROFILE} container ({', '.join(known)}), got {text!r}."
        )
    return known[text]


def parser() -> Parser:
    result = Parser(
        prog="python -m benchmarks.capacity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("--users", type=whole(1, 10**10), required=True, metavar="N", help="registered users")
    add(
        "--active",
        type=number(0, 1),
        default=ACTIVE,
        metavar="SHARE",
        help="share of the users who come on the same day (default: %(default)s)",
    )
    add("--requests", type=number(0, 1e9), metavar="N", help="requests per second at the router")
    add(
        "--reads",
        type=number(0, 1),
        default=READS,
        metavar="SHARE",
        help="share of requests that change nothing (default: %(default)s)",
    )
    add(
        "--hit-rate",
        type=number(0, 1),
        default=0.0,
        metavar="SHARE",
        help="share of requests answered by the router's cache (default: %(default)s)",
    )
    add("--streams", type=number(0, 1e9), metavar="N", help="open live pages")
    add("--jobs", type=number(0, 1e9), metavar="N", help="jobs per second (default: one a write)")
    add(
        "--job-ms",
        type=number(0.01, 1e6),
        metavar="MS",
        help="CPU time of a worker for a job (default: that of a job that inserts a row)",
    )
    add(
        "--size",
        type=container_size,
        metavar="CPU",
        help=f"CPU of a container; the default is the smallest from {FIRST_SIZE} that is enough",
    )
    add(
        "--pool",
        type=whole(1, 100),
        default=Options().pool,
        metavar="N",
        help="DATABASE_POOL_SIZE (default: %(default)s)",
    )
    add(
        "--connections",
        type=whole(RESERVED_CONNECTIONS + 1, 10**6),
        default=MAX_CONNECTIONS,
        metavar="N",
        help="max_connections of the database (default: %(default)s)",
    )
    add(
        "--instances",
        type=whole(1, 10_000),
        default=MAX_INSTANCES,
        metavar="N",
        help="largest number of instances (default: %(default)s)",
    )
    add("--replica", action="store_true", help="a read replica answers the reads")
    add("--json", action="store_true", help="print the answer as JSON")
    return result


def main(arguments: list[str] | None = None) -> int:
    command_line = parser()
    given = command_line.parse_args(arguments)
    try:
        measured = read_costs()
        if given.job_ms is not None:
            measured = replace(measured, job_ms=given.job_ms)
        load = load_of(
            given.users,
            active=given.active,
            requests=given.requests,
            reads=given.reads,
            hit_rate=given.hit_rate,
            streams=given.streams,
            jobs=given.jobs,
        )
        options = Options(
            size=given.size,
            pool=given.pool,
            connections=given.connections,
            instances=given.instances,
            has_replica=given.replica,
        )
        answer = (
            json.dumps(as_data(load, measured, options), indent=2)
            if given.json
            else "\n".join(lines(load, measured, options))
        )
    except CapacityError as error:
        command_line.error(str(error))
    print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
