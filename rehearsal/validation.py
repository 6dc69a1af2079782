"""Validate the configuration before anything runs.

In addition to the schema, which `upsun validate` checks as well, it finds mistakes that the
platform accepts: hooks that ignore failures, mounts that hide files, servers on the wrong port.
"""

from collections.abc import Callable, Collection, Iterator
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
    CONFIG_FILE,
    ConfigurationError,
    interpret,
    load,
    read_text,
)
from rehearsal.findings import Finding

Check = Callable[[Context], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    versions.check_runtime,
    versions.check_services,
    versions.check_profile,
    wiring.check_relationships,
    wiring.check_database_url,
    wiring.check_unused_services,
    wiring.check_any_route,
    wiring.check_upstreams,
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
    serving.check_workers,
    serving.check_background,
    serving.check_exec,
    serving.check_socket,
    serving.check_development_server,
    serving.check_roots,
    serving.check_rules,
    crons.check_specs,
    requirements.check_hashes,
)


def validate(tree: Path, *, files: Collection[str], schema: Path | None = None) -> list[Finding]:
    """Return the findings about a commit's configuration, in the order of its lines.

    Args:
        tree: the directory in which the commit is checked out.
        files: the paths that Git tracks.
        schema: the path of the platform's JSON schema.
    """
    tracked = frozenset(files)
    found = list(form.check_other_files(tracked))
    try:
        text = read_text(tree)
        raw, lines = load(text)
    except ConfigurationError as error:
        return [*form.unusable(error), *found]
    found += form.check_form(raw, lines, schema)
    try:
        configuration = interpret(raw, lines)
    except ConfigurationError:  # check_form has reported it, and the other checks need the models
        return sorted(found, key=_order)
    context = Context(tree, tracked, configuration, text.splitlines())
    for check in CHECKS:
        found += check(context)
    return sorted(found, key=_order)


def _order(finding: Finding) -> tuple[bool, str, int]:
    return finding.file != CONFIG_FILE, finding.file, finding.line
