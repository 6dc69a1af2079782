"""Checks of how requests reach the application: start command, socket, locations."""

import re
from collections.abc import Iterator
from itertools import pairwise

from rehearsal.checks.context import Context, Text, is_below, normal
from rehearsal.configuration import Application, Location
from rehearsal.findings import Finding

DAEMON_OPTIONS = {"-D", "--daemon", "--daemonize", "--detach"}
DETACHING = {"nohup", "setsid"}
LISTENING = re.compile(r"-p|-b|-l|--port|--bind|--listen|--http|--http-socket|--socket")
FIXED = re.compile(r"([\w.*-]+|\[[\w:]*\])?:\d{2,5}|\d{2,5}")
USES_PORT = re.compile(r"\$\{?PORT\b")
USES_SOCKET = re.compile(r"\$\{?SOCKET\b|\bunix:")
# Programs that create output directories without naming them on the command line.
BUILDERS = re.compile(r"\b(npm|npx|yarn|pnpm|bun|make|mkdocs|sphinx-build|hugo|collectstatic)\b")


def check_start(context: Context) -> Iterator[Finding]:
    for keys, _, application in context.applications():
        locations = application.web.locations
        if application.type.startswith("php"):
            continue
        passing = next((url for url, location in locations.items() if _passes(location)), None)
        if passing is not None and not application.web.commands.start:
            yield context.find(
                (*keys, "web", "locations", passing),
                "passes requests to the application, but there is no start command",
                "every request to this location gets 502",
                "add web.commands.start",
            )
        elif _serves(application) and locations and passing is None:
            yield context.find(
                (*keys, "web", "locations"),
                "do not pass any request to the application",
                "the application does not receive any requests",
                'add `passthru: true` to the location "/"',
            )


def check_background(context: Context) -> Iterator[Finding]:
    for text in _long_running(context):
        commands = text.script.commands
        if commands and commands[-1].end == "&":
            yield _in_background(context, text, "ends with `&`", commands[-1].line)
        for command in commands:
            words = command.program
            for option in sorted(DAEMON_OPTIONS & set(words[1:])):
                yield _in_background(context, text, f"has the option {option}", command.line)
            if words[:1] and words[0] in DETACHING and command.end != "&":
                yield context.find(
                    text.keys,
                    f"uses `{words[0]}`",
                    "SIGTERM may not reach the program, so it cannot shut down gracefully",
                    f"replace `{words[0]}` with `exec`",
                    line_of_text=command.line,
                )


def _in_background(context: Context, text: Text, how: str, line: int) -> Finding:
    if text.owner == "crons":
        consequence = "the platform considers the cron finished and may stop the container"
    else:
        consequence = "the command exits at once, and the platform restarts it in a loop"
    return context.find(
        text.keys,
        f"runs in the background: it {how}",
        consequence,
        "run it in the foreground",
        line_of_text=line,
    )


def check_exec(context: Context) -> Iterator[Finding]:
    for text in _long_running(context):
        commands = text.script.commands
        if text.owner == "crons" or len(commands) < 2:
            continue
        if commands[-1].words[0] != "exec" and all(c.words[0] != "trap" for c in commands):
            yield context.find(
                text.keys,
                f"runs `{commands[-1].words[0]}` as a child of the shell",
                "SIGTERM ends the shell only, and the program is killed without a graceful"
                " shutdown",
                "put `exec` before the last command",
                line_of_text=commands[-1].line,
            )


def check_socket(context: Context) -> Iterator[Finding]:
    for keys, _, application in context.applications():
        place = (*keys, "web", "commands", "start")
        text = next((text for text in context.texts if text.keys == place), None)
        if text is None:
            continue
        family = application.web.upstream.socket_family
        words = "\n".join(word for command in text.script.commands for word in command.words)
        fixed = _fixed_port(text)
        if family == "tcp" and USES_SOCKET.search(words) and not USES_PORT.search(words):
            yield context.find(
                place,
                "listens on a Unix socket, but the socket family is tcp",
                "every request gets 502",
                "set `socket_family: unix`, or listen on 127.0.0.1:$PORT",
            )
        elif family == "unix" and not USES_SOCKET.search(words):
            if USES_PORT.search(words) or fixed:
                yield context.find(
                    place,
                    "listens on a TCP port, but the socket family is unix",
                    "every request gets 502",
                    "set `socket_family: tcp`, or listen on $SOCKET",
                )
        elif fixed and not USES_PORT.search(words):
            yield context.find(
                place,
                f"listens on a fixed port ({fixed[0]}), not on $PORT",
                "the platform sends requests to $PORT, and every request gets 502",
                "listen on 127.0.0.1:$PORT",
                line_of_text=fixed[1],
            )


def check_development_server(context: Context) -> Iterator[Finding]:
    for text in context.texts:
        if (text.owner, text.role) != ("web", "start"):
            continue
        for command in text.script.commands:
            match = re.search(
                r"\b((flask|quart)\b.* run|manage\.py runserver)\b", " ".join(command.words)
            )
            if match or "--reload" in command.words:
                yield context.find(
                    text.keys,
                    f"runs a development server (`{match[1] if match else '--reload'}`)",
                    "it is slow, and its error pages may show source code to visitors",
                    "use a production server, such as gunicorn or hypercorn",
                    line_of_text=command.line,
                )


def check_roots(context: Context) -> Iterator[Finding]:
    for keys, name, application in context.applications():
        for url, location in application.web.locations.items():
            if location.root is None:
                continue
            place = (*keys, "web", "locations", url, "root")
            if not normal(location.root):
                if location.allow:
                    yield context.find(
                        place,
                        "is the application's root directory",
                        "anyone can download the source code",
                        "use a directory with public files only, or set `allow: false`",
                    )
            elif context.files is not None and not _exists(
                context, name, application, normal(location.root)
            ):
                yield context.find(
                    place,
                    f"is {location.root}, which is not in Git, not a mount, and not created by a"
                    " hook",
                    "every request to this location gets 404",
                    "use a directory that exists",
                )


def check_rules(context: Context) -> Iterator[Finding]:
    for keys, _, application in context.applications():
        for url, location in application.web.locations.items():
            for pattern in location.rules:
                try:
                    re.compile(pattern)
                except (re.error, RecursionError, OverflowError) as error:
                    yield context.find(
                        (*keys, "web", "locations", url, "rules", pattern),
                        f"is not a valid regular expression: {error}",
                        "the web server does not start",
                        "fix the expression",
                    )


def _serves(application: Application) -> bool:
    """Return whether the start command is not only there because a container needs one."""
    start = application.web.commands.start or ""
    return bool(start) and re.match(r"(exec\s+)?sleep\b", start) is None


def _passes(location: Location) -> bool:
    rules = location.rules.values()
    return bool(location.passthru) or any(rule.passthru for rule in rules)


def _long_running(context: Context) -> Iterator[Text]:
    """Yield the start commands of applications, workers and crons."""
    return (text for text in context.texts if text.role == "start" and text.owner != "hooks")


def _fixed_port(text: Text) -> tuple[str, int] | None:
    """Return the first fixed port that a command listens on, and its line."""
    for command in text.script.commands:
        words = command.program
        for before, word in pairwise(words):
            option, equals, value = word.partition("=")
            if not equals:
                option, value = before, word
            short = re.fullmatch(r"(-[pb])(.*\d.*)", word)
            if short:
                option, value = short[1], short[2]
            listens = LISTENING.fullmatch(option) or option == "runserver"
            if listens and FIXED.fullmatch(value):
                return value, command.line
    return None


def _exists(context: Context, name: str, application: Application, root: str) -> bool:
    """Return whether a location's root is in Git, in a mount, or probably created by a hook."""
    if context.tracked(context.path(application, root)):
        return True
    for key in application.mounts:
        if is_below(root, normal(key)) or is_below(normal(key), root):
            return True
    for text in context.texts:
        if text.application == name and text.owner == "hooks":
            for command in text.script.commands:
                parts = [part for word in command.words for part in re.split(r"[=:,]", word)]
                if any(
                    is_below(normal(part), root) or is_below(root, normal(part) or "-")
                    for part in parts
                ):
                    return True
            if BUILDERS.search(text.text):
                return True
    return False
