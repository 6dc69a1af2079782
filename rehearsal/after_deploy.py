"""The stages after the deploy: probes, post_deploy, crons, workers, shutdown, logs."""

import asyncio
import time
from dataclasses import replace

from rehearsal import inspection
from rehearsal.deploy import STEADY_SECONDS, judge_load
from rehearsal.findings import Severity
from rehearsal.front import nginx
from rehearsal.image import fingerprint
from rehearsal.instance import Instance
from rehearsal.load import steady
from rehearsal.probe import probe
from rehearsal.scene import Chosen, Scene

# A cron may run for a day, but a rehearsal only shows that it starts.
CRON_SECONDS = 60
SHARE_FILES = "keep files that all instances need in a mount with the source `storage`"


async def check_pages(scene: Scene, live: Instance) -> None:
    with scene.stage("probe") as stage:
        if scene.project.ready and not scene.report.has_errors:
            await scene.wait_until_ready(stage.name)
        found, stage.detail = await probe(
            scene.front.address, scene.pages, scene.project, with_files=nginx() is not None
        )
        scene.report.findings += found
        if scene.report.has_errors:
            scene.doubt_connection(inspection.tail(live.log, 100))
        if scene.options.broken or scene.report.has_errors:
            scene.report.seen.append(f"After the deploy: {await scene.describe_responses()}")
        if live.web and live.web.codes:
            scene.add_finding(
                stage.name,
                f"the start command exited {len(live.web.codes)} times, most recently with exit"
                f" code {live.web.codes[-1]}",
                consequence="the platform restarts it in a loop",
                severity=Severity.ERROR
                if live.is_passing and live.web.is_crash_looping
                else Severity.WARNING,
                excerpt=inspection.explain(live.log),
            )


async def check_others(scene: Scene, live: Instance, others: list[Instance]) -> None:
    """Request the pages from each of the other instances, which share only some mounts.

    A finding that the first instance does not have is about the files that they do not share. Then
    let the router send requests to all of them, at random.
    """
    for number, other in enumerate(others, 2):
        with scene.stage(f"probe {number}") as stage:
            # Not through the router, which has the first instance's responses in its cache.
            address = f"http://127.0.0.1:{other.entrance}"
            found, stage.detail = await probe(
                address, scene.pages, scene.project, with_files=nginx() is not None
            )
            known = {finding.message for finding in scene.report.findings}
            scene.report.findings += [
                replace(
                    finding,
                    stage=stage.name,
                    message=f"instance {number}: {finding.message}",
                    fix=SHARE_FILES,
                )
                for finding in found
                if finding.message not in known
            ]
    if others:
        await scene.front.gate.send_to(live.entrance, *(other.entrance for other in others))


async def run_post_deploy(scene: Scene, live: Instance) -> None:
    hook = live.application.hooks.post_deploy
    if hook:
        with scene.stage("post_deploy") as stage:
            scene.judge(await scene.hook(live, hook), stage, live, ("hooks", "post_deploy"))
    # Those that --run names run later.
    crons = {
        name: cron
        for name, cron in live.application.crons.items()
        if Chosen("cron", name) not in scene.options.runs
    }
    if crons:
        with scene.stage("crons") as stage:
            for name, cron in crons.items():
                result = await live.run(
                    cron.commands.start,
                    scene.logs / f"cron-{name}.log",
                    show=scene.console.show,
                    seconds=min(cron.timeout, CRON_SECONDS),
                )
                scene.judge(result, stage, live, ("crons", name))
            stage.detail = f"ran each once: {', '.join(crons)}"
    if live.workers:
        with scene.stage("workers") as stage:
            scene.report.findings += inspection.judge_workers(live)
            stage.detail = ", ".join(
                f"{worker.name}: {worker.megabytes():.0f} MB" for worker in live.workers
            )


async def kill(scene: Scene, live: Instance) -> None:
    """Kill the application under load, and check that it recovers."""
    with scene.stage("kill") as stage:
        async with steady(
            scene.front.address,
            scene.project.rate,
            await scene.visits(),
            scene.logs / "load.log",
        ) as load:
            begun = time.monotonic()
            killed = await inspection.kill_processes(live)
            is_up = await inspection.wait_until_up(live, scene.add_finding, stage.name)
            downtime = time.monotonic() - begun
            await asyncio.sleep(STEADY_SECONDS)
            await judge_load(scene, await load.stop(), stage)
        scene.report.seen.append(
            f"Killed {killed} processes; the application"
            f" {f'was back after {downtime:.2f} s' if is_up else 'did not come back'}"
        )


async def stop(scene: Scene, live: Instance) -> None:
    with scene.stage("stop") as stage:
        if not live.is_passing or not scene.pages:
            end = await live.stop()
            scene.report.findings += inspection.judge_worker_ends(live, stage.name)
            stage.detail = "SIGTERM without requests in flight"
            return
        end, answered, lost = await inspection.stop_in_flight(live, scene.pages[0])
        scene.report.findings += inspection.judge_end(end, stage.name)
        scene.report.findings += inspection.judge_worker_ends(live, stage.name)
        if lost:
            scene.report.findings.append(inspection.explain_loss(end, answered, lost, stage.name))
        stage.detail = (
            f"SIGTERM with {inspection.VISITORS} requests in flight: {answered} answered,"
            f" {lost} lost, exit code {end.code} after {end.seconds:.2f} s"
        )


def inspect(scene: Scene, live: Instance, frozen: str) -> None:
    """Check the application's logs, and that it has not written to the image."""
    with scene.stage("inspect") as stage:
        scene.report.findings += inspection.logs(live)
        if fingerprint(live.image) != frozen:
            scene.add_finding(
                stage.name,
                "the application wrote to the image at runtime",
                consequence="on the platform the image is read-only, and the write fails",
                fix="write to a mount or to /tmp",
            )
        stage.detail = "logs, unchanged image"
