"""Rehearse a deploy to Upsun on this machine, from the commit that you would push.

The commit is built, started, deployed, checked and stopped as on Upsun, with a real PostgreSQL
and a real nginx. Uncommitted changes are not included.
"""

import argparse
import asyncio
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from rehearsal import html_report, lifecycle
from rehearsal.deploy import BREAKS
from rehearsal.locks import holder
from rehearsal.program import program
from rehearsal.project import ProjectError
from rehearsal.report import Console, Report
from rehearsal.scene import KINDS, Chosen, Options
from rehearsal.services import ServiceError
from rehearsal.services.postgresql import MAX_CONNECTIONS
from rehearsal.tree import TreeError, find_tree

STOP_SECONDS = 60
MAX_INSTANCES = 8  # as for the platform's autoscaling, in most regions
NOTHING_REHEARSED, INTERRUPTED = 2, 130

EPILOG = (
    """\
exit codes:
  0    the deploy would succeed
  1    the deploy would fail: there is at least one error
  2    nothing failed, but something could not be rehearsed, or the rehearsal could not run; the
       message says what and why
  130  interrupted

failures that --break can cause, to see what visitors would see:
"""
    + "".join(f"  {name:<10} {meaning}\n" for name, meaning in BREAKS.items())
    + """
examples:
  %(prog)s validate             check the configuration only; see %(prog)s validate --help
  %(prog)s
  %(prog)s --strategy rolling --from HEAD~1
  %(prog)s --environment-type development --clone-of production
  %(prog)s --instances 3 --strategy rolling --from HEAD~1
  %(prog)s --break migration --fresh
  %(prog)s --restore dump.sql.gz
  %(prog)s --rollback
  %(prog)s --run cron:backup --run operation:clear-cache
  %(prog)s --keep
  %(prog)s --stop
"""
)


def port_number(text: str) -> int:
    """Parse a TCP port; 0 means any free port."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, got {text!r}")
    return int(text)


def host_name(text: str) -> str:
    """Parse a domain, such as `www.example.com`."""
    name = text.lower()
    if not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", name) or len(name) > 253:
        raise argparse.ArgumentTypeError(f"a domain looks like www.example.com, got {text!r}")
    return name


def variable(text: str) -> tuple[str, str]:
    """Parse an environment variable; without a value, it has that of this process."""
    name, equals, value = text.removeprefix("env:").partition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise argparse.ArgumentTypeError(f"write NAME=VALUE or NAME, got {text!r}")
    if not equals and name not in os.environ:
        raise argparse.ArgumentTypeError(f"{name} is not set; write {name}=VALUE")
    return name.upper(), value if equals else os.environ[name]


def number_to(most: int, least: int = 1) -> Callable[[str], int]:
    """Return a parser of a number from `least` to `most`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"write a number from {least} to {most}, got {text!r}")
        return int(text)

    return parse


def chosen(text: str) -> Chosen:
    """Parse what --run runs."""
    kind, _, name = text.partition(":")
    if kind not in KINDS or not name:
        raise argparse.ArgumentTypeError(
            f"write KIND:NAME, where KIND is one of {', '.join(KINDS)}; got {text!r}"
        )
    return Chosen(kind, name)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = argparse.ArgumentParser(
        prog=program(),
        usage="%(prog)s [options] [revision]\n       %(prog)s validate [options] [path ...]",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to rehearse")
    what.add_argument(
        "revision", nargs="?", default="HEAD", help="the commit to deploy (default: HEAD)"
    )
    what.add_argument(
        "-C",
        dest="repository",
        type=Path,
        default=Path(),
        metavar="DIRECTORY",
        help="the repository (default: the current directory)",
    )
    what.add_argument(
        "--application",
        metavar="NAME",
        help="deploy only this application and those that it needs (default: all)",
    )
    what.add_argument(
        "--environment",
        metavar="NAME",
        help="the environment, whose data is kept between rehearsals (default: the name of its"
        " type)",
    )
    what.add_argument(
        "--environment-type",
        default="production",
        choices=("production", "staging", "development"),
        help="the type of the environment (default: production)",
    )
    what.add_argument(
        "--clone-of", metavar="NAME", help="start with a copy of another environment's data"
    )
    what.add_argument("--fresh", action="store_true", help="delete the environment's data first")
    what.add_argument(
        "--restore",
        type=Path,
        metavar="FILE",
        help="start with the data of a dump, made by pg_dump or `upsun db:dump`: plain SQL or the"
        " custom format, compressed with gzip or not; deletes the environment's data first",
    )
    how = parser.add_argument_group("how to rehearse it")
    how.add_argument(
        "--domain",
        type=host_name,
        metavar="HOST",
        help="the project's own domain (default: a host of the form that the platform generates)",
    )
    how.add_argument(
        "--strategy",
        choices=("rolling", "stop-start"),
        help="replace a running release under a steady load",
    )
    how.add_argument(
        "--from", dest="previous", metavar="REV", help="the release to replace, with --strategy"
    )
    how.add_argument(
        "--rollback",
        nargs="?",
        const="",
        metavar="REV",
        help="after the deploy, deploy an earlier release again, on the new schema and under a"
        " steady load (default: the commit before)",
    )
    how.add_argument(
        "--break",
        dest="broken",
        choices=BREAKS,
        metavar="STEP",
        help=f"make a step fail on purpose: {', '.join(BREAKS)}",
    )
    how.add_argument(
        "--deploys",
        type=number_to(100),
        default=1,
        metavar="N",
        help="deploy this many times in a row under the same load, with --strategy: after the first"
        " deploy, the release replaces itself (default: 1)",
    )
    how.add_argument(
        "--instances",
        type=number_to(MAX_INSTANCES),
        default=1,
        metavar="N",
        help="run this many instances of the application, which share storage mounts, as `upsun"
        " resources:set --count` does (default: 1); with --break kill, one of them is killed",
    )
    how.add_argument(
        "--instances-max",
        type=number_to(100),
        metavar="N",
        help="check that the database has enough connections for this many instances, the maximum"
        " of `upsun autoscaling:set` (default: as many as --instances)",
    )
    how.add_argument(
        "--max-connections",
        type=number_to(10000, 10),
        default=MAX_CONNECTIONS,
        metavar="N",
        help="the limit of the PostgreSQL service, as `upsun db:sql 'SHOW max_connections'` prints"
        f" it; it depends on the service's size (default: {MAX_CONNECTIONS})",
    )
    how.add_argument(
        "--variable",
        dest="variables",
        action="append",
        default=[],
        type=variable,
        metavar="NAME[=VALUE]",
        help="set an environment variable, as `upsun variable:create` does with the prefix env:;"
        " without a value, it is taken from this shell; may be repeated",
    )
    how.add_argument(
        "--run",
        dest="runs",
        action="append",
        default=[],
        type=chosen,
        metavar="KIND:NAME",
        help="run a cron, an operation, a source-operation or a task after the deploy, such as"
        " cron:backup; may be repeated",
    )
    how.add_argument(
        "--force", action="store_true", help="continue even if the configuration has errors"
    )
    how.add_argument("--strict", action="store_true", help="count warnings as errors")
    how.add_argument(
        "--rebuild",
        action="store_true",
        help="build the image again, even if the tree is unchanged",
    )
    how.add_argument(
        "--no-isolation",
        dest="isolated",
        action="store_false",
        help="run without bubblewrap, as on machines that do not have it",
    )
    how.add_argument(
        "--schema",
        type=Path,
        metavar="FILE",
        help="validate the configuration against this JSON schema too, as `upsun validate` does",
    )
    how.add_argument(
        "--port", type=port_number, default=0, help="the router's port (default: any free port)"
    )
    after = parser.add_argument_group("output and afterwards")
    after.add_argument("--json", action="store_true", help="print the report as JSON")
    after.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write the report as an HTML page, with a timeline and costs",
    )
    after.add_argument(
        "--verbose", action="store_true", help="print warnings and notes, not only their number"
    )
    after.add_argument(
        "--keep", action="store_true", help="keep the application running in the background"
    )
    after.add_argument(
        "--stop", action="store_true", help="stop the application that --keep left running"
    )
    after.add_argument(
        "--state",
        type=Path,
        metavar="DIRECTORY",
        help="the directory for images, data and logs (default: .rehearsal)",
    )
    return parser


def options(arguments: argparse.Namespace) -> Options:
    """Turn the command line's arguments into options.

    Raises:
        TreeError: there is no repository.
        SystemExit: the arguments do not fit together.
    """
    if arguments.strategy and not arguments.previous:
        parser().error("--strategy requires --from REV, the release to replace")
    if arguments.deploys > 1 and not arguments.strategy:
        parser().error("--deploys requires --strategy rolling or --strategy stop-start")
    if arguments.instances_max and arguments.instances_max < arguments.instances:
        parser().error("--instances-max must not be less than --instances")
    if arguments.previous and not arguments.strategy:
        parser().error("--from requires --strategy rolling or --strategy stop-start")
    if arguments.strategy and arguments.broken in {"build", "kill"}:
        parser().error(f"--break {arguments.broken} cannot be combined with --strategy")
    if arguments.rollback is not None:
        if arguments.strategy or arguments.broken:
            parser().error("--rollback cannot be combined with --strategy or --break")
        arguments.rollback = arguments.rollback or f"{arguments.revision}~1"
    if arguments.restore and not arguments.restore.is_file():
        parser().error(f"--restore requires a dump, and {arguments.restore} is not a file")
    if arguments.restore and arguments.clone_of:
        parser().error("--restore cannot be combined with --clone-of: both bring the data")
    environment = arguments.environment or arguments.environment_type
    for name in filter(None, [environment, arguments.clone_of]):
        # The name becomes that of a directory and of a database.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,30}", name):
            parser().error(
                "an environment name has at most 31 letters, digits and hyphens, and starts with a"
                f" letter or a digit; got {name!r}"
            )
    if arguments.clone_of == environment:
        parser().error(f"--clone-of must name another environment than {environment}")
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
        "restore": arguments.restore and arguments.restore.absolute(),
        "html": arguments.html and arguments.html.absolute(),
        "runs": tuple(arguments.runs),
        "variables": dict(arguments.variables),
    }
    return Options(**{field.name: values[field.name] for field in fields(Options)})


def main() -> int:
    """Run the command; return the exit code."""
    arguments = parser().parse_args()

    def work() -> int:
        wanted = options(arguments)
        console = Console(quiet=arguments.json, verbose=arguments.verbose)
        if arguments.stop:
            return stop(wanted)
        if wanted.keep:
            return in_background(wanted, console, as_json=arguments.json)
        return asyncio.run(run(wanted, console, as_json=arguments.json))

    return report_errors(work)


def report_errors(work: Callable[[], int]) -> int:
    """Run `work`, print an error as one sentence, and return the exit code."""
    try:
        return work()
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("Interrupted. Everything it started has been stopped.", file=sys.stderr)
        return INTERRUPTED
    except (TreeError, ProjectError, ServiceError) as error:
        print(error, file=sys.stderr)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}{error.strerror or error}", file=sys.stderr)
    except Exception as error:  # a bug in the rehearsal says nothing about the deploy
        print(f"The rehearsal itself failed: {error!r}", file=sys.stderr)
    return NOTHING_REHEARSED


async def run(options: Options, console: Console, *, as_json: bool, pipe: int | None = None) -> int:
    """Rehearse and report.

    Args:
        options: the command line's options.
        console: shows the progress and the report.
        as_json: print the report as JSON, without progress.
        pipe: sends the exit code to the foreground process while this one keeps running.
    """
    task = asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)

    async def complete(report: Report) -> None:
        if options.html is not None:
            options.html.write_text(html_report.render(report))
        if as_json:
            print(json.dumps(report.document(), indent=2), flush=True)
        else:
            console.close(report)
        if pipe is not None and report.address:
            console.say(f"Still running at {report.address}; logs: {options.logs}")
            if len(report.instances) > 1:
                console.say(f"Its instances: {', '.join(report.instances)}")
            console.say(f"To stop it: {options.stop_command}")
            options.kept.touch()
            detach(pipe, report.exit_code)
            await asyncio.Event().wait()
        elif report.exit_code:
            console.say(f"Logs: {options.logs}")

    return (await lifecycle.rehearse(options, console, complete)).exit_code


def in_background(options: Options, console: Console, *, as_json: bool) -> int:
    """Rehearse in a background process; return its exit code while it keeps running."""
    receiver, pipe = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        os.setsid()
        code = NOTHING_REHEARSED
        try:
            code = report_errors(
                lambda: asyncio.run(run(options, console, as_json=as_json, pipe=pipe))
            )
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
    """Send the exit code to the foreground process, and detach from its terminal."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.flush() if stream is not sys.stdin else None
        os.dup2(null, stream.fileno())
    os.close(null)
    os.write(pipe, bytes([code]))
    os.close(pipe)


def stop(options: Options) -> int:
    """Stop a rehearsal that --keep left running."""
    lock = options.place / "lock"
    process = holder(lock)
    if process is None:
        print(f"No rehearsal of {options.environment} is running.")
        return 0
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while holder(lock) == process:
        if time.monotonic() > deadline:
            print(
                f"Process {process} is still running {STOP_SECONDS} s after SIGTERM.",
                file=sys.stderr,
            )
            return 1
        time.sleep(0.05)
    print(f"Stopped the rehearsal of {options.environment}.")
    return 0
