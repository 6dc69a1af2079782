"""All that happens before anything runs: validation, build, services, router."""

import os
import shutil
from dataclasses import replace

from rehearsal import configuration as configurations
from rehearsal import inspection, services
from rehearsal.configuration import Configuration, ConfigurationError
from rehearsal.findings import Severity
from rehearsal.front import FrontError, nginx
from rehearsal.front import front as run_router
from rehearsal.image import BuildError, Image, Images, check_python, freeze, hidden_by_mounts
from rehearsal.instance import prepare_mounts
from rehearsal.project import read as read_project
from rehearsal.report import Stage
from rehearsal.sandbox import allow_removal
from rehearsal.scene import RehearsalStoppedError, Scene
from rehearsal.services import Databases, ServiceError
from rehearsal.tree import Tree, uncommitted
from rehearsal.validation import validate as find_faults


def read(scene: Scene, tree: Tree, name: str) -> Configuration:
    """Read the configuration of a tree that is checked out for it."""
    return configurations.read(tree.export(scene.scratch / name))


def validate(scene: Scene, tree: Tree, name: str) -> Configuration:
    with scene.stage("validate") as stage:
        directory = tree.export(scene.scratch / name)
        files = tree.files()
        scene.project = read_project(directory)
        found = find_faults(directory, files=files, schema=scene.options.schema)
        scene.report.findings += found
        changes = uncommitted(tree)
        if changes:
            scene.add_finding(
                "validate",
                f"{changes} files have changes that are not committed",
                consequence="they are not part of a push, nor of this rehearsal",
                severity=Severity.NOTE,
            )
        stage.detail = f"{len(files)} files"
        try:
            configuration = configurations.read(directory)
        except ConfigurationError as error:
            if not found:
                scene.add_finding("validate", str(error))
            raise RehearsalStoppedError from None
    if not scene.options.force and any(f.severity is Severity.ERROR for f in found):
        scene.console.say("  Stopped here; --force goes on to see what would come of it")
        raise RehearsalStoppedError
    return configuration


def choose_application(scene: Scene, configuration: Configuration) -> str:
    names = list(configuration.applications)
    name = scene.options.application or scene.project.application
    if name is None and len(names) == 1:
        return names[0]
    if name in configuration.applications:
        return str(name)
    raise ServiceError(f"Say which application is meant, with --application: {', '.join(names)}.")


async def build(
    scene: Scene, images: Images, tree: Tree, configuration: Configuration, name: str, *, stage: str
) -> Image:
    application = configuration.applications[name]
    if scene.options.broken == "build" and stage == "build":
        hooks = application.hooks
        broken = f"{hooks.build or ''}\necho 'the rehearsal lets this build fail' >&2; exit 1"
        configuration = _with_hook(configuration, name, build=broken)
    log = scene.logs / "build.log"
    with scene.stage(stage) as entry:
        inside = f"{application.directory}/"
        if application.directory and not any(f.startswith(inside) for f in tree.files()):
            scene.add_finding(
                stage,
                f"source.root is /{application.directory}, which the commit does not have",
                consequence="the platform rejects the push",
                line=configuration.line("applications", name, "source", "root"),
            )
            raise RehearsalStoppedError
        if stage == "build":
            scene.report.findings += check_python(application)
        try:
            image = await images.build(
                tree,
                configuration,
                name,
                log=log,
                show=scene.console.show,
                hold=scene.stack,
                again=scene.options.rebuild or scene.options.broken == "build",
                # Without mounts of its own, an image is bound to its environment.
                variant="" if scene.bwrap else scene.options.environment,
            )
        except BuildError as error:
            scene.add_finding(
                stage,
                f"the build hook {error.result.ending}",
                consequence="there is no deploy; the release before goes on serving",
                fix=inspection.suggest_fix(error.result.output),
                line=configuration.line("applications", name, "hooks", "build"),
                excerpt=error.result.tail(),
            )
            raise RehearsalStoppedError from None
        scene.report.findings += hidden_by_mounts(image)
        took = f"as built before, in {image.seconds:.1f} s" if image.reused else "new"
        entry.detail = f"{image.megabytes:.0f} MB, {took}"
    return image


def freeze_image(scene: Scene, image: Image, stage: Stage) -> None:
    mounts = prepare_mounts(image, scene.mounts, bwrap=scene.bwrap)
    stage.detail = f"writable: /tmp{''.join(f', {key}' for key in mounts)}"
    if scene.bwrap is None:
        freeze(image)
        scene.stack.callback(allow_removal, image.directory)
        scene.add_finding(
            "freeze",
            "without bubblewrap the image is a copy without write permission",
            consequence="not proven: that nothing is written outside mounts at runtime, that"
            " mounts hide what the image has there, and that only the container's files are"
            " used",
            fix="install bubblewrap (Debian package: bubblewrap), and leave out --no-isolation",
            severity=Severity.NOTE,
        )


async def run_services(scene: Scene, image: Image) -> None:
    options = scene.options
    with scene.stage("services") as stage:
        names = [
            service
            for service, _ in image.description.endpoints().values()
            if (found := image.configuration.services.get(service)) and found.kind == "postgresql"
        ]
        if names:
            scene.databases = await scene.stack.enter_async_context(
                Databases.running(options.state)
            )
        if options.fresh or options.clone_of:
            await clear(scene, names)
        if options.clone_of:
            await clone(scene, options.clone_of, names)
        scene.endpoints = await scene.stack.enter_async_context(
            services.running(
                image.configuration,
                image.description,
                environment=options.environment,
                state=options.place / "services",
                databases=scene.databases,
                found=scene.report.findings,
            )
        )
        stage.detail = ", ".join(
            f"{name}: {endpoint.type}" for name, endpoint in scene.endpoints.items()
        )
        if options.clone_of:
            stage.detail += f", cloned from {options.clone_of}"


async def clear(scene: Scene, names: list[str]) -> None:
    """Remove the environment's data."""
    if scene.databases:
        for service in names:
            await scene.databases.drop(scene.databases.name(scene.options.environment, service))
    for directory in [*scene.mounts.glob("*"), *(scene.options.place / "services").glob("*")]:
        services.empty(directory)


async def clone(scene: Scene, source: str, names: list[str]) -> None:
    """Copy the data of another environment."""
    place = scene.options.state / "environments" / source
    if not place.exists():
        raise ServiceError(f"There is nothing to clone: {source} was never rehearsed here.")
    if scene.databases:
        for service in names:
            template = scene.databases.name(source, service)
            if not await scene.databases.exists(template):
                raise ServiceError(f"There is nothing to clone: {source} has no {service}.")
            name = scene.databases.name(scene.options.environment, service)
            await scene.databases.create(name, template=template)
    if (place / "mounts").exists():
        shutil.copytree(place / "mounts", scene.mounts, symlinks=True, dirs_exist_ok=True)


async def run_front(scene: Scene, image: Image) -> None:
    with scene.stage("front") as stage:
        if nginx() is None:
            scene.add_finding(
                "front",
                "nginx is not installed (Debian package: nginx-light), so nothing stands before"
                " the application",
                consequence="not proven: how files are served, and what the router does",
                severity=Severity.ERROR if os.environ.get("CI") else Severity.NOTE,
            )
        port = scene.ports.reserve(scene.options.port)
        if scene.options.port not in {0, port}:
            raise ServiceError(f"Port {scene.options.port} is not to be had: name another --port.")
        try:
            scene.front = await scene.stack.enter_async_context(
                run_router(
                    image.configuration.routes,
                    application=image.application,
                    domain=scene.environment.domain,
                    port=port,
                    scratch=scene.scratch / "router",
                    log=scene.logs / "router.log",
                )
            )
        except (FrontError, ValueError) as error:
            scene.add_finding("front", "the router does not take the routes", excerpt=str(error))
            raise RehearsalStoppedError from None
        stage.detail = f"{scene.front.address} for https://{scene.environment.domain}/"


async def check_environment(scene: Scene, image: Image) -> None:
    """Read `.environment` as each container does at its start."""
    if not (image.directory / ".environment").exists():
        return
    with scene.stage("environment") as stage:
        scene.report.findings += await inspection.environment_file(
            scene.instance(image, "environment"), scene.scratch / "environment.log"
        )
        stage.detail = ".environment"


def _with_hook(configuration: Configuration, name: str, **hooks: str) -> Configuration:
    """Return the configuration with another hook."""
    application = configuration.applications[name]
    changed = application.model_copy(update={"hooks": application.hooks.model_copy(update=hooks)})
    document = configuration.document.model_copy(
        update={"applications": {**configuration.applications, name: changed}}
    )
    return replace(configuration, document=document)
