"""The life of a deploy, stage by stage, in the platform's order."""

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from rehearsal import inspection, services
from rehearsal.configuration import Configuration, ConfigurationError, read
from rehearsal.findings import Finding, Weight
from rehearsal.front import Front, FrontError, front, nginx
from rehearsal.image import (
    BuildFailed,
    Image,
    Images,
    check_python,
    fingerprint,
    freeze,
    hidden_by_mounts,
)
from rehearsal.instance import Instance, prepare_mounts
from rehearsal.load import steady
from rehearsal.locks import locked
from rehearsal.network import Ports
from rehearsal.probe import probe, sight
from rehearsal.project import read as read_project
from rehearsal.report import Console, Hold, Report, Stage
from rehearsal.sandbox import Result, bubblewrap
from rehearsal.services import Databases, ServiceError
from rehearsal.tree import Tree, find, uncommitted
from rehearsal.validation import validate
from rehearsal.variables import Environment, runtime_variables

BREAKS = {
    "build": "the build hook fails at its end",
    "publish": "the mounts cannot be written to during the deploy hook",
    "migration": "every change of the database's schema fails",
    "database": "the database does not answer until the deploy hook has run for a while",
    "kill": "the processes of the running application are killed under load",
}
STEADY_SECONDS = 2.0  # of load before and after a switch
DATABASE_SECONDS = 3.0  # that a broken database stays away from the deploy hook
READY_SECONDS = 30.0

Complete = Callable[[Report], Awaitable[None]]


class Stopped(Exception):
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


@dataclass
class Rehearsal:
    """One rehearsal, from the commit to the end of the application."""

    options: Options
    console: Console
    databases: Databases | None = None
    """None where the application has no relationship with one."""
    report: Report = field(default_factory=lambda: Report(title=""))

    async def run(self, complete: Complete) -> Report:
        """Go through the stages and return what was found.

        Args:
            complete: called with the finished report while the application still runs.

        Raises:
            TreeError, ProjectError, ServiceError: nothing could be rehearsed; one sentence each.
        """
        self.begun = time.monotonic()
        self.bwrap = bubblewrap() if self.options.isolated else None
        async with AsyncExitStack() as stack:
            await self._enter(stack)
            with suppress(Stopped):
                await self._rehearse(stack)
            self.report.seconds = time.monotonic() - self.begun
            await complete(self.report)
        return self.report

    async def _enter(self, stack: AsyncExitStack) -> None:
        """Find the tree, and take the environment for ourselves."""
        options = self.options
        self.tree = find(options.repository, options.revision)
        self.place = options.state / "environments" / options.environment
        self.logs = self.place / "logs"
        self.place.mkdir(parents=True, exist_ok=True)

        def waiting(holder: str) -> None:
            self.console.say(
                f"Waiting for another rehearsal of {options.environment} (process {holder}) to end"
            )

        await stack.enter_async_context(locked(self.place / "lock", waiting))
        self.begun = time.monotonic()
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir()
        # Short, because the path of a Unix socket may have about 100 bytes.
        temporary = tempfile.TemporaryDirectory(prefix="rehearsal-")
        self.scratch = Path(stack.enter_context(temporary))
        self.ports = Ports()
        stack.callback(self.ports.close)
        self.environment = Environment(
            name="main" if options.environment_type == "production" else options.environment,
            type=options.environment_type,
            entropy=_kept_word(options.state / "entropy"),
        )
        self.report.title = (
            f"{self.tree.title} in {options.environment} ({options.environment_type})"
        )
        self.console.say(f"Rehearsing {self.report.title}")

    async def _rehearse(self, stack: AsyncExitStack) -> None:
        options = self.options
        configuration = self._validate(self.tree, "tree")
        name = self._choose_application(configuration)
        images = Images(options.state, bwrap=self.bwrap, entropy=self.environment.entropy)
        before = None
        if options.previous is not None:
            tree = find(options.repository, options.previous)
            self.report.previous = tree.title
            old = self._read(tree, "previous")
            before = await self._build(images, tree, old, name, stage="build before")
        image = await self._build(images, self.tree, configuration, name, stage="build")
        with self.stage("freeze") as stage:
            for built in filter(None, [image, before]):
                self._freeze(built, stage)
        frozen = fingerprint(image)
        await self._run_services(stack, image)
        await self._run_front(stack, image)
        if self.options.broken == "database":
            await self._with_databases(Databases.shut)
        if before is None:
            live = await self._first(stack, image)
        elif options.strategy == "rolling":
            live = await self._under_load(stack, before, image, self._roll)
        else:
            live = await self._under_load(stack, before, image, self._stop_and_start)
        if live.is_serving:
            await self._look(live)
        else:
            self.report.seen.append(f"After the deploy: {await self._sight()}")
        await self._afterwards(live)
        if options.broken == "kill":
            await self._kill(live)
        if options.keep:
            self.report.address = self.front.address
        elif live.is_serving:
            await self._stop(live)
        self._inspect(live, frozen)

    # Before anything runs

    def _read(self, tree: Tree, name: str) -> Configuration:
        """Read the configuration of a tree that is checked out for it."""
        return read(tree.export(self.scratch / name))

    def _validate(self, tree: Tree, name: str) -> Configuration:
        with self.stage("validate") as stage:
            directory = tree.export(self.scratch / name)
            files = tree.files()
            self.project = read_project(directory)
            found = validate(directory, files=files, schema=self.options.schema)
            self.report.findings += found
            changes = uncommitted(tree)
            if changes:
                self.find(
                    "validate",
                    f"{changes} files have changes that are not committed",
                    consequence="they are not part of a push, nor of this rehearsal",
                    weight=Weight.NOTE,
                )
            stage.detail = f"{len(files)} files"
            try:
                configuration = read(directory)
            except ConfigurationError as error:
                if not found:
                    self.find("validate", str(error))
                raise Stopped from None
        if not self.options.force and any(f.weight is Weight.ERROR for f in found):
            self.console.say("  Stopped here; --force goes on to see what would come of it")
            raise Stopped
        return configuration

    def _choose_application(self, configuration: Configuration) -> str:
        names = list(configuration.applications)
        name = self.options.application or self.project.application
        if name is None and len(names) == 1:
            return names[0]
        if name in configuration.applications:
            return str(name)
        raise ServiceError(
            f"Say which application is meant, with --application: {', '.join(names)}."
        )

    async def _build(
        self, images: Images, tree: Tree, configuration: Configuration, name: str, *, stage: str
    ) -> Image:
        application = configuration.applications[name]
        if self.options.broken == "build" and stage == "build":
            hooks = application.hooks
            broken = f"{hooks.build or ''}\necho 'the rehearsal lets this build fail' >&2; exit 1"
            configuration = _with_hook(configuration, name, build=broken)
        log = self.logs / "build.log"
        with self.stage(stage) as entry:
            self.report.findings += check_python(application)
            try:
                image = await images.build(
                    tree,
                    configuration,
                    name,
                    log=log,
                    show=self.console.show,
                    again=self.options.rebuild or self.options.broken == "build",
                    # Without mounts of its own, an image is bound to its environment.
                    variant="" if self.bwrap else self.options.environment,
                )
            except BuildFailed as error:
                self.find(
                    stage,
                    f"the build hook ends with exit code {error.result.code}",
                    consequence="there is no deploy; the release before goes on serving",
                    mend=inspection.advice(error.result.output),
                    line=configuration.line("applications", name, "hooks", "build"),
                    excerpt=error.result.tail(),
                )
                raise Stopped from None
            self.report.findings += hidden_by_mounts(image)
            took = f"as built before, in {image.seconds:.1f} s" if image.reused else "new"
            entry.detail = f"{image.megabytes:.0f} MB, {took}"
        return image

    def _freeze(self, image: Image, stage: Stage) -> None:
        mounts = prepare_mounts(image, self.place / "mounts", bwrap=self.bwrap)
        stage.detail = f"writable: /tmp{''.join(f', {key}' for key in mounts)}"
        if self.bwrap is None:
            freeze(image)
            self.find(
                "freeze",
                "there is no bubblewrap here, so the image is a copy without write permission",
                consequence="not proven: that nothing is written outside mounts at runtime, that"
                " mounts hide what the image has there, and that only the container's files are"
                " used",
                mend="install it (Debian package: bubblewrap)",
                weight=Weight.NOTE,
            )

    async def _run_services(self, stack: AsyncExitStack, image: Image) -> None:
        options = self.options
        with self.stage("services") as stage:
            names = [
                service
                for service, _ in image.description.endpoints().values()
                if image.configuration.services[service].kind == "postgresql"
            ]
            if names:
                self.databases = await stack.enter_async_context(Databases.running(options.state))
            if options.fresh or options.clone_of:
                await self._clear(names)
            if options.clone_of:
                await self._clone(options.clone_of, names)
            self.endpoints = await stack.enter_async_context(
                services.running(
                    image.configuration,
                    image.description,
                    environment=options.environment,
                    state=self.place / "services",
                    databases=self.databases,
                    found=self.report.findings,
                )
            )
            stage.detail = ", ".join(
                f"{name}: {endpoint.type}" for name, endpoint in self.endpoints.items()
            )
            if options.clone_of:
                stage.detail += f", cloned from {options.clone_of}"

    async def _clear(self, names: list[str]) -> None:
        """Remove the environment's data."""
        if self.databases:
            for service in names:
                await self.databases.drop(self.databases.name(self.options.environment, service))
        for directory in (self.place / "mounts").glob("*"):
            services.empty(directory)

    async def _clone(self, source: str, names: list[str]) -> None:
        """Copy the data of another environment."""
        place = self.options.state / "environments" / source
        if not place.exists():
            raise ServiceError(f"There is nothing to clone: {source} was never rehearsed here.")
        if self.databases:
            for service in names:
                template = self.databases.name(source, service)
                if not await self.databases.exists(template):
                    raise ServiceError(f"There is nothing to clone: {source} has no {service}.")
                name = self.databases.name(self.options.environment, service)
                await self.databases.create(name, template=template)
        if (place / "mounts").exists():
            shutil.copytree(
                place / "mounts", self.place / "mounts", symlinks=True, dirs_exist_ok=True
            )

    async def _run_front(self, stack: AsyncExitStack, image: Image) -> None:
        if nginx() is None:
            self.find(
                "front",
                "nginx is not installed (Debian package: nginx-light), so nothing stands before"
                " the application",
                consequence="not proven: how files are served, and what the router does",
                weight=Weight.ERROR if os.environ.get("CI") else Weight.NOTE,
            )
        with self.stage("front") as stage:
            try:
                self.front: Front = await stack.enter_async_context(
                    front(
                        image.configuration.routes,
                        application=image.application,
                        domain=self.environment.domain,
                        port=self.ports.reserve(self.options.port),
                        scratch=self.scratch / "router",
                        log=self.logs / "router.log",
                    )
                )
            except FrontError as error:
                self.find("front", "the router does not take the routes", excerpt=str(error))
                raise Stopped from None
            stage.detail = f"{self.front.address} for https://{self.environment.domain}/"

    # The deploy

    def _instance(self, stack: AsyncExitStack, image: Image, label: str) -> Instance:
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
            mounts=prepare_mounts(image, self.place / "mounts", bwrap=self.bwrap),
            bwrap=self.bwrap,
            nginx=nginx(),
            port=port,
            web_port=self.ports.reserve(),
            scratch=scratch,
            logs=self.logs,
            label=label,
        )
        stack.push_async_callback(instance.close)
        return instance

    async def _first(self, stack: AsyncExitStack, image: Image) -> Instance:
        """Deploy where nothing runs yet."""
        instance = self._instance(stack, image, "app")
        gate = self.front.gate
        gate.hold()
        hold = Hold()
        await self._bring_up(instance, hold)
        await gate.send_to(instance.entrance)
        gate.release()
        self.report.hold = hold
        return instance

    async def _bring_up(self, instance: Instance, hold: Hold, prefix: str = "") -> bool:
        """Run `start`, `post_start` and the deploy hook; tell whether all went well."""
        commands = instance.application.web.commands
        begun = time.monotonic()
        await self._check_environment(instance)
        with self.stage(f"{prefix}start") as stage:
            begun = time.monotonic()
            await instance.start()
            # As on the platform, this does not wait until the application is there.
            post_start = asyncio.create_task(self._hook(instance, commands.post_start))
            up = await inspection.wait_until_up(instance, self.find, stage.name)
            instance.is_serving = up
            hold.parts["start"] = time.monotonic() - begun
            stage.detail = "accepts connections" if up else ""
        if commands.post_start:
            with self.stage(f"{prefix}post_start") as stage:
                begun = time.monotonic()
                result = await post_start
                hold.parts["post_start"] = time.monotonic() - begun
                self._judge(result, stage, instance, ("web", "commands", "post_start"))
        else:
            await post_start
        deployed = True
        hook = instance.application.hooks.deploy
        if hook:
            with self.stage(f"{prefix}deploy") as stage:
                begun = time.monotonic()
                result = await self._deploy_hook(instance, hook)
                hold.parts["deploy"] = time.monotonic() - begun
                deployed = self._judge(result, stage, instance, ("hooks", "deploy"))
        return up and deployed

    async def _hook(self, instance: Instance, text: str | None) -> Result | None:
        if not text:
            return None
        return await instance.run(text, self.logs / "hooks.log", show=self.console.show)

    async def _deploy_hook(self, instance: Instance, hook: str) -> Result | None:
        """Run it, with what shall be broken meanwhile."""
        broken = self.options.broken
        opening = None
        if broken == "publish":
            instance.read_only_mounts = True
        elif broken == "migration":
            await self._with_databases(Databases.forbid_changes)
        elif broken == "database":
            # Past the router, which holds requests now.
            seen = await self._sight(f"http://127.0.0.1:{instance.entrance}")
            self.report.seen.append(f"Without a database: {seen}")
            opening = asyncio.create_task(self._open_database(DATABASE_SECONDS))
        try:
            return await self._hook(instance, hook)
        finally:
            instance.read_only_mounts = False
            if broken == "migration":
                await self._with_databases(Databases.allow_changes)
            if opening:
                await opening

    def _judge(
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
        how = "does not end" if result.timed_out else f"ends with exit code {result.code}"
        self.find(
            stage.name,
            f"{keys[-1] if 'crons' not in keys else ' '.join(keys[:2])} {how}",
            consequence=consequences.get(keys[-1], ""),
            mend=inspection.advice(result.output),
            line=image.configuration.line("applications", image.application, *keys),
            excerpt=result.tail(),
        )
        return False

    async def _check_environment(self, instance: Instance) -> None:
        self.report.findings += await inspection.environment_file(
            instance, self.logs / "environment.log"
        )

    # One release after the other

    async def _under_load(
        self,
        stack: AsyncExitStack,
        before: Image,
        image: Image,
        switch: Callable[[AsyncExitStack, Instance, Image, Image], Awaitable[Instance]],
    ) -> Instance:
        """Let the release before serve, and replace it while visitors come."""
        old = self._instance(stack, before, "before")
        if not await self._bring_up(old, Hold(), "before: "):
            self.find(
                "before: deploy",
                f"the release before, {self.report.previous}, does not come up",
                mend="name one that does, with --from",
            )
            raise Stopped
        await self.front.gate.send_to(old.entrance)
        self.front.gate.release()
        await self._wait_until_ready("before: start")
        try:
            generator = steady(
                self.front.address,
                self.project.rate,
                self.project.visits(),
                self.logs / "load.log",
            )
            async with generator as load:
                await asyncio.sleep(STEADY_SECONDS)
                live = await switch(stack, old, before, image)
                await asyncio.sleep(STEADY_SECONDS)
                with self.stage("load") as stage:
                    numbers = await load.stop()
                    await self._judge_load(numbers, stage)
        except TimeoutError:
            self.find(
                "load",
                "the release before does not answer the load as it must",
                mend="see [[tool.rehearsal.load]] in pyproject.toml",
                excerpt=inspection.tail(self.logs / "load.log"),
            )
            raise Stopped from None
        return live

    async def _roll(
        self, stack: AsyncExitStack, old: Instance, before: Image, image: Image
    ) -> Instance:
        """Rolling: a clone of the old release serves until the new one is ready."""
        gate = self.front.gate
        clone = self._instance(stack, before, "clone")
        with self.stage("clone") as stage:
            await clone.start()
            await self._hook(clone, clone.application.web.commands.post_start)
            if not await inspection.wait_until_up(clone, self.find, stage.name):
                raise Stopped
            await gate.send_to(clone.entrance)
            stage.detail = "has taken the traffic"
        await self._end(old, "stop before")
        new = self._instance(stack, image, "app")
        await self._bring_up(new, Hold())
        await self._wait_until_ready("switch", new.entrance)
        with self.stage("switch") as stage:
            await gate.send_to(new.entrance)
            stage.detail = "the new release has the traffic"
        await self._end(clone, "stop clone")
        self.report.hold = Hold()
        return new

    async def _stop_and_start(
        self, stack: AsyncExitStack, old: Instance, before: Image, image: Image
    ) -> Instance:
        """Requests wait from the stop of the old release until the deploy hook has ended."""
        gate = self.front.gate
        gate.hold()
        await gate.send_to(None)  # what cannot be held is refused
        hold = Hold()
        begun = time.monotonic()
        # Not waited for: what was let through before must be answered all the same.
        await self._end(old, "stop before")
        hold.parts["stop"] = time.monotonic() - begun
        new = self._instance(stack, image, "app")
        await self._bring_up(new, hold)
        await gate.send_to(new.entrance)
        gate.release()
        hold.waited, hold.longest = gate.held_total, gate.longest_hold
        self.report.hold = hold
        return new

    async def _end(self, instance: Instance, name: str) -> None:
        with self.stage(name) as stage:
            end = await instance.stop()
            self.report.findings += inspection.judge_end(end, stage.name)
            stage.detail = f"exit code {end.code}"

    async def _wait_until_ready(self, stage: str, port: int | None = None) -> None:
        """Wait until the application says that it serves the schema it finds."""
        address = f"http://127.0.0.1:{port}" if port else self.front.address
        if self.project.ready and not await inspection.is_ready(
            address + self.project.ready, READY_SECONDS, host=self.environment.domain
        ):
            self.find(
                stage, f"{self.project.ready} does not become 200", excerpt=await self._sight()
            )

    async def _judge_load(self, numbers: dict[str, object], stage: Stage) -> None:
        self.report.load, found = await inspection.judge_load(
            numbers,
            self.databases,
            self._databases(),
            refuses_unsafe=self.options.strategy == "stop-start",
        )
        self.report.findings += found
        stage.detail = f"{self.report.load['requests']} requests"

    # Afterwards

    async def _look(self, live: Instance) -> None:
        with self.stage("probe") as stage:
            if self.project.ready and not self.report.exit_code:
                await self._wait_until_ready(stage.name)
            found, stage.detail = await probe(
                self.front.address, self.project, with_files=nginx() is not None
            )
            self.report.findings += found
            if self.options.broken or self.report.exit_code:
                self.report.seen.append(f"After the deploy: {await self._sight()}")
            if live.web and live.web.codes:
                self.find(
                    stage.name,
                    f"the start command has ended {len(live.web.codes)} times,"
                    f" with exit code {live.web.codes[-1]}",
                    consequence="the platform starts it again at once, for ever",
                    excerpt=inspection.tail(live.log),
                )

    async def _afterwards(self, live: Instance) -> None:
        hook = live.application.hooks.post_deploy
        if hook:
            with self.stage("post_deploy") as stage:
                self._judge(await self._hook(live, hook), stage, live, ("hooks", "post_deploy"))
        if live.application.crons:
            with self.stage("crons") as stage:
                for name, cron in live.application.crons.items():
                    result = await live.run(
                        cron.commands.start,
                        self.logs / f"cron-{name}.log",
                        show=self.console.show,
                        seconds=cron.timeout * 60,
                    )
                    self._judge(result, stage, live, ("crons", name))
                stage.detail = f"each once: {', '.join(live.application.crons)}"
        if live.workers:
            with self.stage("workers") as stage:
                self.report.findings += inspection.judge_workers(live)
                stage.detail = ", ".join(worker.name for worker in live.workers)

    async def _kill(self, live: Instance) -> None:
        """Kill the application under load, and see what comes of it."""
        with self.stage("kill") as stage:
            async with steady(
                self.front.address,
                self.project.rate,
                self.project.visits(),
                self.logs / "load.log",
            ) as load:
                killed = inspection.kill_processes(live)
                begun = time.monotonic()
                up = await inspection.wait_until_up(live, self.find, stage.name)
                away = time.monotonic() - begun
                await asyncio.sleep(STEADY_SECONDS)
                await self._judge_load(await load.stop(), stage)
            self.report.seen.append(
                f"{killed} processes were killed; the application"
                f" {f'was back after {away:.2f} s' if up else 'did not come back'}"
            )

    async def _stop(self, live: Instance) -> None:
        with self.stage("stop") as stage:
            end, answered, lost = await inspection.stop_in_flight(
                live, self.project.pages[0], host=self.environment.domain
            )
            self.report.findings += inspection.judge_end(end, stage.name)
            if lost:
                self.find(
                    stage.name,
                    f"{lost} of the requests in flight were lost at SIGTERM",
                    consequence="visitors see an error at every deploy",
                    mend="on SIGTERM stop accepting, answer what has begun, then end",
                )
            stage.detail = (
                f"SIGTERM with {inspection.VISITORS} requests in flight: {answered} answered,"
                f" {lost} lost, exit code {end.code} after {end.seconds:.2f} s"
            )

    def _inspect(self, live: Instance, frozen: str) -> None:
        self.report.findings += inspection.logs(live)
        if fingerprint(live.image) != frozen:
            self.find(
                "inspect",
                "something was written into the image at runtime",
                consequence="on the platform that fails: it is read-only",
                mend="write to a mount or to /tmp",
            )

    # Small things

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage, and show how it went."""
        stage = Stage(name)
        begun = time.monotonic()
        known = len(self.report.findings)
        try:
            with self.console.working(name):
                yield stage
        except asyncio.CancelledError:
            raise
        except BaseException:
            stage.result = "failed"
            raise
        finally:
            stage.seconds = time.monotonic() - begun
            found = self.report.findings[known:]
            if any(finding.weight is Weight.ERROR for finding in found):
                stage.result = "failed"
            self.report.stages.append(stage)
            self.console.ended(stage, found)

    def find(
        self,
        stage: str,
        message: str,
        *,
        consequence: str = "",
        mend: str = "",
        weight: Weight = Weight.ERROR,
        line: int = 0,
        excerpt: str = "",
    ) -> None:
        """Add a finding."""
        self.report.findings.append(
            Finding(
                stage=stage,
                message=message,
                consequence=consequence,
                mend=mend,
                weight=weight,
                file=".upsun/config.yaml" if line else "",
                line=line,
                excerpt=excerpt,
            )
        )

    def _databases(self) -> list[str]:
        """Return the names of the databases that the application uses."""
        return [
            endpoint.path
            for endpoint in self.endpoints.values()
            if endpoint.scheme == "pgsql" and endpoint.path
        ]

    async def _with_databases(self, do: Callable[[Databases, str], Awaitable[None]]) -> None:
        """Do something with each database that the application uses."""
        if self.databases:
            for name in self._databases():
                await do(self.databases, name)

    async def _open_database(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._with_databases(Databases.open)

    async def _sight(self, address: str = "") -> str:
        """Return what visitors see just now."""
        paths = [self.project.pages[-1], *filter(None, [self.project.ready])]
        return await sight(address or self.front.address, paths, host=self.environment.domain)


def _with_hook(configuration: Configuration, name: str, **hooks: str) -> Configuration:
    """Return the configuration with another hook."""
    application = configuration.applications[name]
    changed = application.model_copy(update={"hooks": application.hooks.model_copy(update=hooks)})
    document = configuration.document.model_copy(
        update={"applications": {**configuration.applications, name: changed}}
    )
    return replace(configuration, document=document)


def _kept_word(file: Path) -> str:
    """Return a random word that is made once; the project's entropy stays the same for ever."""
    try:
        return file.read_text()
    except FileNotFoundError:
        word = secrets.token_hex(28).upper()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_text(word)
        return word
