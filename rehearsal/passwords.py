"""Check that the URLs in `.environment` work with every password.

The passwords of a rehearsal are letters and digits. This sources `.environment` once more, with a
password that a URL must percent-encode.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rehearsal.findings import Finding, Severity
from rehearsal.instance import Instance
from rehearsal.sandbox import run
from rehearsal.variables import Endpoint, relationship_variables

HARD = "p%/@:#?&+ w"
SECONDS = 30
SOURCE = ". ./.environment >/dev/null 2>&1 </dev/null; env -0"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


async def check_urls(
    instance: Instance, endpoints: Mapping[str, Endpoint], *, log: Path
) -> list[Finding]:
    """Find variables with a URL that contains a password as it is.

    Args:
        instance: an instance that is not running.
        endpoints: the endpoints, by the name of their relationship.
        log: a temporary file; it receives all variables, secrets included.
    """
    container = instance.container()
    changed = {
        name: replace(endpoint, password=HARD)
        for name, endpoint in endpoints.items()
        if endpoint.password
    }
    if not changed:
        return []
    named = container.bwrap is not None
    variables = relationship_variables({**endpoints, **changed}, named=named)
    container = replace(container, variables={**container.variables, **variables})
    result = await run(
        container.command("dash", "-c", SOURCE),
        environment=container.environment(),
        directory=container.tree,
        log=log,
        seconds=SECONDS,
    )
    text = (container.tree / ".environment").read_text(errors="replace")
    found = []
    for entry in result.output.split("\0"):
        name, _, value = entry.partition("=")
        if URL.match(value) and HARD in value:
            found.append(
                Finding(
                    "environment",
                    f"{name} breaks with a password that contains %, /, @, : or #",
                    consequence="the application cannot connect if the platform generates such a"
                    " password",
                    fix="percent-encode the password, or give the library host, user and password"
                    " separately",
                    severity=Severity.WARNING,
                    file=".environment",
                    line=line_of(text, name),
                )
            )
    return found


def line_of(text: str, variable: str) -> int:
    """Return the line that sets a variable, counted from 1; 0 if there is none."""
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(rf"(?:^|[\s;]){re.escape(variable)}=", line):
            return number
    return 0
