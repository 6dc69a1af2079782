"""The state that all stages of one rehearsal share."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from rehearsal import inspection
from rehearsal.findings import Finding, Place, Severity
from rehearsal.fleet import Fleet
from rehearsal.front import Front, nginx
from rehearsal.image import Image
from rehearsal.instance import Instance, prepare_mounts
from rehearsal.network import Ports
from rehearsal.probe import describe_responses
from rehearsal.project import Project, Request, Visit
from rehearsal.recorder import Recorder
from rehearsal.report import Console, Report, Stage
from rehearsal.router import Page
from rehearsal.sandbox import Result
from rehearsal.services import Databases, Services
from rehearsal.services.postgresql import MAX_CONNECTIONS
from rehearsal.variables import Endpoint, Environment, host_name, runtime_variables

if TYPE_CHECKING:
    from rehearsal.restore import Restored

# What --run can run.
KINDS = ("cron", "operation", "source-operation", "task")
READY_SECONDS = 30.0
# The stages that run none of the project's code.
WITHOUT_CODE = {"validate", "freeze", "services", "front"}


class Chosen(NamedTuple):
    """Something that --run runs after the deploy."""

    kind: str
    """One of `KINDS`."""
    name: str


class RehearsalStoppedError(Exception):
    """The rehearsal cannot continue; the findings say why."""


@dataclass(frozen=True)
class Options:
    """The options of a rehearsal; `rehearsal/command.py` documents them."""

    repository: Path
    state: Path
    revision: str = "HEAD"
    application: str | None = None
    environment: str = "production"
    environment_type: str = "production"
    clone_of: str | None = None
    strategy: str | None = None
    previous: str | None = None
    rollback: str | None = None
    """The earlier release that follows this one."""
    restore: Path | None = None
    """The dump to start with."""
    broken: str | None = None
    fresh: bool = False
    rebuild: bool = False
    force: bool = False
    strict: bool = False
    html: Path | None = None
    isolated: bool = True
    keep: bool = False
    instances: int = 1
    instances_max: int | None = None
    """The maximum of the autoscaling, for the number of database connections."""
    max_connections: int = MAX_CONNECTIONS
    """The limit of each PostgreSQL server."""
    deploys: int = 1
    """The number of deploys in a row, with `strategy`."""
    runs: tuple[Chosen, ...] = ()
    schema: Path | None = None
    domain: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    command: str = "upsun-rehearse"
    """The command that starts a rehearsal of this repository, for messages."""

    @property
    def place(self) -> Path:
        """Return the directory of the environment's data and logs."""
        return self.state / "environments" / self.environment

    @property
    def logs(self) -> Path:
        return self.place / "logs"

    @property
    def kept(self) -> Path:
        """Return the file that exists while `--keep` leaves a rehearsal running."""
        return self.place / "kept"

    @property
    def stop_command(self) -> str:
        """Return the command that stops a rehearsal that `--keep` left running."""
        other = f" --environment {self.environment}" if self.environment != "production" else ""
        return f"{self.command} --stop{other}"


@dataclass
class Scene:
    """One rehearsal: its options, its running processes and its report."""

    options: Options
    console: Console
    report: Report
    stack: AsyncExitStack
    """Stops what was started, in reverse order."""
    scratch: Path
    """A temporary directory."""
    environment: Environment
    bwrap: str | None
    ports: Ports
    front: Front = field(init=False)
    recorder: Recorder = field(default_factory=Recorder)
    project: Project = field(default_factory=Project)
    pages: list[Page] = field(default_factory=list)
    """The pages to request: those that the project names, or else each route's URL."""
    services: Services | None = None
    """None until they have been started."""
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    """All instances, including those that have ended."""
    prefix: str = ""
    """The start of the names of stages, with several applications; "" for the main one."""
    subdirectory: str = ""
    """The directory of the application's logs and temporary files; "" for the main one."""
    restored: "Restored | None" = None
    """The restored database, with --restore."""
    doubts: list[str] = field(default_factory=list)
    """What is missing here and may be the cause of a failure, such as `Python 3.14`."""

    @property
    def logs(self) -> Path:
        return self.options.logs / self.subdirectory

    def of(self, application: str) -> "Scene":
        """Return the scene of another application in the same rehearsal.

        It is deployed once, without the failures and the load that the options ask for.
        """
        other = replace(
            self,
            options=replace(
                self.options,
                broken=None,
                strategy=None,
                previous=None,
                rollback=None,
                restore=None,
                instances=1,
                instances_max=None,
            ),
            project=Project(),
            pages=[],
            endpoints={},
            instances=[],
            prefix=f"{application}: ",
            subdirectory=application,
            restored=None,
            doubts=[],
        )
        other.logs.mkdir(exist_ok=True)
        return other

    @property
    def mounts(self) -> Path:
        return self.options.place / "mounts"

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage, and show its result."""
        stage = Stage(f"{self.prefix}{name}", begun=self.recorder.now())
        begun = time.monotonic()
        known = len(self.report.findings)
        try:
            with self.console.working(stage.name):
                yield stage
        except BaseException:
            stage.result = "failed"
            raise
        finally:
            stage.seconds = time.monotonic() - begun
            found = self.report.findings[known:]
            if name not in WITHOUT_CODE:
                found = [self._in_doubt(finding) for finding in found]
            if self.prefix:
                found = [replace(finding, stage=stage.name) for finding in found]
            self.report.findings[known:] = found
            severities = {finding.severity for finding in found}
            if Severity.ERROR in severities:
                stage.result = "failed"
            elif Severity.NOT_REHEARSED in severities and stage.result == "ok":
                stage.result = "partial"
            self.report.stages.append(stage)
            self.console.ended(stage, found)

    def doubt(self, output: str) -> None:
        """Note what a failed program lacked and may have on the platform: a host or a secret."""
        if host := inspection.unreachable(output):
            self.doubts.append(f"a connection to {host}")
        if name := inspection.unset_secret(output):
            self.doubts.append(f"the variable {name}")

    def _in_doubt(self, finding: Finding) -> Finding:
        """Return a failure of the project's code as not rehearsed if it may be due to a gap here.

        On the platform, where nothing is missing, the same code may succeed.
        """
        if finding.severity is not Severity.ERROR or not self.doubts:
            return finding
        return replace(
            finding,
            message=f"{finding.message}; the cause may be what is missing here:"
            f" {', '.join(dict.fromkeys(self.doubts))}",
            severity=Severity.NOT_REHEARSED,
        )

    def add_finding(
        self,
        stage: str,
        message: str,
        *,
        consequence: str = "",
        fix: str = "",
        severity: Severity = Severity.ERROR,
        place: Place | None = None,
        excerpt: str = "",
    ) -> None:
        """Add a finding; `Configuration.place` returns the place of a key."""
        self.report.findings.append(
            Finding(
                stage=stage,
                message=message,
                consequence=consequence,
                fix=fix,
                severity=severity,
                file=place.file if place else "",
                line=place.line if place else 0,
                excerpt=excerpt,
            )
        )

    def find_in(self, instance: Instance, stage: str, message: str, **details: Any) -> None:
        """Add a finding about an instance, unless an earlier instance has the same one."""
        known = {finding.message for finding in self.report.findings if finding.stage == stage}
        if instance.number == 1:
            self.add_finding(stage, message, **details)
        elif message not in known:
            self.add_finding(stage, f"instance {instance.number}: {message}", **details)

    def fleet(self, image: Image, label: str) -> Fleet:
        """Create the instances of a release, which are stopped at the end of the rehearsal."""
        return Fleet(
            [
                self.instance(image, label if number == 1 else f"{label}-{number}", number)
                for number in range(1, self.options.instances + 1)
            ]
        )

    def instance(self, image: Image, label: str, number: int = 1) -> Instance:
        """Create an instance of a release that is stopped at the end of the rehearsal."""
        port = self.ports.reserve()
        scratch = self.scratch / self.subdirectory / label
        inside = "/app" if self.bwrap else str(image.directory)
        socket = "/run/web/app.sock" if self.bwrap else str(scratch / "app.sock")
        instance = Instance(
            image,
            variables=runtime_variables(
                image.configuration,
                image.application,
                release=image.release,
                environment=self.environment,
                endpoints=self.endpoints,
                named=self.bwrap is not None,
                directory=inside,
                port=port,
                socket=socket,
            ),
            hosts={host_name(name): endpoint.ip for name, endpoint in self.endpoints.items()},
            mounts=prepare_mounts(image, self.mounts, bwrap=self.bwrap, number=number),
            bwrap=self.bwrap,
            nginx=nginx(),
            port=port,
            web_port=self.ports.reserve(),
            scratch=scratch,
            logs=self.logs,
            label=label,
            number=number,
        )
        self.stack.push_async_callback(instance.close)
        self.instances.append(instance)
        name = image.application
        self.recorder.watch(name if label == "app" else f"{name} ({label})", instance)
        return instance

    async def hook(self, instance: Instance, text: str | None) -> Result | None:
        """Run a hook, if there is one."""
        if not text:
            return None
        return await instance.run(text, self.logs / "hooks.log", show=self.console.show)

    def judge(
        self, result: Result | None, stage: Stage, instance: Instance, keys: tuple[str, ...]
    ) -> bool:
        """Return whether a command succeeded; add a finding if it failed."""
        if result is None or result.code == 0:
            return True
        image = instance.image
        self.doubt(result.output)
        consequences = {
            "deploy": "the platform continues, and the new release serves although the hook failed",
            "post_start": "the platform reports the failure and continues",
            "post_deploy": "the platform reports the failure and continues",
        }
        names = {"deploy": "the deploy hook", "post_deploy": "the post_deploy hook"}
        kinds = {"crons": "cron", "operations": "operation", "run": "task"}
        name = names.get(keys[-1], keys[-1])
        if keys[0] in kinds:
            name = f"the {kinds[keys[0]]} {keys[-1] if keys[1:] else image.application}"
        self.find_in(
            instance,
            stage.name,
            f"{name} {result.ending}",
            consequence=consequences.get(keys[-1], ""),
            fix=inspection.suggest_fix(result.output),
            place=image.configuration.place("applications", image.application, *keys),
            severity=Severity.WARNING if "crons" in keys else Severity.ERROR,
            excerpt=result.cause,
        )
        return False

    async def wait_until_ready(self, stage: str, port: int | None = None) -> None:
        """Wait until the readiness URL responds with 200; add a finding if it does not."""
        address = f"http://127.0.0.1:{port}" if port else self.front.address
        if self.project.ready and not await inspection.is_ready(
            address + self.project.ready, READY_SECONDS, host=self.environment.domain
        ):
            self.add_finding(
                stage,
                f"{self.project.ready} did not respond with 200 within {READY_SECONDS:.0f} s",
                consequence="the application reports that it cannot serve requests",
                excerpt=await self.describe_responses(),
            )

    @property
    def databases(self) -> list[Databases]:
        """Return the PostgreSQL servers."""
        return self.services.databases if self.services else []

    async def with_databases(self, do: Callable[[Databases], Awaitable[None]]) -> None:
        """Call `do` for each PostgreSQL server."""
        for databases in self.databases:
            await do(databases)

    async def describe_responses(self, address: str = "") -> str:
        """Return the current responses of a page and of the readiness URL."""
        ready = [Page(page.host, self.project.ready or "") for page in self.pages[:1]]
        return await describe_responses(
            address or self.front.address,
            [*self.pages[-1:], *(ready if self.project.ready else [])],
        )

    async def visits(self) -> list[Visit]:
        """Return the visits of the load; by default one for each page."""
        if self.project.load:
            return self.project.load
        visits = []
        async with httpx.AsyncClient(base_url=self.front.address, trust_env=False) as client:
            for page in self.pages:
                status = 200
                if not self.project.pages:  # a redirect to a login, for example
                    with suppress(httpx.HTTPError):
                        status = (await client.get(page.path)).status_code
                request = Request(path=page.path, status=status if status < 500 else 200)
                visits.append(Visit(share=1, requests=[request]))
        return visits
