"""Run all stages of a rehearsal, from the commit to the application's shutdown."""

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from rehearsal import (
    after_deploy,
    deploy,
    loss,
    on_demand,
    preparation,
    restore,
    rollback,
    shared_state,
)
from rehearsal.configuration import ConfigurationError
from rehearsal.fleet import Fleet
from rehearsal.image import Image, Images, fingerprint
from rehearsal.locks import holder, locked
from rehearsal.network import Ports, raise_file_limit
from rehearsal.report import Console, Report
from rehearsal.runtimes import is_rehearsable
from rehearsal.sandbox import bubblewrap
from rehearsal.scene import Options, RehearsalStoppedError, Scene
from rehearsal.services import ServiceError
from rehearsal.tree import Tree, find_tree
from rehearsal.variables import Environment, project_entropy

PREFIX = "rehearsal-"  # of the names of temporary directories
IN_USE = "in-use.lock"  # a lock file in each of them, held by the rehearsal

Complete = Callable[[Report], Awaitable[None]]


async def rehearse(options: Options, console: Console, complete: Complete) -> Report:
    """Run a rehearsal and return its report.

    Args:
        options: the command line's options.
        console: shows the progress.
        complete: called with the finished report while the application may still be running.

    Raises:
        TreeError, ProjectError, ServiceError: the rehearsal could not run.
    """
    tree = find_tree(options.repository, options.revision)
    async with open_scene(options, console, tree) as scene:
        recorder = scene.recorder
        recorder.services = lambda: scene.services
        with suppress(RehearsalStoppedError):
            async with recorder.recording(options.logs):
                main = await run_stages(scene, tree)
            scene.report.findings += recorder.judge_connections(
                main, options.instances_max or options.instances, scene.project.connections
            )
        scene.report.seconds = recorder.now()
        scene.report.costs = recorder.costs
        scene.report.findings += recorder.judge()
        recorder.costs.remember_images(options.place / "images.json")
        await complete(scene.report)
    return scene.report


async def run_stages(scene: Scene, tree: Tree) -> str:
    """Run the stages in the platform's order; return the name of the main application.

    Raises:
        RehearsalStoppedError: a stage failed that the following stages depend on.
    """
    options = scene.options
    configuration = preparation.validate(scene, tree, "tree")
    on_demand.check(configuration, options.runs)
    deploy.check_break(configuration, options.broken)
    main, names = preparation.choose_applications(scene, configuration)
    tasks = [name for kind, name in options.runs if kind == "task"]
    configuration = configuration.with_tasks(tasks)
    names = [*names, *tasks]
    scenes = {name: scene if name == main else scene.of(name) for name in names}
    images = Images(
        options.state,
        bwrap=scene.bwrap,
        entropy=scene.environment.entropy,
        variables=scene.environment.variables,
    )
    previous_image = None
    if options.previous is not None or options.rollback is not None:
        previous_image = await build_previous(scene, images, main)
    built = [
        await preparation.build(each, images, tree, configuration, name, stage="build")
        for name, each in scenes.items()
    ]
    scene.recorder.costs.images = {image.application: image.megabytes for image in built}
    preparation.freeze_images(scene, [*built, *filter(None, [previous_image])])
    frozen = [fingerprint(image) for image in built]
    await preparation.run_services(scene, scenes, built)
    if options.restore is not None:
        scene.restored = await restore.restore(scene, options.restore)
    await preparation.run_front(scene, scenes, built)

    lives: list[tuple[Scene, Fleet, str]] = []
    for image, fingerprinted in zip(built, frozen, strict=True):
        each = scenes[image.application]
        if not is_rehearsable(image.description) or image.application in tasks:
            continue  # its code does not run here, or only later
        await preparation.check_environment(each, image)
        if previous_image is None or each is not scene:
            live = await deploy.first(each, image)
        elif options.rollback is not None:
            live, fingerprinted = await rollback.roll_back(each, image, previous_image)
        elif options.strategy == "rolling":
            live = await deploy.under_load(each, previous_image, image, deploy.roll)
        else:
            live = await deploy.under_load(each, previous_image, image, deploy.stop_and_start)
        lives.append((each, live, fingerprinted))

    for each, live, _ in lives:
        if live.is_serving:
            await after_deploy.check_pages(each, live)
            await shared_state.check(each, live)
            if live.others and not (options.strategy or options.rollback or options.broken):
                async with deploy.loaded(each, "the release"):
                    pass  # to see how the instances share it
        elif each.pages:
            scene.report.seen.append(f"After the deploy: {await each.describe_responses()}")
        await after_deploy.run_post_deploy(each, live)
        await on_demand.run_commands(each, live.first)
        if each.options.broken == "kill":
            await loss.kill(each, live)
    for image in built:
        if image.application in tasks:
            await on_demand.run_task(scenes[image.application], image)
    for kind, chosen in options.runs:
        if kind == "source-operation":
            await on_demand.run_source_operation(scene, images, tree, configuration, names, chosen)
    if options.keep:
        scene.report.address = scene.front.address
        scene.report.instances = [
            f"http://127.0.0.1:{entrance}"
            for each, live, _ in lives
            if each is scene
            for entrance in live.entrances
        ]
    for each, live, fingerprinted in reversed(lives):  # an application before those that it needs
        if live.is_serving and not options.keep:
            await after_deploy.stop(each, live)
        after_deploy.inspect(each, live, fingerprinted)
    return main


async def build_previous(scene: Scene, images: Images, name: str) -> Image:
    """Build the release that is replaced.

    Raises:
        ServiceError: it cannot be deployed, or does not have the application.
    """
    previous = find_tree(
        scene.options.repository, scene.options.previous or str(scene.options.rollback)
    )
    scene.report.previous = previous.title
    try:
        old = preparation.read(scene, previous, "previous-tree")
    except ConfigurationError as error:
        raise ServiceError(
            f"The previous release, {previous.title}, cannot be deployed: {error}."
        ) from None
    if name not in old.applications:
        raise ServiceError(f"The previous release, {previous.title}, has no application {name}.")
    return await preparation.build(scene, images, previous, old, name, stage="build previous")


@asynccontextmanager
async def open_scene(options: Options, console: Console, tree: Tree) -> AsyncIterator[Scene]:
    """Lock the environment for this rehearsal; stop everything it has started on exit."""
    options.place.mkdir(parents=True, exist_ok=True)
    # The state is in the repository by default, and is not part of it.
    (options.state / ".gitignore").write_text("*\n")

    def waiting(holder: str) -> None:
        if options.kept.exists():
            raise ServiceError(
                f"A rehearsal of {options.environment} is still running (process {holder}). Stop it"
                f" with `{options.stop_command}`, or choose another --environment."
            )
        print(
            f"Waiting for another rehearsal of {options.environment} (process {holder}) to finish."
            " To run at the same time, choose another --environment.",
            file=sys.stderr,
        )

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(locked(options.place / "lock", waiting))
        options.kept.unlink(missing_ok=True)  # left by a rehearsal that was killed
        stack.callback(options.kept.unlink, missing_ok=True)
        raise_file_limit()
        shutil.rmtree(options.logs, ignore_errors=True)
        options.logs.mkdir()
        # A short path, because that of a Unix socket is limited to about 100 bytes.
        remove_leftovers()
        temporary = tempfile.TemporaryDirectory(prefix=PREFIX)
        ports = Ports()
        stack.callback(ports.close)
        title = f"{tree.title} in {options.environment} ({options.environment_type})"
        if options.restore:
            title += f", from {options.restore.name}"
        if options.rollback:
            title += f", rolled back to {options.rollback}"
        if options.broken:
            title += f", with --break {options.broken}"
        console.say(f"Rehearsing {title}")
        scratch = Path(stack.enter_context(temporary))
        # Locked before it gets the name that remove_leftovers looks for.
        await stack.enter_async_context(locked(scratch / "starting"))
        (scratch / "starting").rename(scratch / IN_USE)
        yield Scene(
            options=options,
            console=console,
            report=Report(title=title, strict=options.strict),
            stack=stack,
            scratch=scratch,
            environment=Environment(
                name="main" if options.environment_type == "production" else options.environment,
                type=options.environment_type,
                entropy=project_entropy(options.state),
                own_domain=options.domain,
                variables=options.variables,
            ),
            bwrap=bubblewrap() if options.isolated else None,
            ports=ports,
        )


def remove_leftovers() -> None:
    """Remove the temporary directories of rehearsals that were killed.

    Such a directory belongs to this user and contains a lock file that no process has locked.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = path / IN_USE
        try:
            # lstat does not follow symbolic links, which another user may have created.
            is_ours = all(
                is_kind(found.st_mode) and found.st_uid == os.geteuid()
                for is_kind, found in (
                    (stat.S_ISDIR, path.lstat()),
                    (stat.S_ISREG, lock.lstat()),
                )
            )
        except OSError:
            continue
        if is_ours and holder(lock) is None:
            shutil.rmtree(path, ignore_errors=True)
