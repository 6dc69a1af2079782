"""Hooks and commands: whether dash reads them, and what becomes of failures and secrets."""

import re
import shutil
import subprocess
from collections.abc import Iterator

from rehearsal.checks import shell
from rehearsal.checks.context import STAGE, Context
from rehearsal.findings import Finding, Severity

# What bash has, and dash takes for the name of a program.
BASH = {"[[", "declare", "function", "let", "popd", "pushd", "shopt", "source", "typeset"}
RESERVED = re.compile(r"PORT|SOCKET|PLATFORM_\w+")
# A default leaves what is set as it is: PORT="${PORT:-8000}".
DEFAULT = re.compile(r"\$\{?(\w+)(:?-.*\})?\}?", re.DOTALL)
ASSIGNING = re.compile(r"\$\{(PORT|SOCKET|PLATFORM_\w+):?=")


def check_syntax(context: Context) -> Iterator[Finding]:
    for text in context.texts:
        for line, problem in _syntax(text.text):
            yield context.find(
                text.keys,
                f"is not read by dash: {problem}",
                "dash runs all commands on the platform; this one fails",
                "write it for dash, or call `bash -c '…'`",
                line_of_text=line,
            )


def check_dash(context: Context) -> Iterator[Finding]:
    if shutil.which("dash") is None:
        yield Finding(
            STAGE,
            "dash is not installed, so whether it reads the commands was not checked",
            fix="install dash",
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
                    f"uses `{name}`, which bash has and dash has not",
                    "the command fails on the platform",
                    "write it for dash, or call `bash -c '…'`",
                    line_of_text=command.line,
                )


def check_failures(context: Context) -> Iterator[Finding]:
    for text in context.texts:
        lost = text.script.lost
        if text.owner == "hooks" and lost is not None:
            goes_on = {
                "build": "the build goes on with what is half done",
                "deploy": "the deploy goes on, and counts as a success",
            }.get(text.role, "nobody hears of it")
            yield context.find(
                text.keys,
                f"runs several commands without `set -e`: a failure of `{lost.words[0]}`"
                f" (its line {lost.line}) is not noticed",
                f"only the last command counts; {goes_on}",
                "begin the hook with `set -eu`",
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
                    "has `set -x`",
                    "commands are printed with the secrets in them, into a log that many can read",
                    "delete the x",
                    Severity.WARNING,
                    line_of_text=command.line,
                )


def check_environment(context: Context) -> Iterator[Finding]:
    for _, _, application in context.applications():
        file = context.path(application, ".environment")
        path = context.tree / file
        if file not in context.files or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        for line, problem in _syntax(text):
            yield Finding(
                STAGE,
                f"{file} is not read by dash: {problem}",
                "dash reads it before every command; with it all of them fail",
                "write it for dash",
                file=file,
                line=line,
            )
        for name, line in _reserved(text):
            yield Finding(
                STAGE,
                f"{file} sets {name}, which is the platform's",
                "it has the last word over every variable, so the application is not found,"
                " or does not find its services",
                "set it on your own machine only, in a file that is not committed",
                file=file,
                line=line,
            )


def _reserved(text: str) -> Iterator[tuple[str, int]]:
    """Yield variables of the platform that a text sets, with the line."""
    for command in shell.read(text).commands:
        for name, value in command.assignments.items():
            same = DEFAULT.fullmatch(value)
            if RESERVED.fullmatch(name) and not (same and same[1] == name):
                yield name, command.line
        for match in ASSIGNING.finditer(" ".join(command.words)):
            yield match[1], command.line


def _syntax(text: str) -> Iterator[tuple[int, str]]:
    """Yield what dash says of a text that it cannot read: the line and the problem."""
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
