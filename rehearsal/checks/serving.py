"""How requests reach the application: the start command, its socket, the locations."""

import re
from collections.abc import Iterator
from itertools import pairwise

from rehearsal.checks.context import Context, Text, is_below, normal
from rehearsal.configuration import Application, Location
from rehearsal.findings import Finding, Severity

DAEMON_OPTIONS = {"-D", "--daemon", "--daemonize", "--detach"}
DETACHING = {"nohup", "setsid"}
LISTENING = re.compile(r"-p|-b|-l|--port|--bind|--listen|--http|--http-socket|--socket")
FIXED = re.compile(r"([\w.*-]+|\[[\w:]*\])?:\d{2,5}|\d{2,5}")
USES_PORT = re.compile(r"\$\{?PORT\b")
USES_SOCKET = re.compile(r"\$\{?SOCKET\b|\bunix:")
# Programs that make directories whose names only they know.
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
                "passes requests to the application, but nothing starts it",
                "every request there is answered with 502",
                "define web.commands.start",
            )
        elif application.web.commands.start and locations and passing is None:
            yield context.find(
                (*keys, "web", "locations"),
                "pass no request to the application",
                "nobody can reach the application",
                'write `passthru: true` at the location "/"',
            )


def check_workers(context: Context) -> Iterator[Finding]:
    for keys, _, application in context.applications():
        for name, worker in application.workers.items():
            if not worker.commands.start:
                yield context.find(
                    (*keys, "workers", name),
                    "has no start command",
                    "the platform rejects the push",
                    "define commands.start, or delete the worker",
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
                    f"begins with `{words[0]}`",
                    "signals may not reach the program, so that it does not stop in time",
                    "use `exec` alone",
                    Severity.WARNING,
                    line_of_text=command.line,
                )


def _in_background(context: Context, text: Text, how: str, line: int) -> Finding:
    if text.owner == "crons":
        consequence = "the platform takes the cron for done, and may stop the container under it"
    else:
        consequence = "the command ends at once, and the platform starts it again and again"
    return context.find(
        text.keys,
        f"runs in the background: it {how}",
        consequence,
        "let it run in the foreground",
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
                f"runs `{commands[-1].words[0]}` below a shell",
                "SIGTERM stops the shell, and the server is killed with requests in flight",
                "write `exec` before the last command",
                Severity.WARNING,
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
                "every request is answered with 502",
                "write `socket_family: unix`, or listen on 127.0.0.1:$PORT",
            )
        elif family == "unix" and not USES_SOCKET.search(words):
            if USES_PORT.search(words) or fixed:
                yield context.find(
                    place,
                    "listens on a TCP port, but the socket family is unix",
                    "every request is answered with 502",
                    "write `socket_family: tcp`, or listen on $SOCKET",
                )
        elif fixed and not USES_PORT.search(words):
            yield context.find(
                place,
                f"listens on a port of its own ({fixed[0]})",
                "the platform sends requests to $PORT; they are answered with 502",
                "use $PORT",
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
                    "it is slow, and may show its source code to visitors",
                    "use a server for production, such as gunicorn or hypercorn",
                    Severity.WARNING,
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
                        "is the directory of the application itself",
                        "everybody can read the source code",
                        "name a directory with public files only, or write `allow: false`",
                    )
            elif not _is_there(context, name, application, normal(location.root)):
                yield context.find(
                    place,
                    f"is {location.root}, which neither Git, nor a mount, nor the build hook has",
                    "requests there are answered with 404",
                    "name a directory that is there",
                    Severity.WARNING,
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
                        f"is no regular expression: {error}",
                        "the web server does not start with it",
                        "fix the expression",
                    )


def _passes(location: Location) -> bool:
    rules = location.rules.values()
    return bool(location.passthru) or any(rule.passthru for rule in rules)


def _long_running(context: Context) -> Iterator[Text]:
    """Yield the commands during which something runs: not hooks, `post_start` and the like."""
    return (text for text in context.texts if text.role == "start" and text.owner != "hooks")


def _fixed_port(text: Text) -> tuple[str, int] | None:
    """Return the first number of a port that a command names, and the line."""
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


def _is_there(context: Context, name: str, application: Application, root: str) -> bool:
    """Return whether something is likely to put files into a location's root."""
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
