"""Deploy a release: start it, run the deploy hook, and replace the previous release."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Protocol

from rehearsal import inspection
from rehearsal.configuration import Configuration
from rehearsal.fleet import Fleet
from rehearsal.image import Image
from rehearsal.inspection import Loss
from rehearsal.instance import ExitStatus, Instance
from rehearsal.load import steady
from rehearsal.report import Hold, Stage
from rehearsal.sandbox import Result
from rehearsal.scene import RehearsalStoppedError, Scene
from rehearsal.services import Databases, ServiceError
from rehearsal.services.base import family

STEADY_SECONDS = 2.0  # of load before and after a switch
DATABASE_SECONDS = 3.0  # how long `--break database` lasts once the deploy hook has started
BREAKS = {
    "build": "the build hook fails at its end",
    "publish": "mounts are read-only during the deploy hook",
    "migration": "every statement that changes the schema of a PostgreSQL database fails",
    "database": "PostgreSQL refuses connections until the deploy hook has run for"
    f" {DATABASE_SECONDS:.0f} s",
    "kill": "the processes of the running application are killed under load",
}
NEEDS_POSTGRESQL = {"database", "migration"}


def check_break(configuration: Configuration, broken: str | None) -> None:
    """Check that --break has something to break.

    Raises:
        ServiceError: it needs PostgreSQL, which no application uses.
    """
    used = {
        service
        for application in configuration.applications.values()
        for service, _ in application.endpoints().values()
    }
    kinds = {configuration.services[name].kind for name in used & set(configuration.services)}
    if broken in NEEDS_POSTGRESQL and "postgresql" not in map(family, kinds):
        raise ServiceError(
            f"--break {broken} needs PostgreSQL, and this project uses"
            f" {', '.join(sorted(kinds)) or 'no services'}."
        )


async def first(scene: Scene, image: Image) -> Fleet:
    """Deploy the first release of an environment."""
    fleet = scene.fleet(image, "app")
    gate = scene.front.gate
    gate.hold()
    hold = Hold(begun=scene.recorder.now())
    await bring_up(scene, fleet, hold, broken=scene.options.broken)
    # The others get requests when their pages have been checked.
    await gate.send_to(fleet.first.entrance)
    gate.release()
    hold.ended = scene.recorder.now()
    if not scene.prefix:
        scene.report.hold = hold
    return fleet


async def bring_up(
    scene: Scene, fleet: Fleet, hold: Hold, prefix: str = "", *, broken: str | None = None
) -> bool:
    """Run `start` and `post_start` in all instances, then the deploy hook in the first one.

    Args:
        scene: the rehearsal.
        fleet: the instances of the release.
        hold: receives the duration of each step.
        prefix: the start of the names of the stages.
        broken: the failure that --break asks for.

    Returns:
        Whether all of them succeeded.
    """
    commands = fleet.application.web.commands
    if broken == "database":
        await scene.with_databases(Databases.block_connections)
    with scene.stage(f"{prefix}start") as stage:
        begun = time.monotonic()
        try:
            await fleet.start()
        except (ValueError, RuntimeError) as error:
            scene.add_finding(
                stage.name,
                "the web server rejects the configuration in web.locations",
                consequence="the web server does not start",
                fix="correct the locations; the output below names the problem",
                excerpt=str(error),
            )
            raise RehearsalStoppedError from None
        # As on the platform, post_start does not wait until the application accepts connections.
        post_starts = asyncio.gather(
            *(scene.hook(each, commands.post_start) for each in fleet.instances)
        )
        hook = fleet.application.hooks.deploy
        up = await wait_until_up(scene, fleet, stage.name, is_final=hook is None)
        hold.parts["start"] = time.monotonic() - begun
        if not up:
            scene.doubt(inspection.tail(fleet.first.log, 100))
        if up:
            stage.detail = "accepts connections" if fleet.first.is_passing else "serves files only"
    if commands.post_start:
        with scene.stage(f"{prefix}post_start") as stage:
            begun = time.monotonic()
            results = await post_starts
            hold.parts["post_start"] = time.monotonic() - begun
            for each, result in zip(fleet.instances, results, strict=True):
                scene.judge(result, stage, each, ("web", "commands", "post_start"))
    else:
        await post_starts
    deployed = True
    if hook:
        with scene.stage(f"{prefix}deploy") as stage:
            begun = time.monotonic()
            result = await deploy_hook(scene, fleet.first, hook, broken)
            hold.parts["deploy"] = time.monotonic() - begun
            deployed = scene.judge(result, stage, fleet.first, ("hooks", "deploy"))
        crashing = [each for each in fleet.instances if each.is_crash_looping]
        if crashing:
            # The platform has been restarting it all the time, and now the hook has run.
            with scene.stage(f"{prefix}restart") as stage:
                begun = time.monotonic()
                await asyncio.gather(*(each.web.restart() for each in crashing if each.web))
                up = await wait_until_up(scene, fleet, stage.name)
                hold.parts["restart"] = time.monotonic() - begun
                stage.detail = "accepts connections after the deploy hook" if up else ""
    return up and deployed


async def wait_until_up(scene: Scene, fleet: Fleet, stage: str, *, is_final: bool = True) -> bool:
    """Wait until all instances accept connections; return whether they do.

    If the first one does not, the others are not waited for.
    """
    for each in fleet.instances:
        each.is_serving = await inspection.wait_until_up(
            each, partial(scene.find_in, each), stage, is_final=is_final
        )
        if not fleet.is_serving:
            return False
    return all(each.is_serving for each in fleet.instances)


async def deploy_hook(
    scene: Scene, instance: Instance, hook: str, broken: str | None
) -> Result | None:
    """Run the deploy hook, with the failure that --break asks for."""
    opening = None
    if scene.restored:
        # As after a restore on the platform, which runs no deploy hook. The router holds requests.
        seen = await scene.describe_responses(f"http://127.0.0.1:{instance.entrance}")
        scene.report.seen.append(f"Before the deploy hook: {seen}")
    if broken == "publish":
        instance.read_only_mounts = True
    elif broken == "migration":
        await scene.with_databases(Databases.block_schema_changes)
    elif broken == "database":
        # Directly to the web server, because the router holds requests.
        seen = await scene.describe_responses(f"http://127.0.0.1:{instance.entrance}")
        scene.report.seen.append(f"Without a database: {seen}")
        opening = asyncio.create_task(open_database(scene, DATABASE_SECONDS))
    try:
        return await scene.hook(instance, hook)
    finally:
        instance.read_only_mounts = False
        if broken == "migration":
            await scene.with_databases(Databases.allow_schema_changes)
        if opening:
            await opening
        if scene.restored:
            changes = await scene.restored.describe_changes()
            scene.report.seen.append(f"The deploy hook {changes}")


async def open_database(scene: Scene, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await scene.with_databases(Databases.allow_connections)


class Switch(Protocol):
    """Replaces the instances of a running release; returns those of the new one."""

    async def __call__(
        self, scene: Scene, old: Fleet, image: Image, prefix: str, *, broken: str | None
    ) -> Fleet: ...


async def under_load(scene: Scene, previous: Image, image: Image, switch: Switch) -> Fleet:
    """Start the previous release, and replace it under load, as often as --deploys says.

    From the second deploy on, the release replaces itself.
    """
    live = scene.fleet(previous, "previous")
    if not await bring_up(scene, live, Hold(), "previous: "):
        scene.add_finding(
            "previous: deploy",
            f"the previous release, {scene.report.previous}, does not start",
            fix="choose another release with --from",
        )
        raise RehearsalStoppedError
    await scene.front.gate.send_to(*live.entrances)
    scene.front.gate.release()
    await scene.wait_until_ready("previous: start")
    deploys = scene.options.deploys
    async with loaded(scene, "the previous release"):
        for number in range(1, deploys + 1):
            prefix = f"deploy {number}: " if deploys > 1 else ""
            broken = scene.options.broken if number == 1 else None
            live = await switch(scene, live, image, prefix, broken=broken)
            # A deploy that has failed is not repeated.
            if scene.report.has_errors:
                break
    return live


@asynccontextmanager
async def loaded(scene: Scene, release: str) -> AsyncIterator[list[Loss]]:
    """Send a steady load during the block, and for some seconds before and after; then judge it.

    Args:
        scene: the rehearsal.
        release: the release that is running, for the finding if it cannot serve the load.

    Yields:
        A list for the instances that the block loses: their requests in flight may fail.

    Raises:
        RehearsalStoppedError: the load's requests do not get the expected responses.
    """
    async with AsyncExitStack() as stack:
        try:
            load = await stack.enter_async_context(
                steady(
                    scene.front.address,
                    scene.project.rate,
                    await scene.visits(),
                    scene.logs / "load.log",
                )
            )
        except TimeoutError:
            scene.add_finding(
                "load",
                f"{release} does not answer the requests of the load as expected",
                fix="check `path` and `status` in [[tool.rehearsal.load]] in pyproject.toml",
                excerpt=inspection.explain(scene.logs / "load.log"),
            )
            raise RehearsalStoppedError from None
        before = scene.front.gate.passed.copy()
        losses: list[Loss] = []
        await asyncio.sleep(STEADY_SECONDS)
        yield losses
        await asyncio.sleep(STEADY_SECONDS)
        with scene.stage("load") as stage:
            numbers = await load.stop()
            numbers["instances"] = requests_by_instance(scene, before)
            await judge_load(scene, numbers, losses, stage)


def requests_by_instance(scene: Scene, before: Counter[int]) -> dict[str, int]:
    """Return how many requests the router has sent to each instance since `before`, by label."""
    counts: dict[str, int] = {}
    for each in scene.instances:
        if count := scene.front.gate.passed[each.entrance] - before[each.entrance]:
            counts[each.label] = counts.get(each.label, 0) + count
    return counts


async def judge_load(
    scene: Scene, numbers: dict[str, Any], losses: list[Loss], stage: Stage
) -> None:
    scene.report.load, found = await inspection.judge_load(
        numbers,
        next(iter(scene.databases), None),
        list(dict.fromkeys(instance.log for instance in scene.instances)),
        refuses_unsafe=scene.options.strategy == "stop-start" or bool(scene.options.rollback),
        losses=losses,
    )
    scene.report.findings += found
    begun = scene.recorder.begun
    for slot in scene.report.load.get("timeline", []):
        slot[0] -= begun
    stage.detail = f"{scene.report.load['requests']} requests"


async def roll(scene: Scene, old: Fleet, image: Image, prefix: str, *, broken: str | None) -> Fleet:
    """Replace a release without a hold: a clone of it serves until the new one is ready."""
    gate = scene.front.gate
    # The documentation says that a clone of the application serves, not how many instances it has:
    # as many here, which is what needs the most database connections.
    clone = scene.fleet(old.image, "clone")
    post_start = clone.application.web.commands.post_start
    with scene.stage(f"{prefix}clone") as stage:
        await clone.start()
        await asyncio.gather(*(scene.hook(each, post_start) for each in clone.instances))
        if not await wait_until_up(scene, clone, stage.name):
            raise RehearsalStoppedError
        await gate.send_to(*clone.entrances)
        stage.detail = "receives the traffic"
    await end(scene, old, f"{prefix}stop previous")
    new = scene.fleet(image, "app")
    await bring_up(scene, new, Hold(), prefix, broken=broken)
    for each in new.instances:
        await scene.wait_until_ready(f"{prefix}switch", each.entrance)
    with scene.stage(f"{prefix}switch") as stage:
        await gate.send_to(*new.entrances)
        stage.detail = "the new release receives the traffic"
    await end(scene, clone, f"{prefix}stop clone")
    scene.report.hold = Hold()
    return new


async def stop_and_start(
    scene: Scene,
    old: Fleet,
    image: Image,
    prefix: str,
    *,
    broken: str | None,
    label: str = "app",
) -> Fleet:
    """Stop a release, then start the new one; hold requests until the deploy hook ends."""
    gate = scene.front.gate
    held_before = gate.held_total
    gate.hold()
    await gate.send_to()  # requests that cannot be held are refused
    hold = Hold(begun=scene.recorder.now())
    begun = time.monotonic()
    # Without waiting for requests in flight, which must be answered all the same.
    await end(scene, old, f"{prefix}stop" if label != "app" else f"{prefix}stop previous")
    hold.parts["stop"] = time.monotonic() - begun
    new = scene.fleet(image, label)
    await bring_up(scene, new, hold, prefix, broken=broken)
    await gate.send_to(*new.entrances)
    gate.release()
    hold.ended = scene.recorder.now()
    hold.waited, hold.longest = gate.held_total - held_before, gate.longest_hold
    # With several deploys, the report has the one that held requests the longest.
    if scene.report.hold is None or label != "app" or hold.seconds > scene.report.hold.seconds:
        scene.report.hold = hold
    return new


async def end(scene: Scene, fleet: Fleet, name: str) -> None:
    with scene.stage(name) as stage:
        ends = await fleet.stop()
        judge_ends(scene, fleet, ends, stage.name)
        scene.report.findings += inspection.judge_workers(fleet.first, stage.name)
        stage.detail = f"exit code {', '.join(dict.fromkeys(str(end.code) for end in ends))}"


def judge_ends(scene: Scene, fleet: Fleet, ends: Sequence[ExitStatus], stage: str) -> None:
    """Check how instances and their workers ended after SIGTERM."""
    for each, end in zip(fleet.instances, ends, strict=True):
        for finding in inspection.judge_end(end, stage):
            scene.find_in(
                each,
                stage,
                finding.message,
                consequence=finding.consequence,
                fix=finding.fix,
                severity=finding.severity,
            )
        scene.report.findings += inspection.judge_worker_ends(each, stage)
