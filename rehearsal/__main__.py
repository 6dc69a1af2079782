"""Rehearse a deploy to Upsun on this machine, from the configuration that is pushed.

The committed tree is built, started, migrated, probed and stopped as Upsun does it, with a real
PostgreSQL and a real nginx. What lies uncommitted is no part of it.
"""

import argparse
import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from rehearsal import lifecycle
from rehearsal.deploy import BREAKS
from rehearsal.locks import holder
from rehearsal.project import ProjectError
from rehearsal.report import Console, Report
from rehearsal.scene import Options
from rehearsal.services import ServiceError
from rehearsal.tree import TreeError, find_tree

STOP_SECONDS = 60
NOTHING_REHEARSED, INTERRUPTED = 2, 130

EPILOG = (
    """\
exit codes:
  0  the deploy would go well
  1  it would not: there is at least one error
  2  nothing could be rehearsed; one sentence says why

what can be broken on purpose, to see what users would see:
"""
    + "".join(f"  {name:<10} {meaning}\n" for name, meaning in BREAKS.items())
    + """
examples:
  %(prog)s
  %(prog)s --strategy rolling --from HEAD~1
  %(prog)s --environment-type development --clone-of production
  %(prog)s --break migration --fresh
  %(prog)s --keep
  %(prog)s --stop
"""
)


def program() -> str:
    """Return what the user has typed to start this process, as their shell finds it."""
    script = Path(sys.argv[0]).absolute()
    if script.name == "__main__.py":
        return f"{shortened(Path(sys.executable))} -m rehearsal"
    return shortened(script)


def shortened(path: Path) -> str:
    """Return a program's name if it is found by that, or its path, relative if it is below here."""
    if shutil.which(path.name) == str(path):
        return path.name
    here = Path.cwd()
    return shlex.quote(f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path))


def port_number(text: str) -> int:
    """Parse a TCP port; 0 means any."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog=program(),
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what is rehearsed")
    what.add_argument("revision", nargs="?", default="HEAD", help="a commit (default: HEAD)")
    what.add_argument(
        "-C",
        dest="repository",
        type=Path,
        default=Path(),
        metavar="DIRECTORY",
        help="the repository (default: here)",
    )
    what.add_argument("--application", metavar="NAME", help="where the configuration has several")
    what.add_argument(
        "--environment",
        metavar="NAME",
        help="keeps data between rehearsals (default: the name of its type)",
    )
    what.add_argument(
        "--environment-type",
        default="production",
        choices=("production", "staging", "development"),
        help="default: production",
    )
    what.add_argument(
        "--clone-of", metavar="NAME", help="begin with a copy of the data of another environment"
    )
    what.add_argument("--fresh", action="store_true", help="begin without data")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--strategy",
        choices=("rolling", "stop-start"),
        help="replace a release that serves, under a steady load",
    )
    how.add_argument("--from", dest="previous", metavar="REV", help="the release that is replaced")
    how.add_argument(
        "--break",
        dest="broken",
        choices=BREAKS,
        metavar="STEP",
        help=f"let a step fail on purpose: {', '.join(BREAKS)}",
    )
    how.add_argument(
        "--force", action="store_true", help="go on although the configuration has errors"
    )
    how.add_argument(
        "--rebuild", action="store_true", help="build, even if this tree was built before"
    )
    how.add_argument(
        "--no-isolation",
        dest="isolated",
        action="store_false",
        help="do without bubblewrap, as on machines that have none",
    )
    how.add_argument(
        "--schema",
        type=Path,
        metavar="FILE",
        help="the JSON schema of the configuration, as `upsun validate` uses it",
    )
    how.add_argument("--port", type=port_number, default=0, help="where the router listens")
    after = parser.add_argument_group("what becomes of it")
    after.add_argument("--json", action="store_true", help="write the report as JSON")
    after.add_argument("--keep", action="store_true", help="leave it running in the background")
    after.add_argument("--stop", action="store_true", help="end what --keep has left running")
    after.add_argument(
        "--state",
        type=Path,
        metavar="DIRECTORY",
        help="where images, data and logs are kept (default: .rehearsal)",
    )
    return parser


def options(arguments: argparse.Namespace) -> Options:
    """Turn what was typed into what is meant.

    Raises:
        TreeError: there is no repository.
        SystemExit: the arguments do not fit together.
    """
    if arguments.strategy and not arguments.previous:
        parser().error("--strategy needs --from: the release that is replaced")
    if arguments.previous and not arguments.strategy:
        parser().error("--from needs --strategy: rolling or stop-start")
    if arguments.strategy and arguments.broken in {"build", "kill"}:
        parser().error(f"--break {arguments.broken} is for a deploy without --strategy")
    environment = arguments.environment or arguments.environment_type
    for name in filter(None, [environment, arguments.clone_of]):
        # It becomes the name of a directory and of a database.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,30}", name):
            parser().error(f"an environment is named with letters, digits and '-', not {name!r}")
    if arguments.clone_of == environment:
        parser().error("--clone-of names the environment itself")
    state = arguments.state or find_tree(arguments.repository, "HEAD").repository / ".rehearsal"
    command = program()
    if arguments.repository != Path():
        command += f" -C {shlex.quote(str(arguments.repository))}"
    if arguments.state:
        command += f" --state {shlex.quote(str(arguments.state))}"
    values = vars(arguments) | {
        "command": command,
        "repository": arguments.repository.absolute(),
        "state": state.absolute(),
        "environment": environment,
    }
    return Options(**{field.name: values[field.name] for field in fields(Options)})


def main() -> int:
    """Run the command line; return the exit code."""
    arguments = parser().parse_args()

    def work() -> int:
        wanted = options(arguments)
        if arguments.stop:
            return stop(wanted)
        if wanted.keep:
            return in_background(wanted, as_json=arguments.json)
        return asyncio.run(run(wanted, as_json=arguments.json))

    return report_errors(work)


def report_errors(work: Callable[[], int]) -> int:
    """Do some work; say what went wrong as a sentence, and return the exit code."""
    try:
        return work()
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("Stopped; nothing of it is left running.", file=sys.stderr)
        return INTERRUPTED
    except (TreeError, ProjectError, ServiceError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}{error.strerror or error}", file=sys.stderr)
    except Exception as error:  # whatever it is, it says nothing about the deploy
        print(f"The rehearsal itself has failed: {error!r}", file=sys.stderr)
    return NOTHING_REHEARSED


async def run(options: Options, *, as_json: bool, pipe: int | None = None) -> int:
    """Rehearse and report.

    Args:
        options: what was asked for.
        as_json: write the report for machines, and no progress.
        pipe: one to the process in the foreground, which gets the exit code while we stay.
    """
    task = asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    console = Console(quiet=as_json)

    async def complete(report: Report) -> None:
        if as_json:
            print(json.dumps(report.document(), indent=2), flush=True)
        else:
            console.close(report)
        if pipe is not None and report.address:
            console.say(f"It runs on at {report.address}; logs: {options.logs}")
            console.say(f"It ends with: {options.stop_command}")
            options.kept.touch()
            detach(pipe, report.exit_code)
            await asyncio.Event().wait()
        elif report.exit_code:
            console.say(f"Logs: {options.logs}")

    return (await lifecycle.rehearse(options, console, complete)).exit_code


def in_background(options: Options, *, as_json: bool) -> int:
    """Rehearse in a process that stays when this one ends with the exit code."""
    receiver, pipe = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        os.setsid()
        code = NOTHING_REHEARSED
        try:
            code = report_errors(lambda: asyncio.run(run(options, as_json=as_json, pipe=pipe)))
            sys.stdout.flush()
        finally:
            os._exit(code)
    os.close(pipe)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
    answer = os.read(receiver, 1)
    if answer:
        return answer[0]
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def detach(pipe: int, code: int) -> None:
    """Give the exit code to the process in the foreground, and let go of its terminal."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.flush() if stream is not sys.stdin else None
        os.dup2(null, stream.fileno())
    os.close(null)
    os.write(pipe, bytes([code]))
    os.close(pipe)


def stop(options: Options) -> int:
    """End a rehearsal that was kept."""
    lock = options.place / "lock"
    process = holder(lock)
    if process is None:
        print(f"Nothing is kept of {options.environment}.")
        return 0
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while holder(lock) == process:
        if time.monotonic() > deadline:
            print(f"Process {process} does not end.", file=sys.stderr)
            return 1
        time.sleep(0.05)
    print(f"The rehearsal of {options.environment} has ended.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
