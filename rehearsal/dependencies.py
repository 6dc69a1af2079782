"""What the platform installs before the build hook: `dependencies`, and a build flavor's packages.

It installs global dependencies with the package manager of their language, and finds their programs
on PATH from then on. A Node.js image installs the packages of `package.json` unless its build
flavor is `none`. In a composable image, `stack.packages` names Nix packages instead.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rehearsal.configuration import Application
from rehearsal.network import is_reachable
from rehearsal.runtimes import PROGRAMS, runtimes
from rehearsal.shapes import Keys

# Nix packages that are on PyPI or in the npm registry under the same name.
NIX = {
    **dict.fromkeys(("uv", "poetry", "pipenv", "pdm", "hatch", "ruff"), "python3"),
    **dict.fromkeys(("yarn", "pnpm", "sass", "typescript"), "nodejs"),
}
PYTHON_PACKAGES = re.compile(r"python\d*Packages\.(.+)")
NODE_PACKAGES = re.compile(r"nodePackages(?:_latest)?\.(.+)")
INSTALLERS = {"python3": "pip install", "nodejs": "npm install -g"}
# The program `n` downloads Node.js from this host. Without a connection, this machine's Node.js
# stands in for what it installs.
NODE_HOST = "nodejs.org"
N_STAND_IN = """\
mkdir -p ~/.global/bin && cat >~/.global/bin/n <<'EOF' && chmod +x ~/.global/bin/n
#!/bin/sh
echo "n: there is no connection to nodejs.org; Node.js $(node --version) stands in" >&2
EOF
"""


@dataclass(frozen=True)
class Step:
    """A command that the platform runs before the build hook."""

    command: str
    keys: Keys
    """The keys below the application that ask for it."""


@dataclass(frozen=True)
class Unavailable:
    """Something that the platform would install and the rehearsal cannot."""

    name: str
    keys: Keys


def plan(application: Application, directory: Path) -> tuple[list[Step], list[Unavailable]]:
    """Return the commands that install what an application asks for, and what none can install.

    Args:
        application: the application.
        directory: its directory, with its files.
    """
    wanted: dict[tuple[str, Keys], list[str]] = {}
    unavailable: list[Unavailable] = []
    steps = []
    for language, name, version, keys in _asked(application):
        if (language, name) == ("nodejs", "n") and not is_reachable(NODE_HOST):
            steps.append(Step(N_STAND_IN, keys))
        elif language in INSTALLERS:
            section = keys[:2] if keys[0] == "stack" else ("dependencies", language)
            wanted.setdefault((language, section), []).append(_named(language, name, version))
        else:
            unavailable.append(Unavailable(f"{name} ({language})" if language else name, keys))
    steps += [
        Step(f"{INSTALLERS[language]} {shlex.join(names)}", keys)
        for (language, keys), names in wanted.items()
    ]
    if _has_flavor(application, directory):
        steps.append(Step("npm prune && npm install", ("type",)))
    return steps, unavailable


def stands_in_for_n(steps: Iterable[Step]) -> Step | None:
    """Return the step that replaces `n` because there is no connection; None if there is none."""
    return next((step for step in steps if step.command == N_STAND_IN), None)


def _asked(application: Application) -> Iterator[tuple[str, str, str, Keys]]:
    """Yield language, name, version and keys of each package; the language is "" if unknown."""
    dependencies = application.dependencies
    for language, packages in (dependencies if isinstance(dependencies, Mapping) else {}).items():
        for name, version in (packages if isinstance(packages, Mapping) else {}).items():
            # A mapping is a Composer section, such as `require`.
            if not isinstance(version, Mapping):
                keys: Keys = ("dependencies", str(language), str(name))
                yield str(language), str(name), str(version or ""), keys
            else:
                yield str(language), str(name), "", ("dependencies", str(language))
    stack = application.stack or []
    packages = stack.get("packages") or [] if isinstance(stack, Mapping) else stack
    own = runtimes(application)
    programs = {program for language in own for program in PROGRAMS[language]}
    for number, item in enumerate(packages):
        name = str(item.get("package", "") if isinstance(item, Mapping) else item)
        keys = ("stack", *(["packages"] if isinstance(stack, Mapping) else []), str(number))
        if name.partition("@")[0] in own or name.rpartition(".")[2] in programs:
            continue  # a runtime in a list, which is the older form, or a part of a runtime
        if match := PYTHON_PACKAGES.fullmatch(name):
            yield "python3", match[1], "", keys
        elif match := NODE_PACKAGES.fullmatch(name):
            yield "nodejs", match[1], "", keys
        else:
            yield NIX.get(name, ""), name, "", keys


def _named(language: str, name: str, version: str) -> str:
    """Return a package with its version, as the package manager expects it."""
    version = "" if version.strip() in {"*", "latest"} else version.strip()
    if language == "nodejs":
        return f"{name}@{version or 'latest'}"
    # A bare version is an exact one.
    return f"{name}=={version}" if version[:1].isdigit() else f"{name}{version}"


def _has_flavor(application: Application, directory: Path) -> bool:
    """Return whether the platform installs the packages of `package.json` by itself."""
    build: Any = application.build
    flavor = build.get("flavor") if isinstance(build, Mapping) else None
    if application.stack or next(iter(runtimes(application)), "") != "nodejs" or flavor == "none":
        return False
    try:
        return isinstance(json.loads((directory / "package.json").read_text()), dict)
    except (OSError, ValueError):
        return False
