"""Checks of mounts: their names and sources, and the files that they hide."""

import re
from collections.abc import Iterator
from itertools import combinations

from rehearsal.checks.context import Context, is_below, normal
from rehearsal.checks.shell import Command
from rehearsal.configuration import REJECTED, Application
from rehearsal.findings import Finding, Severity
from rehearsal.shapes import Keys

# Files that only keep an empty directory in Git.
PLACEHOLDERS = {".gitkeep", ".gitignore", ".keep"}
OUTPUTS = re.compile(
    r"--?(o|d|t|out|out-?dir|out-?file|output|output-?(path|dir)|dist-?dir|dest|target)"
)
# Commands that leave no file at a path that they name.
HARMLESS = {"[", "echo", "mkdir", "printf", "rm", "rmdir", "test"}


def check_names(context: Context) -> Iterator[Finding]:
    for keys, key, _ in _mounts(context):
        if key.startswith("."):
            yield context.find(
                keys,
                "starts with a dot and not with a slash",
                "the platform ignores the mount, and the directory is read-only",
                f'write "/{key}"',
            )


def check_sources(context: Context) -> Iterator[Finding]:
    for keys, key, application in _mounts(context):
        mount = application.mounts[key]
        if mount.source == "service" and mount.service not in context.configuration.names(
            "services"
        ):
            problem = (
                f"uses the service `{mount.service}`, which is not defined"
                if mount.service
                else "has the source `service`, but no `service`"
            )
            yield context.find(
                keys,
                problem,
                REJECTED,
                "set `service` to the name of a network-storage service",
                Severity.ERROR,
            )
        if not mount.source_path and mount.source not in {"tmp", "temporary"}:
            yield context.find(
                keys,
                "has no `source_path`",
                "if the mount is renamed, it is empty and its files are no longer available",
                f"add `source_path: {normal(key).rpartition('/')[2] or 'files'}`",
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
                "only one of the two is mounted",
                "remove one of them",
            )
        elif is_below(inner, outer):
            yield context.find(
                others if normal(other) == inner else keys,
                f"is inside the mount {outer!r}",
                "the order of mounting decides which mount a file is in",
                "use two directories that do not contain each other",
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
                f"hides {hidden[0]}{more} in the repository",
                "the running container does not see these files",
                "mount another directory, or move the files and copy them in the deploy hook",
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
                        f"{'writes to' if writes else 'mentions'} {key}, which is a mount",
                        "at runtime the mount hides the files that the build hook writes there",
                        "write to another directory, and copy the files in the deploy hook",
                        line_of_text=command.line,
                    )
                    break


def _written(command: Command, mount: str) -> bool | None:
    """Return whether a command's arguments write to a mount; None if they do not mention it."""
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
