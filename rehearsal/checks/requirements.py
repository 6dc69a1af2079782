"""Checks of requirements files that pip installs with `--require-hashes`."""

import re
from collections.abc import Iterator

from rehearsal.checks.context import Context
from rehearsal.checks.shell import Command
from rehearsal.configuration import STAGE
from rehearsal.findings import Finding, Severity


def check_hashes(context: Context) -> Iterator[Finding]:
    for text in context.texts:
        if text.role != "build":
            continue
        application = context.configuration.applications[text.application]
        for command in text.script.commands:
            if "--require-hashes" not in command.words:
                continue
            for name in _requirement_files(command):
                file = context.path(application, name)
                path = context.tree / file
                if file in (context.files or ()) and path.is_file():
                    yield from _without_hash(file, path.read_text(errors="replace"))


def _requirement_files(command: Command) -> Iterator[str]:
    for before, word in zip(("", *command.words), command.words, strict=False):
        if before in {"-r", "--requirement"}:
            yield word
        elif match := re.fullmatch(r"(?:-r|--requirement=)(.+)", word):
            yield match[1]


def _without_hash(file: str, text: str) -> Iterator[Finding]:
    """Yield one finding: the first requirement without a hash, and the number of others."""
    missing = [
        (requirement, line)
        for requirement, line in _requirements(text)
        if "--hash=" not in requirement and not requirement.startswith("-")
    ]
    if missing:
        requirement, line = missing[0]
        name = re.split(r"[\s\[<>=!~;@]", requirement)[0]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        yield Finding(
            STAGE,
            f"{file} has no hash for {name}{more}",
            "pip install --require-hashes fails, and with it the build",
            "compile the file again with hashes, for example `pip-compile --generate-hashes`",
            Severity.WARNING,
            file=file,
            line=line,
        )


def _requirements(text: str) -> Iterator[tuple[str, int]]:
    """Yield each requirement with its options, and its first line."""
    parts: list[str] = []
    begin = 0
    for number, line in enumerate(text.splitlines(), 1):
        begin = begin if parts else number
        stripped = re.sub(r"(^|\s)#.*", "", line).strip()
        goes_on = stripped.endswith("\\")
        parts.append(stripped.removesuffix("\\"))
        if not goes_on:
            whole = " ".join(parts).strip()
            parts = []
            if whole:
                yield whole, begin
    if whole := " ".join(parts).strip():
        yield whole, begin
