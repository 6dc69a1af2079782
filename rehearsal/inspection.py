"""Judges how the parts of a deploy behaved."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil

from rehearsal.configuration import CONFIG_FILE
from rehearsal.findings import Finding, Severity
from rehearsal.instance import START_SECONDS, STOP_SECONDS, ExitStatus, Instance
from rehearsal.load import SHARE
from rehearsal.sandbox import run
from rehearsal.services import Databases

PROMPT_SECONDS = 10.0  # that an application may take to end
VISITORS = 40  # who wait for an answer when SIGTERM comes
POLL_SECONDS = 0.05
LOOK_SECONDS = 0.5  # between two looks at the ports that are listened on
LOOKS = 12  # after which a port that is not listened on will not be
ENVIRONMENT_SECONDS = 30
EXCERPT_LINES = 12
COMPLAINTS = 5  # of one log
COMPLAINT = re.compile(r'"level": ?"(?:warning|error|critical)"|\b(?:WARNING|ERROR|CRITICAL)\b')

# The variables before and after, and what the file prints, apart from each other.
READ_ENVIRONMENT = """
env -0 >"$0/before"
. ./.environment >"$0/output" 2>&1 </dev/null
env -0 >"$0/after"
cat "$0/before"; printf '\\0\\1\\0'; cat "$0/after"; printf '\\0\\1\\0'
head -c 2000 "$0/output"
"""

Find = Callable[..., None]


def suggest_fix(output: str) -> str:
    """Return how to fix what a command's output complains about, if that is well known."""
    known = {
        r"Read-only file system|EROFS": "write to a mount or to /tmp; all else is read-only once"
        " the image is built",
        r"Permission denied|EACCES": "write to a mount or to /tmp; all else is read-only once the"
        " image is built",
        r"DO NOT MATCH THE HASHES": "the package is another one than was pinned: compile the lock"
        " file again, and look at what has changed",
        r"--require-hashes mode": "compile the requirements with hashes for all of them",
        r"Can not perform a '--user' install": "set PIP_USER=0: the image tells pip to install for"
        " the user",
        r"Can't locate revision": "the database knows a migration that this commit lacks, from"
        " another branch perhaps: rehearse with --fresh, or in another --environment",
    }
    for pattern, words in known.items():
        if re.search(pattern, output):
            return words
    return ""


def tail(log: Path, lines: int = 12) -> str:
    """Return the last lines of a log."""
    with suppress(FileNotFoundError):
        return "\n".join(log.read_text(errors="replace").rstrip().splitlines()[-lines:])
    return ""


def logged_errors(log: Path) -> list[str]:
    """Return the last lines of a log, JSON or not, that are warnings or worse."""
    with suppress(FileNotFoundError):
        lines = log.read_text(errors="replace").splitlines()
        return [line[:500] for line in lines if COMPLAINT.search(line)][-COMPLAINTS:]
    return []


async def environment_file(instance: Instance, log: Path) -> list[Finding]:
    """Read `.environment` as the platform does, and judge what it prints and sets.

    All secrets come to stand in `log`.
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
                "the shell that reads it ends there",
                consequence="no variable after that line is set, and no login works",
                fix="no `exit`, no `set -e`, no unset variable under `set -u`",
                file=".environment",
            )
        ]
    before, after = (dict(line.partition("=")[::2] for line in p.split("\0")) for p in parts[:2])
    found = []
    if parts[2]:
        found.append(
            Finding(
                "environment",
                "it prints something",
                consequence="rsync and the download of mounts break, as does every login by a"
                " program",
                fix="let it print nothing, neither to stdout nor to stderr",
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
                    f"it changes {name}, which is the platform's",
                    consequence="its word is the last one: the platform and the application no"
                    " longer mean the same",
                    fix=f"remove {name} from it",
                    file=".environment",
                )
            )
    return found


async def wait_until_up(instance: Instance, find: Find, stage: str) -> bool:
    """Wait until the application accepts connections; say what is wrong if it never does."""
    loop = asyncio.get_running_loop()
    begun = looked = loop.time()
    elsewhere = 0  # looks in a row that have found it listening, but not where it should
    while loop.time() < begun + START_SECONDS:
        if await instance.is_up(POLL_SECONDS):
            return True
        if instance.web is None or instance.web.is_crash_looping or elsewhere > LOOKS:
            break
        if loop.time() > looked + LOOK_SECONDS:
            ports = await asyncio.to_thread(instance.web.listening)
            elsewhere = elsewhere + 1 if ports and instance.address not in ports else 0
            looked = loop.time()
        await asyncio.sleep(POLL_SECONDS)
    find(stage, **_explain_failed_start(instance))
    return False


def _explain_failed_start(instance: Instance) -> dict[str, Any]:
    """Say why the application does not accept connections where it is looked for."""
    line = instance.image.configuration.line(
        "applications", instance.image.application, "web", "commands", "start"
    )
    web = instance.web
    if web is None:
        return {"message": "there is no start command", "consequence": "every request is a 502"}
    written = tail(instance.log)
    if web.codes:
        background = " and what it started was ended with it" if web.codes[-1] == 0 else ""
        return {
            "message": f"the start command has ended {len(web.codes)} times, with exit code"
            f" {web.codes[-1]}{background}",
            "consequence": "the platform starts it again at once, for ever; every request is a 502",
            "fix": "stay in the foreground: no `&`, no daemon" if background else "",
            "line": line,
            "excerpt": written,
        }
    ports = ", ".join(map(str, sorted(web.listening())))
    expected = "the socket $SOCKET" if instance.is_unix else f"$PORT ({instance.port})"
    if ports and instance.is_unix:
        fix = "say `socket_family: tcp` under web.upstream, or let it listen on $SOCKET"
    else:
        fix = "let it listen on 127.0.0.1:$PORT"
    where = f"listens on port {ports}" if ports else "listens nowhere"
    return {
        "message": f"the application {where}, and requests go to {expected}",
        "consequence": "every request is a 502",
        "fix": fix,
        "line": line,
        "excerpt": written,
    }


async def is_ready(url: str, seconds: float, *, host: str) -> bool:
    """Wait until a URL is answered with 200."""
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
    """Judge how an application ended after SIGTERM."""
    if end.killed:
        return [
            Finding(
                stage,
                f"the application had not ended {STOP_SECONDS} s after SIGTERM, and was killed",
                consequence="what it was doing is lost, at every deploy",
                fix="`exec` the server in the start command, and let it end on SIGTERM",
            )
        ]
    found = []
    if end.seconds > PROMPT_SECONDS:
        found.append(
            Finding(
                stage,
                f"the application took {end.seconds:.1f} s to end",
                consequence="requests are held all that time",
                severity=Severity.WARNING,
            )
        )
    if end.code not in {0, -15, 143, None}:
        found.append(
            Finding(
                stage,
                f"the application ended with exit code {end.code} after SIGTERM",
                severity=Severity.WARNING,
            )
        )
    return found


async def stop_in_flight(
    instance: Instance, path: str, *, host: str
) -> tuple[ExitStatus, int, int]:
    """Stop an application while it answers requests.

    Returns:
        How it ended, how many of the requests were answered, and how many were not.
    """
    answers: list[bool] = []
    all_served, stopping = asyncio.Event(), asyncio.Event()

    async def visitor(client: aiohttp.ClientSession) -> None:
        """Send one request after the other; the last is in flight when the signal comes."""
        while not stopping.is_set():
            try:
                async with client.get(path, headers={"Host": host}) as answer:
                    await answer.read()
                    answers.append(answer.status < 500)
            except (aiohttp.ClientError, TimeoutError):
                answers.append(False)
            if len(answers) >= VISITORS:
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
        answers.clear()  # from here on it counts
        end = await instance.stop()
    return end, sum(answers), answers.count(False)


async def kill_processes(instance: Instance) -> int:
    """Kill all processes of the application, wait for their end, and return how many they were."""
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
    """Judge whether the workers stay; also those of the release before, on the new schema."""
    found = []
    for worker in instance.workers:
        if worker.codes:
            line = instance.image.configuration.line(
                "applications", instance.image.application, "workers", worker.name
            )
            found.append(
                Finding(
                    stage,
                    f"the worker {worker.name} has ended {len(worker.codes)} times, with exit code"
                    f" {worker.codes[-1]}",
                    consequence="the platform starts it again at once, for ever",
                    fix="a worker that finds an old schema waits",
                    file=CONFIG_FILE,
                    line=line,
                    excerpt=tail(worker.log),
                )
            )
    return found


def judge_worker_ends(instance: Instance, stage: str) -> list[Finding]:
    """Judge how the workers ended after SIGTERM."""
    found = []
    for worker in instance.workers:
        end = instance.worker_ends.get(worker.name)
        if end is None or (not end.killed and end.code in {0, -15, 143, None}):
            continue
        how = (
            f"had not ended {STOP_SECONDS} s after SIGTERM, and was killed"
            if end.killed
            else f"ended with exit code {end.code} after SIGTERM"
        )
        found.append(
            Finding(
                stage,
                f"the worker {worker.name} {how}",
                consequence="what it was doing is lost, at every deploy" if end.killed else "",
                fix="`exec` it in the start command, and let it end on SIGTERM"
                if end.killed
                else "",
                severity=Severity.ERROR if end.killed else Severity.WARNING,
                excerpt=tail(worker.log),
            )
        )
    return found


def logs(instance: Instance) -> list[Finding]:
    """Judge what the application has written."""
    found = []
    for log in [instance.log, *(worker.log for worker in instance.workers)]:
        try:
            lines = log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            continue
        for pattern, message, fix in (
            (r"Traceback \(most recent call last\)", "a traceback stands in the log", ""),
            (
                r"Read-only file system|EROFS",
                "the application has tried to write where it cannot",
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
                        excerpt=excerpt(lines[numbers[0] :]),
                    )
                )
    return found


def excerpt(lines: list[str]) -> str:
    """Return the beginning of a complaint, and its end, which says most in a traceback."""
    indented = next((n for n, line in enumerate(lines[1:], 1) if not line.startswith(" ")), 0)
    kept = lines[: indented + 1]
    if len(kept) > EXCERPT_LINES:
        kept = [*kept[:3], "  …", *kept[4 - EXCERPT_LINES :]]
    return "\n".join(line[:500] for line in kept)


async def judge_load(
    numbers: dict[str, Any],
    databases: Databases | None,
    names: list[str],
    logs: list[Path],
    *,
    refuses_unsafe: bool,
) -> tuple[dict[str, Any], list[Finding]]:
    """Look for what was lost.

    Args:
        numbers: the load's result.
        databases: where acknowledged writes must be found.
        names: the application's databases; rows are looked for in the first.
        logs: of the releases that answered; what they have complained of may say why they failed.
        refuses_unsafe: whether POST and PATCH were refused for a while, as the platform does where
            it holds the other requests.

    Returns:
        The numbers for the report, and the findings.
    """
    writes = numbers.pop("acknowledged")
    found = []
    lost = []
    if writes and names and databases:
        connection = await databases.connect(names[0])
        try:
            for query, what in writes:
                if not await connection.fetchval(query):
                    lost.append(what)
        finally:
            await connection.close()
    numbers |= {"writes": len(writes), "lost": len(lost), "refused": 0}
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
                consequence="visitors have seen errors",
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
                f"the release answers {numbers['capacity']:.0f} requests a second here, so the"
                f" load is {numbers['capacity'] * SHARE:.0f} and not {numbers['asked']:.0f}",
                consequence="more would try the machine: two releases are started on it meanwhile",
                severity=Severity.NOTE,
            )
        )
    if numbers["refused"]:
        found.append(
            Finding(
                "load",
                f"{numbers['refused']} POST requests were refused with 503 while others were held",
                consequence="the platform holds only what may be sent twice",
                fix="--strategy rolling holds and refuses nothing",
                severity=Severity.NOTE,
            )
        )
    if lost:
        found.append(
            Finding(
                "load",
                f"{len(lost)} writes were acknowledged and are not in the database",
                consequence="visitors lose what they were told was kept",
                excerpt="\n".join(lost[:6]),
            )
        )
    return numbers, found
