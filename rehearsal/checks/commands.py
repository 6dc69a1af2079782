"""Checks of hooks and commands: dash syntax, ignored failures, and secrets in logs."""

import re
import shutil
import subprocess
from collections.abc import Iterator

from rehearsal.checks import shell
from rehearsal.checks.context import Context
from rehearsal.configuration import STAGE
from rehearsal.findings import Finding, Severity

# Bash builtins that dash does not have.
BASH = {"[[", "declare", "function", "let", "popd", "pushd", "shopt", "source", "typeset"}
RESERVED = re.compile(r"PORT|SOCKET|PLATFORM_\w+")
# A default value does not overwrite a variable: PORT="${PORT:-8000}".
DEFAULT = re.compile(r"\$\{?(\w+)(:?-.*\})?\}?", re.DOTALL)
ASSIGNING = re.compile(r"\$\{(PORT|SOCKET|PLATFORM_\w+):?=")


def check_syntax(context: Context) -> Iterator[Finding]:
    for text in context.texts:
        for line, problem in _syntax(text.text):
            yield context.find(
                text.keys,
                f"has a syntax error: {problem}",
                "the platform runs commands with dash, and this one fails",
                "fix the syntax; if it is bash syntax, rewrite it for dash or use `bash -c '…'`",
                Severity.ERROR,
                line_of_text=line,
            )


def check_dash(context: Context) -> Iterator[Finding]:
    if shutil.which("dash") is None:
        yield Finding(
            STAGE,
            "dash is not installed, so the syntax of hooks and commands was not checked",
            fix="install dash (Debian package: dash)",
            severity=Severity.NOTE,
        )


def check_bash(context: Context) -> Iterator[Finding]:
    for text in context.texts:
        for command in text.script.commands:
            words = command.program
            if words[:1] and (words[0] in BASH or (words[0] == "set" and "pipefail" in words)):
                name = "set -o pipefail" if words[0] == "set" else words[0]
                yield context.find(
                    text.keys,
                    f"uses `{name}`, which dash does not support",
                    "the platform runs commands with dash, and this one fails",
                    "rewrite it for dash, or use `bash -c '…'`",
                    line_of_text=command.line,
                )


def check_failures(context: Context) -> Iterator[Finding]:
    for text in context.texts:
        lost = text.script.lost
        if text.owner == "hooks" and lost is not None:
            effect = {
                "build": "the build continues with an incomplete image",
                "deploy": "the deploy continues and is reported as a success",
            }.get(text.role, "the failure is not reported")
            yield context.find(
                text.keys,
                f"runs several commands without `set -e`: a failure of `{lost.words[0]}`"
                f" (line {lost.line} of the hook) is ignored",
                f"only the exit code of the last command counts; {effect}",
                "start the hook with `set -eu`",
            )


def check_tracing(context: Context) -> Iterator[Finding]:
    for text in context.texts:
        for command in text.script.commands:
            if command.words[0] == "set" and any(
                word == "xtrace" or re.fullmatch(r"-[a-z]*x[a-z]*", word)
                for word in command.words[1:]
            ):
                yield context.find(
                    text.keys,
                    "uses `set -x`",
                    "commands are printed to the log, with the secrets in them",
                    "remove the `x` option",
                    line_of_text=command.line,
                )


def check_environment(context: Context) -> Iterator[Finding]:
    for _, _, application in context.applications():
        file = context.path(application, ".environment")
        path = context.tree / file
        if file not in (context.files or ()) or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        for line, problem in _syntax(text):
            yield Finding(
                STAGE,
                f"{file} has a syntax error: {problem}",
                "dash reads this file before every command, so all of them fail",
                "fix the syntax; dash does not support bash syntax",
                file=file,
                line=line,
            )
        for name, line in _reserved(text):
            yield Finding(
                STAGE,
                f"{file} sets {name}, which is reserved for the platform",
                "it overrides the platform's value, so requests do not reach the application, or"
                " the application does not find its services",
                f"remove {name} from the file; on your machine, set it in a file outside Git",
                Severity.WARNING,
                file=file,
                line=line,
            )


def _reserved(text: str) -> Iterator[tuple[str, int]]:
    """Yield each reserved variable that a shell text sets, and the line."""
    for command in shell.read(text).commands:
        for name, value in command.assignments.items():
            same = DEFAULT.fullmatch(value)
            if RESERVED.fullmatch(name) and not (same and same[1] == name):
                yield name, command.line
        for match in ASSIGNING.finditer(" ".join(command.words)):
            yield match[1], command.line


def _syntax(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the message of a syntax error that dash reports."""
    dash = shutil.which("dash")
    if dash is None:
        return
    result = subprocess.run(
        [dash, "-n"], input=text.encode(errors="replace"), capture_output=True, check=False
    )
    if result.returncode != 0:
        message = result.stderr.decode(errors="replace").strip().partition("\n")[0]
        match = re.match(r".*?: (\d+): (.*)", message)
        yield (int(match[1]), match[2]) if match else (0, message)
