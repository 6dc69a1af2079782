"""Check what several instances must share: the files that they serve, and their visitors' state.

The router sends each request to any instance. State in the memory of a process or in a file outside
a `storage` mount is only known to one of them.
"""

from dataclasses import replace

from rehearsal.findings import Finding
from rehearsal.fleet import Fleet
from rehearsal.front import nginx
from rehearsal.load import SOURCES, Load
from rehearsal.probe import probe
from rehearsal.project import Visit
from rehearsal.scene import Scene

SHARE_FILES = "keep files that all instances need in a mount with the source `storage`"
# Another one than those of the load, whose rate limits it may have used up.
SOURCE = SOURCES[0].replace("127.0.1.", "127.0.2.")


async def check(scene: Scene, fleet: Fleet) -> None:
    """Check the instances except the first one; then let the router send requests to all of them.

    Until then it sends them to the first one only, whose pages have been checked.
    """
    await check_pages(scene, fleet)
    if fleet.others:
        await check_visits(scene, fleet)
    await scene.front.gate.send_to(*fleet.entrances)


async def check_pages(scene: Scene, fleet: Fleet) -> None:
    """Request the pages from each of the other instances, which share only some mounts.

    A finding that the first instance does not have is about the files that they do not share.
    """
    for other in fleet.others:
        with scene.stage(f"probe {other.number}") as stage:
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
                    message=f"instance {other.number}: {finding.message}",
                    fix=SHARE_FILES,
                )
                for finding in found
                if finding.message not in known
            ]


async def check_visits(scene: Scene, fleet: Fleet) -> None:
    """Send each visit of the load to the instances in turn, one request to each of them.

    A visit that succeeds on the first instance alone needs something that they do not share. What a
    project's visits do not show cannot be told from outside.
    """
    visits = [visit for visit in scene.project.load if len(visit.requests) > 1]
    if not visits:
        return
    with scene.stage("shared state") as stage:
        for visit in visits:
            failure = await send(scene, visit, fleet.entrances)
            if failure and await send(scene, visit, fleet.entrances[:1]) is None:
                scene.report.findings.append(
                    Finding(
                        stage.name,
                        f"a visit fails if its requests reach different instances: {failure}; on a"
                        " single instance it succeeds",
                        consequence="visitors lose their session, or what they have just saved,"
                        " whenever the router picks another instance",
                        fix="keep sessions and other state in a service, not in the memory of a"
                        f" process; {SHARE_FILES}",
                    )
                )
        stage.detail = f"sent {len(visits)} visits to {len(fleet.instances)} instances in turn"


async def send(scene: Scene, visit: Visit, entrances: list[int]) -> str | None:
    """Send the requests of a visit to the instances in turn; return what failed, if anything."""
    load = Load(scene.front.address, 1, [visit], {"User-Agent": "rehearsal"})
    cookies: dict[str, str] = {}
    sent = []
    async with load.client(SOURCE) as client:
        word = load.word()
        for number, request in enumerate(visit.requests):
            # Through the router, which adds its headers.
            await scene.front.gate.send_to(entrances[number % len(entrances)])
            sent.append(f"{request.method} {request.path}")
            if not await load.send(client, request, word, cookies):
                why = load.failures[-1].why
                return f"{' -> '.join(sent)} got {why} instead of {request.status}"
    return None
