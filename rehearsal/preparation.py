"""The stages before the application starts: validation, build, services, router."""

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rehearsal import configuration as configurations
from rehearsal import inspection, services
from rehearsal.configuration import Configuration
from rehearsal.dependencies import NODE_HOST, plan, stands_in_for_n
from rehearsal.findings import Severity
from rehearsal.front import FrontError, nginx
from rehearsal.front import front as run_router
from rehearsal.gate import Gate
from rehearsal.image import BuildError, Image, Images, freeze, hidden_by_mounts
from rehearsal.instance import prepare_mounts
from rehearsal.locks import holder
from rehearsal.passwords import check_urls
from rehearsal.project import read as read_project
from rehearsal.router import Page, entrances
from rehearsal.runtimes import check_runtimes, is_rehearsable
from rehearsal.sandbox import allow_removal
from rehearsal.scene import RehearsalStoppedError, Scene
from rehearsal.services import ServiceError, Services
from rehearsal.tree import Tree, uncommitted
from rehearsal.validation import validate as find_faults
from rehearsal.variables import Endpoint

HTTP_PORT = 80  # of applications, for the others
ADDRESSES = 5  # to try


def read(scene: Scene, tree: Tree, name: str) -> Configuration:
    """Check out a tree and read its configuration."""
    return configurations.read(tree.export(scene.scratch / name))


def validate(scene: Scene, tree: Tree, name: str) -> Configuration:
    with scene.stage("validate") as stage:
        directory = tree.export(scene.scratch / name)
        files = tree.files()
        scene.project = read_project(directory)
        validation = find_faults(directory, files=files, schema=scene.options.schema)
        scene.report.findings += validation.findings
        changes = uncommitted(tree)
        if changes:
            scene.add_finding(
                "validate",
                "1 file has uncommitted changes"
                if changes == 1
                else f"{changes} files have uncommitted changes",
                consequence="the changes are not included in a push or in this rehearsal",
                fix="commit them to include them",
                severity=Severity.NOTE,
            )
        stage.detail = f"{len(files)} files"
    if validation.configuration is None:
        raise RehearsalStoppedError
    if not scene.options.force and scene.report.has_errors:
        scene.console.say("  Stopped here. To deploy in spite of the errors, add --force.")
        raise RehearsalStoppedError
    return validation.configuration


def choose_applications(scene: Scene, configuration: Configuration) -> tuple[str, list[str]]:
    """Return the main application, and all applications to deploy in the order of deployment.

    An application comes after those that it has a relationship with. Unless the main application
    has been chosen, it is the one with the default route, and all applications are deployed.
    """
    names = list(configuration.applications)
    chosen = scene.options.application or scene.project.application
    if chosen is not None and chosen not in names:
        raise ServiceError(
            f"There is no application {chosen!r}. Choose one with --application:"
            f" {', '.join(names)}."
        )
    order: list[str] = []
    seen: set[str] = set()

    def add(name: str) -> None:
        if name in configuration.applications and name not in seen:
            seen.add(name)
            for target, _ in configuration.applications[name].endpoints().values():
                add(target)
            order.append(name)

    for name in [chosen] if chosen else names:
        add(name)
    return chosen or default_application(configuration), order


def default_application(configuration: Configuration) -> str:
    """Return the application of the primary route, or else of the first route."""
    routes = sorted(configuration.routes.values(), key=lambda route: not route.primary)
    served = [route.application for route in routes if route.type == "upstream"]
    names = [name for name in served if name in configuration.applications]
    return next(iter([*names, *configuration.applications]))


async def build(
    scene: Scene, images: Images, tree: Tree, configuration: Configuration, name: str, *, stage: str
) -> Image:
    application = configuration.applications[name]
    if scene.options.broken == "build" and stage == "build":
        hooks = application.hooks
        broken = f"{hooks.build or ''}\necho 'the rehearsal makes this build fail' >&2; exit 1"
        configuration = _with_hook(configuration, name, build=broken)
    log = scene.logs / "build.log"
    with scene.stage(stage) as entry:
        inside = f"{application.directory}/"
        if application.directory and not any(f.startswith(inside) for f in tree.files()):
            scene.add_finding(
                stage,
                f"source.root is /{application.directory}, which is not in the commit",
                consequence="the platform rejects the push",
                fix="correct source.root, or commit the directory",
                place=configuration.place("applications", name, "source", "root"),
            )
            raise RehearsalStoppedError
        python = await images.python(application)
        if stage == "build":
            found, missing = check_runtimes(configuration, name, python.interpreter)
            steps, unavailable = plan(application, scene.scratch / "tree" / application.directory)
            if stand_in := stands_in_for_n(steps):
                scene.add_finding(
                    stage,
                    f"`n` cannot reach {NODE_HOST}, so this machine's Node.js is used",
                    fix=f"rehearse with a connection to {NODE_HOST} to test with its version",
                    severity=Severity.NOTE,
                    place=configuration.place("applications", name, *stand_in.keys),
                )
            for package in unavailable:
                scene.add_finding(
                    stage,
                    f"{package.name} is not installed: the rehearsal installs packages for Python"
                    " 3 and Node.js only",
                    fix="install the program on this machine, where the build finds it on PATH",
                    severity=Severity.NOT_REHEARSED,
                    place=configuration.place("applications", name, *package.keys),
                )
            scene.report.findings += found
            scene.doubts += [*missing, *(package.name for package in unavailable)]
        try:
            image = await images.build(
                tree,
                configuration,
                name,
                log=log,
                show=scene.console.show,
                hold=scene.stack,
                again=scene.options.rebuild or scene.options.broken == "build",
                # Without bubblewrap the image contains links to its environment's mounts.
                variant="" if scene.bwrap else scene.options.environment,
            )
        except BuildError as error:
            scene.doubt(error.result.output)
            scene.add_finding(
                stage,
                str(error),
                consequence="the platform cancels the deploy, and the previous release keeps"
                " serving",
                fix=inspection.suggest_fix(error.result.output),
                place=configuration.place("applications", name, *error.keys),
                excerpt=error.result.cause,
            )
            raise RehearsalStoppedError from None
        scene.report.findings += hidden_by_mounts(image)
        took = f"reused; built in {image.seconds:.1f} s" if image.reused else "new"
        entry.detail = f"{image.megabytes:.0f} MB, {took}"
    return image


def freeze_images(scene: Scene, images: Sequence[Image]) -> None:
    """Make images read-only, except for their mounts."""
    with scene.stage("freeze") as stage:
        writable = {"/tmp": None}
        for image in images:
            mounts = prepare_mounts(image, scene.mounts, bwrap=scene.bwrap)
            writable |= dict.fromkeys(mounts)
            if scene.bwrap is None:
                freeze(image)
                scene.stack.callback(allow_removal, image.directory)
        stage.detail = f"writable: {', '.join(writable)}"
        if scene.bwrap is not None:
            return
        scene.add_finding(
            "freeze",
            "bubblewrap is not used, so the image is a copy without write permissions",
            consequence="not tested: that nothing is written outside mounts at runtime, that mounts"
            " hide the image's files, that only files of the container are used, and that each"
            " instance has an `instance` mount of its own",
            fix="install bubblewrap (Debian package: bubblewrap), and do not use --no-isolation",
            severity=Severity.NOTE,
        )


async def run_services(scene: Scene, scenes: Mapping[str, Scene], images: Sequence[Image]) -> None:
    """Start the services that the applications use.

    Args:
        scene: the scene of the main application.
        scenes: the scenes of all applications, by name.
        images: their images.
    """
    options = scene.options
    directory = options.place / "services"
    with scene.stage("services") as stage:
        if options.fresh or options.clone_of or options.restore:
            clear(scene, directory)
        if options.clone_of:
            clone(scene, options.clone_of, directory)
        running = Services(
            images[0].configuration,
            directory=directory,
            scratch=scene.scratch / "services",
            ports=scene.ports,
            found=scene.report.findings,
            max_connections=options.max_connections,
        )
        shown: dict[str, str] = {}
        for image in images:
            each = scenes[image.application]
            each.services = running
            targets = image.description.endpoints()
            await running.start((service for service, _ in targets.values()), scene.stack)
            each.endpoints = {
                name: endpoint
                for name, (service, key) in targets.items()
                if (endpoint := running.endpoint(service, key))
            }
            each.doubts += [
                running.gaps[service] for service, _ in targets.values() if service in running.gaps
            ]
            shown |= {name: endpoint.type for name, endpoint in each.endpoints.items()}
        stage.detail = ", ".join(f"{name}: {type_}" for name, type_ in shown.items())
        if options.clone_of:
            stage.detail += f", cloned from {options.clone_of}"


def clear(scene: Scene, directory: Path) -> None:
    """Delete the environment's data."""
    services.remove(directory)
    for mount in scene.mounts.glob("*"):
        shutil.rmtree(mount)
        mount.mkdir()


def clone(scene: Scene, source: str, directory: Path) -> None:
    """Copy the data of another environment."""
    place = scene.options.state / "environments" / source
    if not place.exists():
        raise ServiceError(
            f"There is no environment {source} to clone. Rehearse it first, with"
            f" --environment {source}."
        )
    if process := holder(place / "lock"):
        raise ServiceError(
            f"The environment {source} is being rehearsed (process {process}) and cannot be cloned."
            " Stop that rehearsal."
        )
    services.copy(place / "services", directory)
    if (place / "mounts").exists():
        shutil.copytree(place / "mounts", scene.mounts, symlinks=True, dirs_exist_ok=True)


async def run_front(scene: Scene, scenes: Mapping[str, Scene], images: Sequence[Image]) -> None:
    """Run the router, and connect the applications that have relationships; see `run_services`."""
    configuration = images[0].configuration
    names = sorted(scenes, key=lambda name: scenes[name] is not scene)
    with scene.stage("front") as stage:
        if nginx() is None:
            scene.add_finding(
                "front",
                "nginx is not installed, so requests go to the application directly",
                consequence="not tested: how files are served, and what the router does",
                fix="install nginx (Debian packages: nginx-light and"
                " libnginx-mod-http-brotli-static)",
                severity=Severity.ERROR if os.environ.get("CI") else Severity.NOTE,
            )
        port = scene.ports.reserve(scene.options.port)
        if scene.options.port not in {0, port}:
            raise ServiceError(
                f"Port {scene.options.port} is already in use. Choose another one with --port."
            )
        try:
            fronts = await scene.stack.enter_async_context(
                run_router(
                    configuration.routes,
                    applications=names,
                    domain=scene.environment.domain,
                    port=port,
                    scratch=scene.scratch / "router",
                    log=scene.logs / "router.log",
                )
            )
        except (FrontError, ValueError) as error:
            scene.add_finding(
                "front",
                "the router rejects the configuration in routes",
                fix="correct the routes; the output below names the problem",
                excerpt=str(error),
            )
            raise RehearsalStoppedError from None
        for name, each in scenes.items():
            each.front = fronts[name]
            domain = scene.environment.domain
            own = entrances(configuration.routes, name, domain)
            host = own[0].host if own else domain
            each.pages = [Page(host, path) for path in each.project.pages] or own
            if each is scene:
                stage.detail = f"{scene.front.address} for https://{host}/"
        for image in images:
            connect(scenes, image, configuration)


def connect(scenes: Mapping[str, Scene], image: Image, configuration: Configuration) -> None:
    """Give an application its relationships with other applications."""
    scene = scenes[image.application]
    targets = {
        relationship: name
        for relationship, (name, _) in image.description.endpoints().items()
        if name in scenes
    }
    for relationship, name in targets.items():
        ip, port = listen(scenes[name].front.gate)
        application = configuration.applications[name]
        endpoint = Endpoint(name, application.type, "http", "http", port, ip)
        scene.endpoints = {**scene.endpoints, relationship: endpoint}
        if not is_rehearsable(application):
            scene.doubts.append(f"the application {name}")
        if port != HTTP_PORT:
            scene.add_finding(
                "front",
                f"the application {name} has the port {port} instead of {HTTP_PORT}",
                consequence="requests to http://$"
                f"{relationship.upper()}_HOST without the port in the variables fail here",
                fix="permit it, as root: sysctl net.ipv4.ip_unprivileged_port_start=80",
                severity=Severity.NOTE,
                place=configuration.place(
                    "applications", image.application, "relationships", relationship
                ),
            )


def listen(gate: Gate) -> tuple[str, int]:
    """Open an address for other applications; return it and the port, 80 if possible."""
    for _ in range(ADDRESSES):
        # Another one for each application, because all of them have the same port.
        numbers = 64 + secrets.randbelow(64), secrets.randbelow(256), 1 + secrets.randbelow(254)
        address = ".".join(map(str, (127, *numbers)))
        with suppress(OSError):
            return address, gate.listen_on(address, HTTP_PORT)
    return "127.0.0.1", gate.listen_on("127.0.0.1", 0)


async def check_environment(scene: Scene, image: Image) -> None:
    """Source `.environment` as each container does at its start, and check it."""
    if not (image.directory / ".environment").exists():
        return
    with scene.stage("environment") as stage:
        instance = scene.instance(image, "environment")
        log = scene.scratch / "environment.log"
        scene.report.findings += await inspection.environment_file(instance, log)
        scene.report.findings += await check_urls(instance, scene.endpoints, log=log)
        stage.detail = ".environment"


def _with_hook(configuration: Configuration, name: str, **hooks: str) -> Configuration:
    """Return the configuration with some hooks replaced."""
    application = configuration.applications[name]
    changed = application.model_copy(update={"hooks": application.hooks.model_copy(update=hooks)})
    document = configuration.document.model_copy(
        update={"applications": {**configuration.applications, name: changed}}
    )
    return replace(configuration, document=document)
