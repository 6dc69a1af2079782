"""Run what --run names: crons, operations, source operations and tasks.

On the platform these run on a schedule, or when a user starts them. A rehearsal runs them after the
deploy, while the application is running.
"""

from collections.abc import Sequence
from dataclasses import replace

from rehearsal.configuration import Configuration, Task
from rehearsal.findings import Severity, count
from rehearsal.image import Image, Images
from rehearsal.inspection import suggest_fix
from rehearsal.instance import Instance
from rehearsal.scene import Chosen, Scene
from rehearsal.services import ServiceError
from rehearsal.tree import Tree, git

OPERATION_SECONDS = 3600
SOURCE_OPERATION_SECONDS = 1800
# The author of commits.
IDENTITY = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in {"NAME": "Upsun", "EMAIL": "rehearsal@example.com"}.items()
}


def available(configuration: Configuration, kind: str) -> list[str]:
    """Return the names that --run accepts for a kind; see `Chosen`."""
    names = list(configuration.tasks) if kind == "task" else []
    for application in configuration.applications.values():
        if kind == "cron":
            names += application.crons
        elif kind == "operation":
            names += application.operations
        elif kind == "source-operation":
            names += application.source.operations
    return list(dict.fromkeys(names))


def check(configuration: Configuration, runs: Sequence[Chosen]) -> None:
    """Check that the configuration has everything that --run names.

    Raises:
        ServiceError: something does not exist.
    """
    for kind, name in runs:
        names = available(configuration, kind)
        if name not in names:
            kind = kind.replace("-", " ")
            raise ServiceError(
                f"There is no {kind} {name}. The configuration has: {', '.join(names) or 'none'}."
            )


async def run_commands(scene: Scene, live: Instance) -> None:
    """Run the chosen crons and operations of an application."""
    for kind, name in scene.options.runs:
        cron = live.application.crons.get(name) if kind == "cron" else None
        operation = live.application.operations.get(name) if kind == "operation" else None
        commands = cron.commands if cron else operation.commands if operation else None
        if commands is None:
            continue
        seconds = cron.timeout if cron else OPERATION_SECONDS
        await run(scene, live, f"{kind} {name}", commands.start, seconds, (f"{kind}s", name))


async def run_task(scene: Scene, image: Image) -> None:
    """Run a task in a container of its own image."""
    task = image.description
    if isinstance(task, Task):
        await run(
            scene,
            scene.instance(image, "task"),
            f"task {image.application}",
            task.run.command,
            task.run.timeout,
            ("run",),
        )


async def run(
    scene: Scene,
    instance: Instance,
    name: str,
    command: str,
    seconds: float,
    keys: tuple[str, ...],
) -> None:
    """Run a command in an instance's container, and report how it ended."""
    log = scene.logs / f"{name.replace(' ', '-')}.log"
    with scene.stage(name) as stage:
        result = await instance.run(command, log, show=scene.console.show, seconds=seconds)
        if scene.judge(result, stage, instance, keys):
            stage.detail = (result.output.strip().splitlines() or ["no output"])[-1]


async def run_source_operation(
    scene: Scene,
    images: Images,
    tree: Tree,
    configuration: Configuration,
    names: Sequence[str],
    chosen: str,
) -> None:
    """Run a source operation of each application that defines it, in a clone without remotes.

    The commits are reported and not pushed.
    """
    clone = scene.scratch / "source-operation" / chosen
    branch = scene.environment.name
    git(tree.repository, "clone", "--quiet", "--no-checkout", str(tree.repository), str(clone))
    git(clone, "checkout", "--quiet", "-B", branch, tree.commit)
    git(clone, "remote", "remove", "origin")
    for name in names:
        application = configuration.applications[name]
        operation = application.source.operations.get(chosen)
        if operation is None:
            continue
        python = await images.python(application)
        container = await images.container(
            clone,
            configuration,
            name,
            python,
            release=tree.id,
            scratch=clone.with_name(f"{chosen}-{name}"),
        )
        place = f"{container.directory}/{application.directory}".rstrip("/")
        variables = {**container.variables, **IDENTITY, "PLATFORM_SOURCE_DIR": place}
        container = replace(container, variables=variables)
        with scene.stage(f"source-operation {chosen}") as stage:
            before = git(clone, "rev-parse", "HEAD").strip()
            result = await container.run(
                f'cd "$PLATFORM_SOURCE_DIR"\n{operation.command}',
                log=scene.logs / f"source-operation-{chosen}.log",
                seconds=SOURCE_OPERATION_SECONDS,
                show=scene.console.show,
            )
            if result.code != 0:
                scene.add_finding(
                    stage.name,
                    f"the source operation {chosen} {result.ending}",
                    consequence="the platform pushes nothing",
                    fix=suggest_fix(result.output),
                    place=configuration.place("applications", name, "source", "operations", chosen),
                    excerpt=result.cause,
                )
                continue
            subjects = git(clone, "log", "--format=%s", f"{before}..HEAD").splitlines()
            files = git(clone, "diff", "--name-only", before, "HEAD").splitlines()
            commits = count(len(subjects), "commit")
            stage.detail = ", ".join([commits, *files]) if subjects else "no commit"
            if left := git(clone, "status", "--porcelain").splitlines():
                scene.add_finding(
                    stage.name,
                    f"the source operation {chosen} changes files that it does not commit",
                    consequence="the platform discards the changes",
                    fix="end it with `git add` and `git commit`",
                    severity=Severity.WARNING,
                    excerpt="\n".join(left[:6]),
                )
