"""Check the configuration of a project, without running anything.

Without a path, the project in the current directory is checked. A path is the directory of a
project or a YAML file. The files of one .upsun directory are checked together, as the platform
merges them; any other file is checked on its own. Uncommitted changes are included.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rehearsal import formats
from rehearsal.configuration import CONFIG_FILE, DIRECTORY, REJECTED, STAGE, config_files
from rehearsal.findings import Finding, Verdict, verdict
from rehearsal.fixed import DIRECTORY as FIXED_DIRECTORY
from rehearsal.fixed import is_fixed
from rehearsal.knowledge import AS_OF
from rehearsal.program import program
from rehearsal.report import Console
from rehearsal.tree import git
from rehearsal.validation import validate

USAGE_ERROR = 2

EPILOG = """\
exit codes:
  0    the platform would accept the configuration, even if a part of it cannot be rehearsed
  1    it would reject it; with --strict, also if there are warnings
  2    a path does not exist

examples:
  %(prog)s
  %(prog)s .upsun/config.yaml --strict
  %(prog)s --format github
"""


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = argparse.ArgumentParser(
        prog=f"{program()} validate",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="path", help="directories or YAML files"
    )
    parser.add_argument("--strict", action="store_true", help="count warnings as errors")
    parser.add_argument(
        "--schema",
        type=Path,
        metavar="FILE",
        help="validate against this JSON schema too, as `upsun validate` does",
    )
    parser.add_argument(
        "--format",
        choices=("text", "json", "github", "sarif"),
        default="text",
        help="github prints annotations for a workflow (default: text)",
    )
    parser.add_argument(
        "--json", dest="format", action="store_const", const="json", help="same as --format json"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    options = parser().parse_args(arguments)
    paths = options.paths or [enclosing_project(Path.cwd())]
    for path in paths:
        if not path.exists():
            print(f"{path} does not exist.", file=sys.stderr)
            return USAGE_ERROR
    findings = [
        finding
        for directory, file in dict.fromkeys(map(project_of, paths))
        for finding in check(directory, file, options.schema)
    ]
    findings.sort(key=lambda finding: finding.severity.rank)  # stable: places stay sorted
    result = verdict(findings, strict=options.strict)
    show(findings, options.format, result, strict=options.strict)
    return int(result is Verdict.FAILS)


def enclosing_project(directory: Path) -> Path:
    """Return the nearest directory upwards with a project, else `directory`."""
    for candidate in (directory, *directory.parents):
        if (candidate / DIRECTORY).is_dir() or (candidate / FIXED_DIRECTORY).is_dir():
            return candidate
    return directory


def project_of(path: Path) -> tuple[Path, Path | None]:
    """Return the directory of a path's project, and the file if it is checked on its own."""
    path = path.absolute()
    if path.is_dir():
        return (path.parent if path.name == DIRECTORY else path), None
    if path.parent.name == DIRECTORY:
        return path.parent.parent, None
    return path.parent, path


def check(directory: Path, file: Path | None, schema: Path | None) -> list[Finding]:
    """Return the findings about a project, with files relative to the current directory."""
    if file is None and not config_files(directory) and not is_fixed(directory):
        return [Finding(STAGE, f"{shown(directory / CONFIG_FILE)} does not exist", REJECTED)]
    complete = file is None and (directory / ".git").exists()
    result = validate(
        directory,
        files=known_files(directory) if complete else None,
        schema=schema,
        paths=[file] if file else None,
        complete=complete,
    )
    return [
        replace(finding, file=shown(directory / finding.file)) if finding.file else finding
        for finding in result.findings
    ]


def known_files(directory: Path) -> list[str]:
    """Return the files that Git tracks or would add."""
    options = ("--cached", "--others", "--exclude-standard", "-z")
    return [name for name in git(directory, "ls-files", *options).split("\0") if name]


def shown(path: Path) -> str:
    """Return a path relative to the current directory if it is below it."""
    here = Path.cwd()
    return (path.relative_to(here) if path.is_relative_to(here) else path).as_posix()


def show(findings: list[Finding], style: str, result: Verdict, *, strict: bool) -> None:
    """Print the findings and the verdict."""
    if style == "github":
        if findings:
            print(formats.github(findings))
    elif style == "sarif":
        print(formats.sarif(findings))
    elif style == "json":
        document = {
            "ok": result is not Verdict.FAILS,
            "strict": strict,
            "knows_upsun_as_of": AS_OF.isoformat(),
            "findings": [formats.as_json(finding) for finding in findings],
        }
        print(json.dumps(document, indent=2))
    else:
        console = Console()
        for finding in findings:
            console.finding(finding)
        console.verdict(
            "The platform would reject the configuration."
            if verdict(findings) is Verdict.FAILS
            else "The platform would accept the configuration.",
            "red" if result is Verdict.FAILS else "green",
            findings,
        )
