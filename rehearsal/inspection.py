"""Inspect a running deploy: start, shutdown, workers, logs, and requests under load."""

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil

from rehearsal.excerpts import cause, names_error, traceback
from rehearsal.findings import Finding, Severity
from rehearsal.instance import START_SECONDS, STOP_SECONDS, ExitStatus, Instance
from rehearsal.load import SHARE, Failure
from rehearsal.router import Page
from rehearsal.sandbox import run
from rehearsal.services import Databases

PROMPT_SECONDS = 10.0  # a longer shutdown is a warning
VISITORS = 40  # clients with a request in flight when SIGTERM is sent
POLL_SECONDS = 0.05
PORT_CHECK_SECONDS = 0.5  # between two checks of the listening ports
PORT_CHECKS = 12  # give up after that many in a row have found only other ports
ENVIRONMENT_SECONDS = 30
GRACEFUL = (
    "shut down gracefully: stop accepting connections, answer the requests in flight, then exit"
)
SEE_OUTPUT = "fix the error in the output below"
LOGGED_ERRORS = 5  # per log
LOGGED_ERROR = re.compile(r'"level": ?"(?:warning|error|critical)"|\b(?:WARNING|ERROR|CRITICAL)\b')

# Prints the variables before and after, and what the file itself prints, separated by \0\1\0.
READ_ENVIRONMENT = """
env -0 >"$0/before"
. ./.environment >"$0/output" 2>&1 </dev/null
env -0 >"$0/after"
cat "$0/before"; printf '\\0\\1\\0'; cat "$0/after"; printf '\\0\\1\\0'
head -c 2000 "$0/output"
"""

Find = Callable[..., None]


# What programs print when they cannot reach a host, which may be named in the first group.
UNREACHABLE = re.compile(
    r"Could not resolve host: ([\w.-]+)|unable to resolve host address .([\w.-]+)"
    r"|Failed to connect to ((?!localhost|127\.)[\w.-]+)"
    r"|getaddrinfo (?:ENOTFOUND|EAI_AGAIN) ([\w.-]+)"
    r"|(?:error sending request for url|Failed to (?:fetch|download)):? [(`]https?://([\w.-]+)"
    # Poetry asks PyPI's JSON interface, which a mirror may not have.
    r"|Package \S+ \(\S+\) not found\.(?P<poetry>)"
    # A file of a lock file existed when it was locked, and a mirror may not have it.
    r"|404 Not Found - GET https?://\S+/-/(?P<npm>[\w.-]+\.tgz)"
    r"|https?://\S+/-/(?P<yarn>[\w.-]+\.tgz): Request failed \"404"
    r"|Temporary failure in name resolution|Network is unreachable"
)
# What programs print about an environment variable that is not set, if its name is a secret's.
SENSITIVE = r"([A-Z][A-Z0-9_]*(?:KEY|TOKEN|SECRET)[A-Z0-9_]*)"
UNSET = re.compile(
    rf"KeyError: '{SENSITIVE}'|\b{SENSITIVE} environment variable"
    rf"|{SENSITIVE} not found\. Declare it|{SENSITIVE} is (?:not set|required|missing)"
    rf"|environment variable:? [`'\"]?{SENSITIVE}\b"
)


def unreachable(output: str) -> str | None:
    """Return the host that a command could not reach; None if that is not why it failed."""
    match = UNREACHABLE.search(output)
    if match is None:
        return None
    if match.lastgroup == "poetry":
        return "PyPI's JSON interface, which Poetry uses"
    if file := match["npm"] or match["yarn"]:
        return f"a registry that has {file}"
    return next(filter(None, match.groups()), "the Internet")


def unset_secret(output: str) -> str | None:
    """Return the variable that a program needs and that users set on the platform, if any."""
    match = UNSET.search(output)
    name = next(filter(None, match.groups()), None) if match else None
    return None if name is None or name.startswith("PLATFORM_") else name


def suggest_fix(output: str) -> str:
    """Return the fix for the error in a command's output; "" if there is no output."""
    if name := unset_secret(output):
        return f"set it on the platform with `upsun variable:create`, and here: --variable {name}=…"
    read_only = "write to a mount or to /tmp; everything else is read-only after the build hook"
    known = {
        r"Read-only file system.*/\.cache/uv/": "uv needs a writable cache at runtime: set"
        " UV_CACHE_DIR=/tmp/uv, or call the programs in .venv/bin instead of `uv run`",
        r"Read-only file system|EROFS": read_only,
        r"Permission denied|EACCES": read_only,
        r"DO NOT MATCH THE HASHES": "the package differs from the pinned one: compile the lock file"
        " again, and review what has changed",
        r"--require-hashes mode": "compile the requirements file with hashes for all packages",
        r"Can not perform a '--user' install": "set PIP_USER=0 in the build hook: the image sets"
        " PIP_USER=1, which a virtual environment refuses",
        r"No module named 'psycopg'": "SQLAlchemy 2.1 uses psycopg 3 for postgresql://: install"
        " psycopg[binary], or write postgresql+psycopg2:// in the URL",
        r"Can't locate revision": "the database has a migration that is not in this commit, perhaps"
        " from another branch: use --fresh or another --environment",
    }
    for pattern, fix in known.items():
        if re.search(pattern, output):
            return fix
    return SEE_OUTPUT if output.strip() else ""


def explain(log: Path) -> str:
    """Return the part of a log that explains a failure; "" if there is no log."""
    with suppress(FileNotFoundError):
        return cause(log.read_text(errors="replace"))
    return ""


def with_log(found: list[Finding], log: Path) -> list[Finding]:
    """Add the application's last error to the first finding that is one, because it may be why."""
    first = next((n for n, each in enumerate(found) if each.severity is Severity.ERROR), None)
    text = explain(log)
    if first is None or not names_error(text):
        return found
    finding = replace(
        found[first], excerpt=f"{found[first].excerpt}\nin the application's log:\n{text}".lstrip()
    )
    return [*found[:first], finding, *found[first + 1 :]]


def tail(log: Path, lines: int) -> str:
    """Return the last lines of a log."""
    with suppress(FileNotFoundError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


def logged_errors(log: Path) -> list[str]:
    """Return the last warnings and errors of a log, JSON or text."""
    with suppress(FileNotFoundError):
        lines = log.read_text(errors="replace").splitlines()
        return [line[:500] for line in lines if LOGGED_ERROR.search(line)][-LOGGED_ERRORS:]
    return []


async def environment_file(instance: Instance, log: Path) -> list[Finding]:
    """Source `.environment` as the platform does, and check what it prints and sets.

    All variables are written to `log`, secrets included.
    """
    container = instance.container()
    place = "/run/web" if container.bwrap else str(instance.scratch)
    result = await run(
        container.command("dash", "-c", READ_ENVIRONMENT, place),
        environment=container.environment(),
        directory=container.tree,
        log=log,
        seconds=ENVIRONMENT_SECONDS,
    )
    parts = result.output.split("\0\1\0")
    if len(parts) != 3:
        return [
            Finding(
                "environment",
                "the file ends the shell that sources it",
                consequence="commands do not run, and SSH logins fail",
                fix="remove `exit` and `set -e`, and do not use unset variables under `set -u`",
                file=".environment",
            )
        ]
    before, after = (dict(line.partition("=")[::2] for line in p.split("\0")) for p in parts[:2])
    found = []
    if parts[2]:
        found.append(
            Finding(
                "environment",
                "the file prints output",
                consequence="rsync, mount downloads and other programs that connect over SSH fail",
                fix="make sure that it prints nothing to stdout or stderr",
                file=".environment",
                excerpt="\n".join(parts[2].splitlines()[:6]),
            )
        )
    for name in sorted(after):
        own = name in {"PORT", "SOCKET"} or name.startswith("PLATFORM_")
        if own and after[name] != before.get(name):
            found.append(
                Finding(
                    "environment",
                    f"the file changes {name}, which is reserved for the platform",
                    consequence="it overrides the platform's value, so the platform and the"
                    " application use different values",
                    fix=f"remove {name} from the file",
                    file=".environment",
                )
            )
    return found


async def wait_until_up(
    instance: Instance, find: Find, stage: str, *, is_final: bool = True
) -> bool:
    """Wait until the application accepts connections; add a finding if it does not.

    An application that receives no requests, such as a static site, need not accept any. If the
    result is not final, an application that keeps crashing gets a warning only: it may need what
    the deploy hook does.
    """
    if not instance.is_passing:
        if instance.nginx is None:
            find(
                stage,
                "there is no web server that serves the files",
                fix="install nginx (Debian package: nginx-light)",
                severity=Severity.NOT_REHEARSED,
            )
        return instance.nginx is not None
    loop = asyncio.get_running_loop()
    begun = checked = loop.time()
    elsewhere = 0  # checks in a row that found it listening on other ports only
    while loop.time() < begun + START_SECONDS:
        if await instance.is_up(POLL_SECONDS):
            return True
        if instance.web is None or instance.web.is_crash_looping or elsewhere > PORT_CHECKS:
            break
        if loop.time() > checked + PORT_CHECK_SECONDS:
            ports = await asyncio.to_thread(instance.web.listening)
            elsewhere = elsewhere + 1 if ports and instance.address not in ports else 0
            checked = loop.time()
        await asyncio.sleep(POLL_SECONDS)
    why = _explain_failed_start(instance)
    if not is_final and instance.web and instance.web.is_crash_looping:
        why["severity"] = Severity.WARNING
        why["consequence"] = "the platform restarts it in a loop until the deploy hook has run"
    find(stage, **why)
    return False


def _explain_failed_start(instance: Instance) -> dict[str, Any]:
    """Return the finding that explains why the application does not accept connections."""
    place = instance.image.configuration.place(
        "applications", instance.image.application, "web", "commands", "start"
    )
    web = instance.web
    if web is None:
        return {
            "message": "there is no start command",
            "consequence": "every request gets 502",
            "fix": "add web.commands.start",
        }
    output = explain(instance.log)
    if web.codes:
        fix = suggest_fix(output)
        if web.codes[-1] == 0:
            fix = "run the server in the foreground, without `&` and not as a daemon"
        return {
            "message": f"the start command exited {len(web.codes)} times, most recently with exit"
            f" code {web.codes[-1]}",
            "consequence": "the platform restarts it in a loop, and every request gets 502",
            "fix": fix,
            "place": place,
            "excerpt": output,
        }
    ports = ", ".join(map(str, sorted(web.listening())))
    expected = "$SOCKET" if instance.is_unix else f"$PORT ({instance.port})"
    if instance.is_unix:
        fix = "set `socket_family: tcp` under web.upstream, or listen on $SOCKET"
    else:
        fix = "listen on 127.0.0.1:$PORT"
    where = f"listens on port {ports}" if ports else "does not listen on any port"
    return {
        "message": f"the application {where}, but requests are sent to {expected}",
        "consequence": "every request gets 502",
        "fix": fix,
        "place": place,
        "excerpt": output,
    }


async def is_ready(url: str, seconds: float, *, host: str) -> bool:
    """Wait until a URL responds with 200; return whether it did."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    async with httpx.AsyncClient(timeout=10, trust_env=False, headers={"Host": host}) as client:
        while loop.time() < deadline:
            with suppress(httpx.HTTPError):
                if (await client.get(url)).status_code == 200:
                    return True
            await asyncio.sleep(POLL_SECONDS)
    return False


def judge_end(end: ExitStatus, stage: str) -> list[Finding]:
    """Check how an application ended after SIGTERM."""
    if end.killed:
        return [
            Finding(
                stage,
                f"the application was still running {STOP_SECONDS} s after SIGTERM and was killed",
                consequence="every deploy loses the requests in flight",
                fix="start the server with `exec`, and shut down on SIGTERM",
                severity=Severity.WARNING,
            )
        ]
    found = []
    if end.seconds > PROMPT_SECONDS:
        found.append(
            Finding(
                stage,
                f"the application took {end.seconds:.1f} s to shut down",
                consequence="requests are held during that time",
                fix=f"shut down within {PROMPT_SECONDS:.0f} s of SIGTERM",
                severity=Severity.WARNING,
            )
        )
    if end.code not in {0, -15, 143, None}:
        found.append(
            Finding(
                stage,
                f"the application ended with exit code {end.code} after SIGTERM",
                fix="exit with code 0 after a graceful shutdown",
                severity=Severity.WARNING,
            )
        )
    return found


def explain_loss(end: ExitStatus, answered: int, lost: int, stage: str) -> Finding:
    """Return the finding that explains why requests in flight were lost at SIGTERM."""
    server = end.programs[-1].partition(" ")[0] if end.programs else "the server"
    if end.reached_shell_only:
        why = "the signal ended the shell, and the server was killed without it"
        fix = "put `exec` before the command in web.commands.start, so that the server gets it"
    elif end.killed:
        why = "the server was still running when it was killed"
        fix = "shut down on SIGTERM"
    elif end.code in {-15, 143}:
        why = "the server does not handle the signal, and ended at once"
        fix = GRACEFUL
    elif any("gunicorn" in program for program in end.programs):
        why = (
            "gunicorn answered the requests that its workers were serving, and dropped those that"
            " waited in its listen backlog"
        )
        fix = "serve more requests at the same time, for example with `--threads 8`"
    else:
        why = f"{Path(server).name} ended before it had answered them"
        fix = GRACEFUL
    return Finding(
        stage,
        f"{lost} of {answered + lost} requests in flight were lost at SIGTERM: {why}",
        consequence="visitors who are waiting for a response during a deploy may see an error",
        fix=fix,
        severity=Severity.WARNING,
    )


async def stop_in_flight(instance: Instance, page: Page) -> tuple[ExitStatus, int, int]:
    """Stop an application while it serves requests.

    Returns:
        How the application ended, the number of answered requests, and the number of lost ones.
    """
    results: list[bool] = []
    all_served, stopping = asyncio.Event(), asyncio.Event()

    async def visitor(client: aiohttp.ClientSession) -> None:
        """Send requests one after another; the last one is in flight when SIGTERM is sent."""
        while not stopping.is_set():
            try:
                async with client.get(
                    page.path, headers={"Host": page.host}, allow_redirects=False
                ) as response:
                    await response.read()
                    results.append(response.status < 500)
            except (aiohttp.ClientError, TimeoutError):
                results.append(False)
            if len(results) >= VISITORS:
                all_served.set()

    async with (
        aiohttp.ClientSession(
            f"http://127.0.0.1:{instance.entrance}",
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(STOP_SECONDS),
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(VISITORS):
            group.create_task(visitor(client))
        await all_served.wait()
        stopping.set()
        results.clear()  # count only the requests in flight
        end = await instance.stop()
    return end, sum(results), results.count(False)


async def kill_processes(instance: Instance) -> int:
    """Kill all processes of the application and wait for their end; return their number."""
    if instance.web is None or instance.web.running is None:
        return 0
    running = instance.web.running
    processes = running.processes()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    await running.wait()
    return len(processes)


def judge_workers(instance: Instance, stage: str = "workers") -> list[Finding]:
    """Check that the workers keep running, including the previous release's on the new schema."""
    found = []
    for worker in instance.workers:
        if worker.codes:
            place = instance.image.configuration.place(
                "applications", instance.image.application, "workers", worker.name
            )
            found.append(
                Finding(
                    stage,
                    f"the worker {worker.name} exited {len(worker.codes)} times, most recently with"
                    f" exit code {worker.codes[-1]}",
                    consequence="the platform restarts it in a loop",
                    severity=Severity.ERROR if worker.is_crash_looping else Severity.WARNING,
                    fix="keep the worker running; if the schema is not migrated yet, wait for it",
                    file=place.file,
                    line=place.line,
                    excerpt=explain(worker.log),
                )
            )
    return found


def judge_worker_ends(instance: Instance, stage: str) -> list[Finding]:
    """Check how the workers ended after SIGTERM."""
    found = []
    for worker in instance.workers:
        end = instance.worker_ends.get(worker.name)
        if end is None or (not end.killed and end.code in {0, -15, 143, None}):
            continue
        how = (
            f"was still running {STOP_SECONDS} s after SIGTERM and was killed"
            if end.killed
            else f"ended with exit code {end.code} after SIGTERM"
        )
        found.append(
            Finding(
                stage,
                f"the worker {worker.name} {how}",
                consequence="every deploy loses the work in progress" if end.killed else "",
                fix="start it with `exec`, and shut down on SIGTERM"
                if end.killed
                else "exit with code 0 after a graceful shutdown",
                severity=Severity.ERROR if end.killed else Severity.WARNING,
                excerpt=explain(worker.log),
            )
        )
    return found


def logs(instance: Instance) -> list[Finding]:
    """Check the logs of the application and its workers."""
    found = []
    for log in [instance.log, *(worker.log for worker in instance.workers)]:
        try:
            lines = log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            continue
        for pattern, message, fix in (
            (
                r"Traceback \(most recent call last\)",
                "the log contains a traceback",
                "fix the error, or handle the exception",
            ),
            (
                r"Read-only file system|EROFS",
                "the application tried to write to the read-only file system",
                "write to a mount or to /tmp",
            ),
        ):
            numbers = [n for n, line in enumerate(lines) if re.search(pattern, line)]
            if numbers:
                found.append(
                    Finding(
                        "inspect",
                        f"{message} ({log.name}, {len(numbers)} times)",
                        fix=fix,
                        severity=Severity.WARNING,
                        excerpt="\n".join(traceback(lines[numbers[0] :])),
                    )
                )
    return found


@dataclass(frozen=True)
class Loss:
    """The loss of an instance under load: its processes were killed."""

    begun: float
    """When the first process was killed, on the clock of the event loop."""
    ended: float
    """When the last process had ended."""
    in_flight: int
    """The number of requests that the instance had received and not answered."""


def excuse_losses(numbers: dict[str, Any], losses: Sequence[Loss]) -> int:
    """Take the requests in flight on lost instances out of the failed ones; return their number.

    A request that began after the loss is never excused, nor are more than the instance had.
    """
    failures = sorted(Failure(*failure) for failure in numbers.pop("failures", ()))
    excused = 0
    for loss in losses:
        cut = [each for each in failures if each.begun <= loss.ended and each.ended >= loss.begun]
        for failure in cut[: loss.in_flight]:
            failures.remove(failure)
            excused += 1
            result = numbers["kinds"][failure.kind]
            result["failed"] -= 1
            result["failures"][failure.why] -= 1
            if not result["failures"][failure.why]:
                del result["failures"][failure.why]
    return excused


async def judge_load(
    numbers: dict[str, Any],
    databases: Databases | None,
    logs: list[Path],
    *,
    refuses_unsafe: bool,
    losses: Sequence[Loss] = (),
) -> tuple[dict[str, Any], list[Finding]]:
    """Check a load's result for failed requests and lost writes.

    Args:
        numbers: the load's result.
        databases: the server on which acknowledged writes must be found, in the first database.
        logs: the releases' logs; their errors are added to a finding about failed requests.
        refuses_unsafe: whether POST and PATCH requests were refused for a while, as the platform
            does while it holds other requests.
        losses: the instances that were lost during the load.

    Returns:
        The numbers for the report, and the findings.
    """
    writes = numbers.pop("acknowledged")
    found = []
    lost = []
    if writes and databases:
        connection = await databases.connect()
        try:
            for query, what in writes:
                if not await connection.fetchval(query):
                    lost.append(what)
        finally:
            await connection.close()
    numbers |= {
        "writes": len(writes),
        "lost": len(lost),
        "refused": 0,
        "in_flight": excuse_losses(numbers, losses),
    }
    failed = 0
    for kind, result in numbers["kinds"].items():
        refused = result["failures"].get("503", 0)
        if refuses_unsafe and kind.startswith(("POST", "PATCH")) and refused:
            numbers["refused"] += refused
            result["failed"] -= refused
            result["failures"].pop("503")
            result["refused"] = refused
        failed += result["failed"]
    numbers["failed"] = failed
    if failed:
        found.append(
            Finding(
                "load",
                f"{failed} requests failed",
                consequence="visitors see errors during the deploy",
                excerpt="\n".join(
                    [
                        *(
                            f"{kind}: {count} x {failure}"
                            for kind, result in numbers["kinds"].items()
                            for failure, count in result["failures"].items()
                        ),
                        *(f"{log.stem}: {line}" for log in logs for line in logged_errors(log)),
                    ]
                ),
            )
        )
    if numbers["asked"] > numbers["capacity"] * SHARE > 0:
        found.append(
            Finding(
                "load",
                f"this machine serves {numbers['capacity']:.0f} requests per second, so the load is"
                f" {numbers['capacity'] * SHARE:.0f} per second instead of {numbers['asked']:.0f}",
                consequence="a higher load would test this machine, which also starts the new"
                " release, and not the application",
                severity=Severity.NOTE,
            )
        )
    if numbers["in_flight"]:
        found.append(
            Finding(
                "load",
                f"{numbers['in_flight']} requests in flight on the lost instance failed",
                consequence="nothing can answer them: the platform loses them, too. Every other"
                " request counts as a failure above",
                severity=Severity.NOTE,
            )
        )
    if numbers["refused"]:
        found.append(
            Finding(
                "load",
                f"{numbers['refused']} POST requests were refused with 503 while others were held",
                consequence="the platform does the same: it holds only idempotent requests",
                fix="use the rolling strategy, which neither holds nor refuses requests",
                severity=Severity.NOTE,
            )
        )
    if lost:
        found.append(
            Finding(
                "load",
                f"{len(lost)} acknowledged writes are not in the database",
                consequence="visitors lose data that the application confirmed as saved",
                excerpt="\n".join(lost[:6]),
            )
        )
    return numbers, found
