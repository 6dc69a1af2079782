"""The stages after the deploy: probes, post_deploy, crons, workers, shutdown, logs."""

from rehearsal import inspection
from rehearsal.deploy import judge_ends
from rehearsal.findings import Severity
from rehearsal.fleet import Fleet
from rehearsal.front import nginx
from rehearsal.image import fingerprint
from rehearsal.probe import probe
from rehearsal.scene import Chosen, Scene

# A cron may run for a day, but a rehearsal only shows that it starts.
CRON_SECONDS = 60


async def check_pages(scene: Scene, fleet: Fleet) -> None:
    """Request the pages through the router, from the first instance."""
    live = fleet.first
    await scene.front.gate.send_to(live.entrance)
    with scene.stage("probe") as stage:
        if scene.project.ready and not scene.report.has_errors:
            await scene.wait_until_ready(stage.name)
        found, stage.detail = await probe(
            scene.front.address, scene.pages, scene.project, with_files=nginx() is not None
        )
        scene.report.findings += inspection.with_log(found, live.log)
        if scene.report.has_errors:
            scene.doubt(inspection.tail(live.log, 100))
        if scene.options.broken or scene.restored or scene.report.has_errors:
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


async def run_post_deploy(scene: Scene, fleet: Fleet) -> None:
    live = fleet.first
    hook = live.application.hooks.post_deploy
    if hook:
        with scene.stage("post_deploy") as stage:
            scene.judge(await scene.hook(live, hook), stage, live, ("hooks", "post_deploy"))
            if scene.restored:
                changes = await scene.restored.describe_changes()
                scene.report.seen.append(f"post_deploy {changes}")
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


async def stop(scene: Scene, fleet: Fleet) -> None:
    live = fleet.first
    with scene.stage("stop") as stage:
        others = Fleet(fleet.others)
        judge_ends(scene, others, await others.stop(), stage.name)
        if not live.is_passing or not scene.pages:
            end = await live.stop()
            scene.report.findings += inspection.judge_worker_ends(live, stage.name)
            stage.detail = "SIGTERM without requests in flight"
            return
        end, answered, lost = await inspection.stop_in_flight(live, scene.pages[0])
        judge_ends(scene, Fleet([live]), [end], stage.name)
        if lost:
            scene.report.findings.append(inspection.explain_loss(end, answered, lost, stage.name))
        stage.detail = (
            f"SIGTERM with {inspection.VISITORS} requests in flight: {answered} answered,"
            f" {lost} lost, exit code {end.code} after {end.seconds:.2f} s"
        )


def inspect(scene: Scene, fleet: Fleet, frozen: str) -> None:
    """Check the application's logs, and that it has not written to the image."""
    with scene.stage("inspect") as stage:
        for each in fleet.instances:
            scene.report.findings += inspection.logs(each)
        if fingerprint(fleet.image) != frozen:
            scene.add_finding(
                stage.name,
                "the application wrote to the image at runtime",
                consequence="on the platform the image is read-only, and the write fails",
                fix="write to a mount or to /tmp",
            )
        stage.detail = "logs, unchanged image"
