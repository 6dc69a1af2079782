"""Deploy a release, then an earlier one again, on the new schema and under load (`--rollback`)."""

from rehearsal import deploy
from rehearsal.fleet import Fleet
from rehearsal.image import Image, fingerprint
from rehearsal.scene import RehearsalStoppedError, Scene


async def roll_back(scene: Scene, image: Image, earlier: Image) -> tuple[Fleet, str]:
    """Deploy a release, and replace it with an earlier one as a push of that commit does.

    Migrations are not undone: the earlier release must work on the schema of this one.

    Returns:
        The instances of the earlier release, and the fingerprint of its image.

    Raises:
        RehearsalStoppedError: the release did not start, so there was nothing to roll back.
    """
    frozen = fingerprint(earlier)
    released = await deploy.first(scene, image)
    await scene.wait_until_ready("deploy")
    if scene.report.has_errors or not released.is_serving:
        scene.report.seen.append(f"After the deploy: {await scene.describe_responses()}")
        raise RehearsalStoppedError
    await scene.front.gate.send_to(*released.entrances)
    async with deploy.loaded(scene, "the release"):
        live = await deploy.stop_and_start(
            scene, released, earlier, "rollback: ", broken=None, label="rollback"
        )
    scene.report.seen.append(f"After the rollback: {await scene.describe_responses()}")
    return live, frozen
