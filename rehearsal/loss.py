"""Kill the application, or one of its instances, under load, and check that it recovers."""

import asyncio
import time
from functools import partial

from rehearsal import inspection
from rehearsal.deploy import loaded
from rehearsal.fleet import Fleet
from rehearsal.inspection import Loss
from rehearsal.instance import Instance
from rehearsal.scene import Scene


async def kill(scene: Scene, fleet: Fleet) -> None:
    """Kill the application's processes; with several instances, the container of the last one."""
    async with loaded(scene, "the release") as losses:
        if fleet.others:
            losses.append(await lose(scene, fleet.instances[-1]))
            return
        with scene.stage("kill") as stage:
            begun = time.monotonic()
            killed = await inspection.kill_processes(fleet.first)
            is_up = await inspection.wait_until_up(fleet.first, scene.add_finding, stage.name)
            scene.report.seen.append(
                f"Killed {killed} processes; the application {outcome(is_up, begun)}"
            )


async def lose(scene: Scene, instance: Instance) -> Loss:
    """Kill the container of an instance, and start it again.

    The requests in flight there are lost, as on the platform. The router sends all later ones to
    the other instances until this one accepts connections.
    """
    gate, port = scene.front.gate, instance.entrance
    clock = asyncio.get_running_loop().time
    with scene.stage("kill") as stage:
        begun = clock()
        before = gate.passed[port] - gate.open[port]
        killed = await instance.lose()
        loss = Loss(begun, clock(), gate.passed[port] - before)
        is_up = await inspection.wait_until_up(
            instance, partial(scene.find_in, instance), stage.name
        )
        if is_up:
            await instance.restart_web_server()
        scene.report.seen.append(
            f"Killed the {killed} processes of instance {instance.number}, which was answering"
            f" {loss.in_flight} requests; it {outcome(is_up, begun)}"
        )
    return loss


def outcome(is_up: bool, begun: float) -> str:
    """Return the end of the sentence about a killed application."""
    return f"was back after {time.monotonic() - begun:.2f} s" if is_up else "did not come back"
