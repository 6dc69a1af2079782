"""Check the files against the platform's keys and its JSON schema, and find other files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rehearsal import fixed, knowledge
from rehearsal.configuration import CONFIG_FILE, DIRECTORY, REJECTED, STAGE, Loaded, readable
from rehearsal.findings import Finding, Severity
from rehearsal.shapes import Fault, Keys, examine

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

FIX = "correct or remove it; see Upsun's configuration reference"
MAX_MESSAGE_LENGTH = 200


def check_form(loaded: Loaded, schema: Path | None) -> Iterator[Finding]:
    """Yield the differences from the known keys and values, then those from the JSON schema.

    A line that the JSON schema refuses as well is reported once.
    """
    reported: set[tuple[str, int]] = set()
    for fault in examine(loaded.raw, knowledge.DOCUMENT, ()):
        finding = _finding(loaded, fault)
        if not fault.is_unknown:
            reported.add((finding.file, finding.line))
        yield finding
    if schema is not None:
        for finding in _against(schema, loaded):
            if (finding.file, finding.line) not in reported:
                yield finding


def _finding(loaded: Loaded, fault: Fault) -> Finding:
    place = loaded.place(*fault.keys)
    message = f"{'.'.join(fault.keys) or 'the configuration'} {fault.message}"
    severity, fix = Severity.WARNING, fault.fix
    if fault.is_unknown:
        consequence = knowledge.scope()
    elif not fault.is_rejected:
        consequence = "`upsun validate` rejects it"
    else:
        severity, consequence, fix = Severity.ERROR, REJECTED, fault.fix or FIX
    return Finding(STAGE, message, consequence, fix, severity, place.file, place.line)


def check_age() -> Iterator[Finding]:
    """Yield a note if the tables of runtimes, services and keys are old."""
    if not knowledge.is_recent():
        yield Finding(
            STAGE,
            knowledge.scope(),
            "newer versions and keys are reported as unknown",
            "upgrade upsun-rehearse",
            Severity.NOTE,
        )


def _against(path: Path, loaded: Loaded) -> Iterator[Finding]:
    import jsonschema  # slow to import, and rarely needed

    try:
        validator = jsonschema.Draft7Validator(json.loads(path.read_text()))
    except (OSError, ValueError) as problem:
        yield Finding(
            STAGE,
            f"the JSON schema cannot be read, so it was not used: {problem}",
            severity=Severity.NOTE,
        )
        return
    for error in map(_deepest, validator.iter_errors(readable(loaded.raw))):
        keys = tuple(str(key) for key in error.absolute_path)
        for key, message in _unexpected(error) or [("", error.message[:MAX_MESSAGE_LENGTH])]:
            yield _finding(loaded, Fault((*keys, key) if key else keys, f"({message})"))


def _deepest(error: "ValidationError") -> "ValidationError":
    """Return the error in the alternative that matches best."""
    from jsonschema.exceptions import relevance

    while error.context:
        error = max(error.context, key=lambda each: (len(each.path), relevance(each)))
    return error


def _unexpected(error: "ValidationError") -> list[tuple[str, str]]:
    if error.validator != "additionalProperties" or not isinstance(error.instance, dict):
        return []
    known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
    return [(str(key), "unknown key") for key in error.instance if key not in known]


def check_other_files(files: frozenset[str]) -> Iterator[Finding]:
    """Yield configuration files that the platform does not read."""
    is_flex = any(f.startswith(f"{DIRECTORY}/") and f.endswith(".yaml") for f in files)
    for file in sorted(files):
        name = file.rpartition("/")[2]
        is_fixed = name == fixed.APPLICATION or file.startswith(f"{fixed.DIRECTORY}/")
        if is_flex and is_fixed and not file.startswith(f"{DIRECTORY}/"):
            yield Finding(
                STAGE,
                f"{file} is a Platform.sh configuration file",
                f"Upsun ignores it and reads {CONFIG_FILE}",
                "delete it",
                Severity.WARNING,
                file,
            )
        elif file.startswith(".upsun/") and file.count("/") == 1 and file.endswith(".yml"):
            yield Finding(
                STAGE,
                f"{file} does not end in .yaml",
                "the platform reads only the files in .upsun/ that end in .yaml",
                "rename it",
                Severity.WARNING,
                file,
            )


def members(value: Any, path: Keys, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield the members of nested mappings: `("a", "b")` is `b`'s members in each member of `a`."""
    found = value.get(path[0]) if isinstance(value, dict) else None
    for name, member in found.items() if isinstance(found, dict) else ():
        below = (*keys, path[0], str(name))
        if len(path) == 1:
            yield below, member
        else:
            yield from members(member, path[1:], below)
