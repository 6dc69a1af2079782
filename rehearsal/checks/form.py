"""Check the configuration against the models and the platform's schema, and find other files."""

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
FIX = "correct or remove the key; see Upsun's configuration reference"
MAX_MESSAGE_LENGTH = 200


def check_form(
    raw: dict[str, Any], lines: dict[Keys, int], schema: Path | None
) -> Iterator[Finding]:
    """Yield schema errors, at most one per line from each of the model and the JSON schema.

    A line that the model has reported is not reported again from the JSON schema.
    """
    reported: set[int] = set()
    for source in (
        _local_mounts(raw, lines),
        _own(raw, lines),
        _against(schema, raw, lines),
    ):
        found = [finding for finding in source if finding.line not in reported]
        yield from found
        reported |= {finding.line for finding in found}


def unusable(error: ConfigurationError) -> Iterator[Finding]:
    """Yield why the file cannot be read at all."""
    for message, line in error.problems:
        yield _finding(message, line, "commit the file as valid YAML in UTF-8")


def _own(raw: dict[str, Any], lines: dict[Keys, int]) -> Iterator[Finding]:
    try:
        interpret(raw, lines)
    except ConfigurationError as error:
        for message, line in error.problems:
            yield _finding(message, line, FIX)


def _finding(
    message: str, line: int, fix: str = "", severity: Severity = Severity.ERROR
) -> Finding:
    consequence = REJECTED if severity is Severity.ERROR else ""
    return Finding(STAGE, message, consequence, fix, severity, CONFIG_FILE, line)


def _local_mounts(raw: Any, lines: dict[Keys, int]) -> Iterator[Finding]:
    """Yield each mount of an application or worker that has the source `local`."""
    for path in (("applications",), ("applications", "workers")):
        for keys, value in _members(raw, path):
            for below, mount in _members(value, ("mounts",)):
                if isinstance(mount, dict) and mount.get("source") == "local":
                    place = (*keys, *below, "source")
                    yield _finding(
                        f"{'.'.join(place)} is `local`, which Upsun does not support",
                        line_of(lines, place),
                        "use `storage` (shared by all instances) or `instance` (one per instance)",
                    )


def _members(value: Any, path: Keys, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield the members of nested mappings: `("a", "b")` is `b`'s members in each member of `a`."""
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
        yield _finding(
            f"the JSON schema cannot be read, so it was not used: {problem}",
            0,
            severity=Severity.NOTE,
        )
        return
    for error in map(_deepest, validator.iter_errors(raw)):
        keys = tuple(str(key) for key in error.absolute_path)
        for key, message in _unexpected(error) or [("", error.message[:MAX_MESSAGE_LENGTH])]:
            place = (*keys, key) if key else keys
            message = f"{'.'.join(place)}: {message}" if place else message
            yield _finding(message, line_of(lines, place), FIX)


def _deepest(error: ValidationError) -> ValidationError:
    """Return the error in the alternative that matches best."""
    while error.context:
        error = max(error.context, key=lambda each: (len(each.path), relevance(each)))
    return error


def _unexpected(error: ValidationError) -> list[tuple[str, str]]:
    if error.validator != "additionalProperties" or not isinstance(error.instance, dict):
        return []
    known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
    return [(str(key), "unknown key") for key in error.instance if key not in known]


def check_other_files(files: frozenset[str]) -> Iterator[Finding]:
    """Yield configuration files other than `.upsun/config.yaml`."""
    for file in sorted(files):
        name = file.rpartition("/")[2]
        if name == ".platform.app.yaml" or file.startswith(".platform/"):
            yield Finding(
                STAGE,
                f"{file} is a Platform.sh configuration file",
                f"Upsun ignores it and reads {CONFIG_FILE}",
                "delete it",
                Severity.WARNING,
                file,
            )
        elif (
            file.startswith(".upsun/") and file.endswith((".yaml", ".yml")) and file != CONFIG_FILE
        ):
            yield Finding(
                STAGE,
                f"{file} is not included in this rehearsal",
                "the platform merges all YAML files in .upsun/ into one configuration",
                f"move its content to {CONFIG_FILE}",
                Severity.NOTE,
                file,
            )
