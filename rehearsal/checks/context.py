"""The context that every check receives: the configuration and the commit's files."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from rehearsal.checks import shell
from rehearsal.configuration import STAGE, Application, Commands, Configuration
from rehearsal.findings import Finding, Severity
from rehearsal.shapes import Keys


@dataclass(frozen=True)
class Text:
    """A hook or command of the configuration."""

    application: str
    keys: Keys
    text: str

    @property
    def role(self) -> str:
        """Return the last key, such as `build` or `start`."""
        return self.keys[-1]

    @property
    def owner(self) -> str:
        """Return the section it belongs to: `hooks`, `web`, `workers` or `crons`."""
        return self.keys[2]

    @cached_property
    def script(self) -> shell.Script:
        return shell.read(self.text)


@dataclass(frozen=True)
class Context:
    """The configuration, and the commit that contains it."""

    tree: Path
    """The directory in which the commit is checked out."""
    files: frozenset[str] | None
    """The files that Git tracks; None if only the configuration is known."""
    configuration: Configuration

    def find(
        self,
        keys: Keys,
        problem: str,
        consequence: str,
        fix: str,
        severity: Severity = Severity.WARNING,
        *,
        line_of_text: int = 0,
    ) -> Finding:
        """Create a finding about a key.

        Args:
            keys: the key, whose path starts the message.
            problem: the rest of the message.
            consequence: what the platform would do, or what a visitor would see.
            fix: how to fix it.
            severity: an error means that the platform rejects the push; what only may go wrong
                is a warning, because the rehearsal itself finds out.
            line_of_text: the line within the shell text at that key, counted from 1.
        """
        file, line = self.configuration.place(*keys)
        text = self.configuration.loaded.texts[file][line - 1]
        if line_of_text and re.search(r":\s*\|[-+\d]*\s*(#.*)?$", text):
            line += line_of_text
        return Finding(STAGE, f"{'.'.join(keys)} {problem}", consequence, fix, severity, file, line)

    def applications(self) -> Iterator[tuple[Keys, str, Application]]:
        """Yield each application with its keys and its name."""
        for name, application in self.configuration.applications.items():
            yield ("applications", name), name, application

    def raw(self, keys: Keys) -> Mapping[str, Any]:
        """Return the mapping at a path as it is in the files; empty if it is not a mapping."""
        value: Any = self.configuration.raw
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, Mapping) else {}

    @cached_property
    def texts(self) -> list[Text]:
        """All shell texts."""
        return [text for keys, name, app in self.applications() for text in _texts(keys, name, app)]

    def path(self, application: Application, name: str) -> str:
        """Return a path of the application relative to the repository; "" for its root."""
        return normal(f"{application.directory}/{name}")

    def tracked(self, path: str) -> list[str]:
        """Return the tracked files at or below a path."""
        return sorted(file for file in self.files or () if is_below(file, path))


def _texts(keys: Keys, name: str, application: Application) -> Iterator[Text]:
    for hook in ("build", "deploy", "post_deploy"):
        if text := getattr(application.hooks, hook):
            yield Text(name, (*keys, "hooks", hook), text)
    owners: list[tuple[Keys, Commands]] = [((*keys, "web"), application.web.commands)]
    for worker, description in application.workers.items():
        owners.append(((*keys, "workers", worker), description.commands))
    for owner, commands in owners:
        for role in ("pre_start", "start", "post_start", "stop"):
            if text := getattr(commands, role):
                yield Text(name, (*owner, "commands", role), text)
    for cron, job in application.crons.items():
        for role in ("start", "stop"):
            if text := getattr(job.commands, role):
                yield Text(name, (*keys, "crons", cron, "commands", role), text)


def normal(path: str) -> str:
    """Return a path without leading and trailing slashes and `.` segments; "" for the root."""
    text = PurePosixPath(path.strip("/")).as_posix()
    return "" if text == "." else text


def is_below(path: str, directory: str) -> bool:
    """Return whether a path is `directory` or is below it; "" is the root."""
    return not directory or path == directory or path.startswith(f"{directory}/")
