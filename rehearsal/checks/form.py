"""The form of the file, as the reader and the platform's schema see it; other files beside it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError, relevance

from rehearsal.checks.context import STAGE
from rehearsal.configuration import (
    CONFIG_FILE,
    ConfigurationError,
    Keys,
    interpret,
    line_of,
)
from rehearsal.findings import Finding, Severity

REJECTED = "the platform rejects the push"
LONG = 200


def check_form(
    raw: dict[str, Any], lines: dict[Keys, int], schema: Path | None
) -> Iterator[Finding]:
    """Yield what is wrong with the form; what both the reader and the schema see only once."""
    said: set[int] = set()
    for source in (
        _local_mounts(raw, lines),
        _own(raw, lines),
        _against(schema, raw, lines),
    ):
        found = [finding for finding in source if finding.line not in said]
        yield from found
        said |= {finding.line for finding in found}


def unusable(error: ConfigurationError) -> Iterator[Finding]:
    """Yield why the file as a whole cannot be used."""
    for message, line in error.problems:
        yield _finding(f"{CONFIG_FILE}: {message}", line, "commit the file, as YAML in UTF-8")


def _own(raw: dict[str, Any], lines: dict[Keys, int]) -> Iterator[Finding]:
    try:
        interpret(raw, lines)
    except ConfigurationError as error:
        for message, line in error.problems:
            yield _finding(message, line, "see Upsun's reference of .upsun/config.yaml")


def _finding(
    message: str, line: int, fix: str = "", severity: Severity = Severity.ERROR
) -> Finding:
    consequence = REJECTED if severity is Severity.ERROR else ""
    return Finding(STAGE, message, consequence, fix, severity, CONFIG_FILE, line)


def _local_mounts(raw: Any, lines: dict[Keys, int]) -> Iterator[Finding]:
    """Yield each mount source `local`, of applications and of workers."""
    for path in (("applications",), ("applications", "workers")):
        for keys, value in _members(raw, path):
            for below, mount in _members(value, ("mounts",)):
                if isinstance(mount, dict) and mount.get("source") == "local":
                    place = (*keys, *below, "source")
                    yield _finding(
                        f"{'.'.join(place)} is the `local` of older pages, which is rejected",
                        line_of(lines, place),
                        "use storage (shared by all instances) or instance (one instance's own)",
                    )


def _members(value: Any, path: Keys, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield the members of mappings: `("a", "b")` is every member of `b` in every one of `a`."""
    members = value.get(path[0]) if isinstance(value, dict) else None
    for name, member in members.items() if isinstance(members, dict) else ():
        below = (*keys, path[0], str(name))
        if len(path) == 1:
            yield below, member
        else:
            yield from _members(member, path[1:], below)


def _against(path: Path | None, raw: Any, lines: dict[Keys, int]) -> Iterator[Finding]:
    if path is None:
        return
    try:
        validator = jsonschema.Draft7Validator(json.loads(path.read_text()))
    except (OSError, ValueError) as problem:
        yield _finding(f"the schema cannot be read: {problem}", 0, severity=Severity.NOTE)
        return
    for error in map(_deepest, validator.iter_errors(raw)):
        keys = tuple(str(key) for key in error.absolute_path)
        for key, message in _unexpected(error) or [("", error.message[:LONG])]:
            place = (*keys, key) if key else keys
            message = f"{'.'.join(place)}: {message}" if place else message
            yield _finding(message, line_of(lines, place), "see the platform's schema")


def _deepest(error: ValidationError) -> ValidationError:
    """Return the error in the alternative that comes nearest."""
    while error.context:
        error = max(error.context, key=lambda each: (len(each.path), relevance(each)))
    return error


def _unexpected(error: ValidationError) -> list[tuple[str, str]]:
    if error.validator != "additionalProperties" or not isinstance(error.instance, dict):
        return []
    known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
    return [
        (str(key), "the platform knows no such key here")
        for key in error.instance
        if key not in known
    ]


def check_other_files(files: frozenset[str]) -> Iterator[Finding]:
    """Yield configuration files beside the one that counts."""
    for file in sorted(files):
        name = file.rpartition("/")[2]
        if name == ".platform.app.yaml" or file.startswith(".platform/"):
            yield Finding(
                STAGE,
                f"{file} is the configuration of an older platform",
                f"it is ignored; {CONFIG_FILE} counts",
                "delete it",
                Severity.WARNING,
                file,
            )
        elif (
            file.startswith(".upsun/") and file.endswith((".yaml", ".yml")) and file != CONFIG_FILE
        ):
            yield Finding(
                STAGE,
                f"{file} is not part of this rehearsal",
                "the platform reads all files there as one configuration",
                f"keep everything in {CONFIG_FILE}",
                Severity.NOTE,
                file,
            )
