"""Deploy a release: start it, run the deploy hook, and replace the previous release."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from rehearsal import inspection
from rehearsal.image import Image
from rehearsal.instance import Instance
from rehearsal.load import steady
from rehearsal.report import Hold, Stage
from rehearsal.sandbox import Result
from rehearsal.scene import RehearsalStoppedError, Scene
from rehearsal.services import Databases

STEADY_SECONDS = 2.0  # of load before and after a switch
DATABASE_SECONDS = 3.0  # how long `--break database` lasts once the deploy hook has started
BREAKS = {
    "build": "the build hook fails at its end",
    "publish": "mounts are read-only during the deploy hook",
    "migration": "every statement that changes the database schema fails",
    "database": "the database refuses connections until the deploy hook has run for"
    f" {DATABASE_SECONDS:.0f} s",
    "kill": "the processes of the running application are killed under load",
}


async def first(scene: Scene, image: Image) -> Instance:
    """Deploy the first release of an environment."""
    instance = scene.instance(image, "app")
    gate = scene.front.gate
    gate.hold()
    hold = Hold(begun=scene.recorder.now())
    await bring_up(scene, instance, hold)
    await gate.send_to(instance.entrance)
    gate.release()
    hold.ended = scene.recorder.now()
    if not scene.prefix:
        scene.report.hold = hold
    return instance


async def add_instances(scene: Scene, live: Instance) -> list[Instance]:
    """Start the other instances that --instances asks for, without hooks and workers.

    They get requests when their pages have been checked.
    """
    others = []
    for number in range(2, scene.options.instances + 1):
        with scene.stage(f"instance {number}") as stage:
            other = scene.instance(live.image, f"app-{number}", number=number)
            await other.start(with_workers=False)
            other.is_serving = await inspection.wait_until_up(other, scene.add_finding, stage.name)
            others.append(other)
    return others


async def bring_up(scene: Scene, instance: Instance, hold: Hold, prefix: str = "") -> bool:
    """Run `start`, `post_start` and the deploy hook; return whether all of them succeeded."""
    commands = instance.application.web.commands
    # --break does not apply to the previous release.
    broken = None if prefix else scene.options.broken
    if broken == "database":
        await scene.with_databases(Databases.block_connections)
    with scene.stage(f"{prefix}start") as stage:
        begun = time.monotonic()
        try:
            await instance.start()
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
        post_start = asyncio.create_task(scene.hook(instance, commands.post_start))
        hook = instance.application.hooks.deploy
        up = await inspection.wait_until_up(
            instance, scene.add_finding, stage.name, is_final=hook is None
        )
        hold.parts["start"] = time.monotonic() - begun
        if not up:
            scene.doubt_connection(inspection.tail(instance.log, 100))
        if up:
            stage.detail = "accepts connections" if instance.is_passing else "serves files only"
    if commands.post_start:
        with scene.stage(f"{prefix}post_start") as stage:
            begun = time.monotonic()
            result = await post_start
            hold.parts["post_start"] = time.monotonic() - begun
            scene.judge(result, stage, instance, ("web", "commands", "post_start"))
    else:
        await post_start
    deployed = True
    if hook:
        with scene.stage(f"{prefix}deploy") as stage:
            begun = time.monotonic()
            result = await deploy_hook(scene, instance, hook, broken)
            hold.parts["deploy"] = time.monotonic() - begun
            deployed = scene.judge(result, stage, instance, ("hooks", "deploy"))
        if not up and instance.web and instance.web.is_crash_looping:
            # The platform has been restarting it all the time, and now the hook has run.
            with scene.stage(f"{prefix}restart") as stage:
                begun = time.monotonic()
                await instance.web.restart()
                up = await inspection.wait_until_up(instance, scene.add_finding, stage.name)
                hold.parts["restart"] = time.monotonic() - begun
                stage.detail = "accepts connections after the deploy hook" if up else ""
    instance.is_serving = up
    return up and deployed


async def deploy_hook(
    scene: Scene, instance: Instance, hook: str, broken: str | None
) -> Result | None:
    """Run the deploy hook, with the failure that --break asks for."""
    opening = None
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


async def open_database(scene: Scene, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await scene.with_databases(Databases.allow_connections)


async def under_load(
    scene: Scene,
    previous: Image,
    image: Image,
    switch: Callable[[Scene, Instance, Image, Image], Awaitable[Instance]],
) -> Instance:
    """Start the previous release, and replace it under load."""
    old = scene.instance(previous, "previous")
    if not await bring_up(scene, old, Hold(), "previous: "):
        scene.add_finding(
            "previous: deploy",
            f"the previous release, {scene.report.previous}, does not start",
            fix="choose another release with --from",
        )
        raise RehearsalStoppedError
    await scene.front.gate.send_to(old.entrance)
    scene.front.gate.release()
    await scene.wait_until_ready("previous: start")
    try:
        generator = steady(
            scene.front.address,
            scene.project.rate,
            await scene.visits(),
            scene.logs / "load.log",
        )
        async with generator as load:
            await asyncio.sleep(STEADY_SECONDS)
            live = await switch(scene, old, previous, image)
            await asyncio.sleep(STEADY_SECONDS)
            with scene.stage("load") as stage:
                numbers = await load.stop()
                await judge_load(scene, numbers, stage)
    except TimeoutError:
        scene.add_finding(
            "load",
            "the previous release does not answer the requests of the load as expected",
            fix="check `path` and `status` in [[tool.rehearsal.load]] in pyproject.toml",
            excerpt=inspection.explain(scene.logs / "load.log"),
        )
        raise RehearsalStoppedError from None
    return live


async def judge_load(scene: Scene, numbers: dict[str, object], stage: Stage) -> None:
    scene.report.load, found = await inspection.judge_load(
        numbers,
        next(iter(scene.databases), None),
        [instance.log for instance in scene.instances],
        refuses_unsafe=scene.options.strategy == "stop-start",
    )
    scene.report.findings += found
    begun = scene.recorder.begun
    for slot in scene.report.load.get("timeline", []):
        slot[0] -= begun
    stage.detail = f"{scene.report.load['requests']} requests"


async def roll(scene: Scene, old: Instance, previous: Image, image: Image) -> Instance:
    """Replace a release without a hold: a clone of it serves until the new one is ready."""
    gate = scene.front.gate
    clone = scene.instance(previous, "clone")
    with scene.stage("clone") as stage:
        await clone.start()
        await scene.hook(clone, clone.application.web.commands.post_start)
        if not await inspection.wait_until_up(clone, scene.add_finding, stage.name):
            raise RehearsalStoppedError
        await gate.send_to(clone.entrance)
        stage.detail = "receives the traffic"
    await end(scene, old, "stop previous")
    new = scene.instance(image, "app")
    await bring_up(scene, new, Hold())
    await scene.wait_until_ready("switch", new.entrance)
    with scene.stage("switch") as stage:
        await gate.send_to(new.entrance)
        stage.detail = "the new release receives the traffic"
    await end(scene, clone, "stop clone")
    scene.report.hold = Hold()
    return new


async def stop_and_start(scene: Scene, old: Instance, previous: Image, image: Image) -> Instance:
    """Stop a release, then start the new one; hold requests until the deploy hook ends."""
    gate = scene.front.gate
    gate.hold()
    await gate.send_to()  # requests that cannot be held are refused
    hold = Hold(begun=scene.recorder.now())
    begun = time.monotonic()
    # Without waiting for requests in flight, which must be answered all the same.
    await end(scene, old, "stop previous")
    hold.parts["stop"] = time.monotonic() - begun
    new = scene.instance(image, "app")
    await bring_up(scene, new, hold)
    await gate.send_to(new.entrance)
    gate.release()
    hold.ended = scene.recorder.now()
    hold.waited, hold.longest = gate.held_total, gate.longest_hold
    scene.report.hold = hold
    return new


async def end(scene: Scene, instance: Instance, name: str) -> None:
    with scene.stage(name) as stage:
        end = await instance.stop()
        scene.report.findings += inspection.judge_end(end, stage.name)
        scene.report.findings += inspection.judge_workers(instance, stage.name)
        scene.report.findings += inspection.judge_worker_ends(instance, stage.name)
        stage.detail = f"exit code {end.code}"
