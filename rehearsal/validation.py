"""Validate the configuration before anything runs.

In addition to the schema, which `upsun validate` checks as well, it finds mistakes that the
platform accepts: hooks that ignore failures, mounts that hide files, servers on the wrong port.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from rehearsal.checks import (
    commands,
    crons,
    form,
    mounts,
    requirements,
    serving,
    versions,
    wiring,
)
from rehearsal.checks.context import Context
from rehearsal.configuration import (
    DIRECTORY,
    Configuration,
    ConfigurationError,
    interpret,
    load,
)
from rehearsal.findings import Finding

Check = Callable[[Context], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    versions.check_runtime,
    versions.check_services,
    versions.check_profile,
    versions.check_timezone,
    wiring.check_names,
    wiring.check_relationships,
    wiring.check_circles,
    wiring.check_database_url,
    wiring.check_unused_services,
    wiring.check_any_route,
    wiring.check_upstreams,
    wiring.check_primary,
    wiring.check_redirects,
    mounts.check_names,
    mounts.check_sources,
    mounts.check_overlaps,
    mounts.check_hidden_files,
    mounts.check_hidden_build,
    commands.check_dash,
    commands.check_syntax,
    commands.check_bash,
    commands.check_failures,
    commands.check_tracing,
    commands.check_environment,
    serving.check_start,
    serving.check_background,
    serving.check_exec,
    serving.check_socket,
    serving.check_development_server,
    serving.check_roots,
    serving.check_rules,
    crons.check_commands,
    crons.check_specs,
    requirements.check_hashes,
)


@dataclass(frozen=True)
class Validation:
    """The result of a validation."""

    findings: list[Finding]
    """In the order of the files and lines."""
    configuration: Configuration | None
    """Without the parts that are wrong; None if there is no application."""


def validate(
    tree: Path,
    *,
    files: Collection[str] | None,
    schema: Path | None = None,
    paths: list[Path] | None = None,
    complete: bool = True,
) -> Validation:
    """Check the configuration of a project.

    Args:
        tree: the directory of the project.
        files: the paths that Git tracks; None if only the configuration is known.
        schema: the path of the platform's JSON schema.
        paths: the configuration files; by default all YAML files in `.upsun/`.
        complete: whether the directory has all files of the project.
    """
    tracked = None if files is None else frozenset(files)
    loaded = load(tree, paths, complete=complete)
    found = [*loaded.findings, *form.check_age()]
    if tracked is not None:
        found += form.check_other_files(tracked)
    if loaded.raw or not loaded.findings:
        found += form.check_form(loaded, schema)
    try:
        configuration = interpret(loaded)
    except ConfigurationError:  # reported above, and the other checks need an application
        return Validation(_ordered(found), None)
    context = Context(tree, tracked, configuration)
    for check in CHECKS:
        found += check(context)
    return Validation(_ordered(found), configuration)


def _ordered(findings: list[Finding]) -> list[Finding]:
    """Sort findings by place, and leave out repeated ones."""
    unique = {(finding.message, finding.file, finding.line): finding for finding in findings}
    return sorted(
        unique.values(),
        key=lambda finding: (
            not finding.file.startswith(f"{DIRECTORY}/"),
            finding.file,
            finding.line,
        ),
    )
