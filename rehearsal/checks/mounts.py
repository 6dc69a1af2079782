"""Mounts: what may be written to, and what they hide."""

import re
from collections.abc import Iterator
from itertools import combinations

from rehearsal.checks.context import Context, is_below, normal
from rehearsal.checks.shell import Command
from rehearsal.configuration import Application, Keys
from rehearsal.findings import Finding, Severity

# These files only keep an empty directory in Git.
PLACEHOLDERS = {".gitkeep", ".gitignore", ".keep"}
OUTPUTS = re.compile(
    r"--?(o|d|t|out|out-?dir|out-?file|output|output-?(path|dir)|dist-?dir|dest|target)"
)
# These leave nothing behind at a path that they name.
HARMLESS = {"[", "echo", "mkdir", "printf", "rm", "rmdir", "test"}


def check_names(context: Context) -> Iterator[Finding]:
    for keys, key, _ in _mounts(context):
        if key.startswith("."):
            yield context.find(
                keys,
                "begins with a dot, without a slash before it",
                "the platform ignores the mount, and the directory stays read-only",
                f'write "/{key}"',
            )


def check_sources(context: Context) -> Iterator[Finding]:
    for keys, key, application in _mounts(context):
        mount = application.mounts[key]
        if mount.source == "service" and mount.service not in context.configuration.services:
            named = f"`{mount.service}`, which is not defined" if mount.service else "no service"
            yield context.find(
                keys,
                f"has the source `service` and names {named}",
                "the platform rejects the push",
                "name a service of the type network-storage with `service`",
            )
        if not mount.source_path and mount.source not in {"tmp", "temporary"}:
            yield context.find(
                keys,
                "has no `source_path`",
                "under a new name the mount would be empty, and its files lost",
                f"write `source_path: {normal(key).rpartition('/')[2] or 'files'}`",
                Severity.WARNING,
            )


def check_overlaps(context: Context) -> Iterator[Finding]:
    for (keys, key, _), (others, other, _) in combinations(_mounts(context), 2):
        if keys[:2] != others[:2]:
            continue
        outer, inner = sorted((normal(key), normal(other)), key=len)
        if outer == inner:
            yield context.find(
                others,
                f"is the same directory as the mount {key!r}",
                "only one of them is there",
                "delete one of them",
            )
        elif is_below(inner, outer):
            yield context.find(
                others if normal(other) == inner else keys,
                f"lies in the mount {outer!r}",
                "which of them gets a file depends on the order of mounting",
                "use directories beside each other",
                Severity.WARNING,
            )


def check_hidden_files(context: Context) -> Iterator[Finding]:
    for keys, key, application in _mounts(context):
        hidden = [
            file
            for file in context.tracked(context.path(application, key))
            if file.rpartition("/")[2] not in PLACEHOLDERS
        ]
        if hidden:
            more = f" and {len(hidden) - 1} more" if len(hidden) > 1 else ""
            yield context.find(
                keys,
                f"hides {hidden[0]}{more} of the repository",
                "the files are not there in the running container",
                "mount another directory, or keep the files elsewhere and copy them in `deploy`",
            )


def check_hidden_build(context: Context) -> Iterator[Finding]:
    for keys, key, _ in _mounts(context):
        for text in context.texts:
            if text.role != "build" or text.application != keys[1]:
                continue
            for command in text.script.commands:
                writes = _written(command, normal(key))
                if writes is not None:
                    yield context.find(
                        text.keys,
                        f"{'writes to' if writes else 'names'} {key}, which is a mount",
                        "the mount hides what the build puts there",
                        "build into another directory, and copy in `deploy`",
                        Severity.ERROR if writes else Severity.WARNING,
                        line_of_text=command.line,
                    )
                    break


def _written(command: Command, mount: str) -> bool | None:
    """Return whether a command says that it writes to a mount; None: it does not name it."""
    if not mount:
        return None
    if any(is_below(_path(file), mount) for file in command.files):
        return True
    if command.program[:1] and command.program[0] in HARMLESS:
        return None
    named = None
    for before, word in zip(("", *command.words), command.words, strict=False):
        option, equals, value = word.partition("=")
        if is_below(_path(value if equals else word), mount):
            written = OUTPUTS.fullmatch(option if equals else before) is not None
            named = named or written
    return named


def _path(word: str) -> str:
    return normal(re.sub(r"^\$\{?PLATFORM_(APP|SOURCE|OUTPUT)_DIR\}?/|^/app/", "", word))


def _mounts(context: Context) -> Iterator[tuple[Keys, str, Application]]:
    for keys, _, application in context.applications():
        for key in application.mounts:
            yield (*keys, "mounts", key), key, application
