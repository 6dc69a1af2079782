"""What all stages of one rehearsal share."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rehearsal import inspection
from rehearsal.configuration import CONFIG_FILE
from rehearsal.findings import Finding, Severity
from rehearsal.front import Front, nginx
from rehearsal.image import Image
from rehearsal.instance import Instance, prepare_mounts
from rehearsal.network import Ports
from rehearsal.probe import describe_responses
from rehearsal.project import Project
from rehearsal.report import Console, Report, Stage
from rehearsal.sandbox import Result
from rehearsal.services import Databases
from rehearsal.variables import Endpoint, Environment, runtime_variables

READY_SECONDS = 30.0


class RehearsalStoppedError(Exception):
    """There is no sense in going on; the findings say why."""


@dataclass(frozen=True)
class Options:
    """What was asked for; `rehearsal/__main__.py` says what it means."""

    repository: Path
    state: Path
    revision: str = "HEAD"
    application: str | None = None
    environment: str = "production"
    environment_type: str = "production"
    clone_of: str | None = None
    strategy: str | None = None
    previous: str | None = None
    broken: str | None = None
    fresh: bool = False
    rebuild: bool = False
    force: bool = False
    isolated: bool = True
    keep: bool = False
    schema: Path | None = None
    port: int = 0
    command: str = "upsun-rehearse"
    """What rehearses this repository once more, to be named in messages."""

    @property
    def place(self) -> Path:
        """Return what is kept of the environment."""
        return self.state / "environments" / self.environment

    @property
    def logs(self) -> Path:
        return self.place / "logs"

    @property
    def kept(self) -> Path:
        """Return a file that is there while a rehearsal stays because of `--keep`."""
        return self.place / "kept"

    @property
    def stop_command(self) -> str:
        """Return what ends a rehearsal that is kept."""
        other = f" --environment {self.environment}" if self.environment != "production" else ""
        return f"{self.command} --stop{other}"


@dataclass
class Scene:
    """One rehearsal: what was asked for, what runs, and what was found."""

    options: Options
    console: Console
    report: Report
    stack: AsyncExitStack
    """Ends what was started, the last first."""
    scratch: Path
    """What is not kept."""
    environment: Environment
    bwrap: str | None
    ports: Ports
    front: Front = field(init=False)
    project: Project = field(default_factory=Project)
    databases: Databases | None = None
    """None where the application has no relationship with one."""
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    """All that were prepared, also those that have ended."""

    @property
    def logs(self) -> Path:
        return self.options.logs

    @property
    def mounts(self) -> Path:
        return self.options.place / "mounts"

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage, and show how it went."""
        stage = Stage(name)
        begun = time.monotonic()
        known = len(self.report.findings)
        try:
            with self.console.working(name):
                yield stage
        except BaseException:
            stage.result = "failed"
            raise
        finally:
            stage.seconds = time.monotonic() - begun
            found = self.report.findings[known:]
            if any(finding.severity is Severity.ERROR for finding in found):
                stage.result = "failed"
            self.report.stages.append(stage)
            self.console.ended(stage, found)

    def add_finding(
        self,
        stage: str,
        message: str,
        *,
        consequence: str = "",
        fix: str = "",
        severity: Severity = Severity.ERROR,
        line: int = 0,
        excerpt: str = "",
    ) -> None:
        """Add a finding."""
        self.report.findings.append(
            Finding(
                stage=stage,
                message=message,
                consequence=consequence,
                fix=fix,
                severity=severity,
                file=CONFIG_FILE if line else "",
                line=line,
                excerpt=excerpt,
            )
        )

    def instance(self, image: Image, label: str) -> Instance:
        """Prepare a running release, and see to it that it ends with the rehearsal."""
        port = self.ports.reserve()
        scratch = self.scratch / label
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
                directory=inside,
                port=port,
                socket=socket,
            ),
            mounts=prepare_mounts(image, self.mounts, bwrap=self.bwrap),
            bwrap=self.bwrap,
            nginx=nginx(),
            port=port,
            web_port=self.ports.reserve(),
            scratch=scratch,
            logs=self.logs,
            label=label,
        )
        self.stack.push_async_callback(instance.close)
        self.instances.append(instance)
        return instance

    async def hook(self, instance: Instance, text: str | None) -> Result | None:
        if not text:
            return None
        return await instance.run(text, self.logs / "hooks.log", show=self.console.show)

    def judge(
        self, result: Result | None, stage: Stage, instance: Instance, keys: tuple[str, ...]
    ) -> bool:
        """Tell whether a command went well; say so if it did not."""
        if result is None or result.code == 0:
            return True
        image = instance.image
        consequences = {
            "deploy": "the platform goes on: the new release serves without what the hook"
            " should have done",
            "post_start": "the platform reports it and goes on",
            "post_deploy": "the platform reports it and goes on",
        }
        self.add_finding(
            stage.name,
            f"{keys[-1] if 'crons' not in keys else ' '.join(keys[:2])} {result.ending}",
            consequence=consequences.get(keys[-1], ""),
            fix=inspection.suggest_fix(result.output),
            line=image.configuration.line("applications", image.application, *keys),
            excerpt=result.tail(),
        )
        return False

    async def wait_until_ready(self, stage: str, port: int | None = None) -> None:
        """Wait until the application says that it serves the schema it finds."""
        address = f"http://127.0.0.1:{port}" if port else self.front.address
        if self.project.ready and not await inspection.is_ready(
            address + self.project.ready, READY_SECONDS, host=self.environment.domain
        ):
            self.add_finding(
                stage,
                f"{self.project.ready} does not become 200",
                excerpt=await self.describe_responses(),
            )

    def database_names(self) -> list[str]:
        """Return the names of the databases that the application uses."""
        return [
            endpoint.path
            for endpoint in self.endpoints.values()
            if endpoint.scheme == "pgsql" and endpoint.path
        ]

    async def with_databases(self, do: Callable[[Databases, str], Awaitable[None]]) -> None:
        """Do something with each database that the application uses."""
        if self.databases:
            for name in self.database_names():
                await do(self.databases, name)

    async def describe_responses(self, address: str = "") -> str:
        """Return what visitors see just now."""
        paths = [self.project.pages[-1], *filter(None, [self.project.ready])]
        return await describe_responses(
            address or self.front.address, paths, host=self.environment.domain
        )
