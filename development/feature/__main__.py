"""Generate a feature: table, migration, pages, API and tests. The code behind `make feature`.

  make feature NAME=notes FIELDS="title:str body:text due:date?"

The result is yours to edit; docs/adding-a-feature.md explains each file. Nothing is written if the
input is wrong or something fails.
"""

import argparse
import datetime as dt
import sys
from collections.abc import Iterable
from pathlib import Path

from app.settings import ROOT
from development.feature.checks import check_application, check_changes, check_files
from development.feature.fields import TYPES, parse_fields
from development.feature.generate import (
    README,
    REGISTRY,
    Feature,
    listed_in_readme,
    registered,
    render,
    write_files,
)
from development.feature.mistakes import MistakeError
from development.feature.names import check_feature_name, check_singular, singular

# What the tests of an API need; an application without an API does not have it.
API_TESTS = "tests/features/api/resources.py"


def main(arguments: list[str] | None = None) -> int:
    """Generate the feature; return the exit code, which is 2 if the input is wrong."""
    types = "\n".join(f"  {name:<9} {kind.meaning}" for name, kind in TYPES.items())
    parser = argparse.ArgumentParser(
        prog="make feature",
        usage='make feature NAME=notes FIELDS="title:str due:date?" [SINGULAR=note] [API=no]',
        description=__doc__,
        epilog=f"types of fields (a question mark makes a field optional):\n{types}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--name", default="", metavar="NAME", help="a plural, such as notes: package, table and URL"
    )
    parser.add_argument(
        "--fields",
        default="",
        metavar="FIELDS",
        help="name:type of each field, separated by spaces",
    )
    parser.add_argument(
        "--singular",
        default="",
        metavar="SINGULAR",
        help="such as note; derived from NAME if omitted",
    )
    parser.add_argument(
        "--api", default="", metavar="API", help="yes or no; yes if omitted, unless there is no API"
    )
    options = parser.parse_args(arguments)
    try:
        feature = parse(ROOT, options)
        write(ROOT, feature)
    except MistakeError as mistake:
        print(mistake, file=sys.stderr)
        return 2
    return 0


def parse(root: Path, options: argparse.Namespace) -> Feature:
    """Return the feature that the options describe.

    Raises:
        MistakeError: it cannot be generated.
    """
    has_api = (root / API_TESTS).exists()
    if options.api not in {"", "yes", "no"}:
        raise MistakeError(f"API must be yes or no, got {options.api!r}.")
    if options.api == "yes" and not has_api:
        raise MistakeError("This application has no API: leave API=yes out.")
    has_api = has_api and options.api != "no"
    check_feature_name(options.name, has_api=has_api)
    if options.singular:
        check_singular(options.singular)
    return Feature(
        options.name,
        options.singular or singular(options.name),
        parse_fields(options.fields),
        has_api=has_api,
        has_personal_data="personal_data" in (root / "app" / "site.py").read_text(),
        has_browser_tests=(root / "tests" / "browser" / "browsing.py").exists(),
    )


def write(root: Path, feature: Feature) -> None:
    """Check that the feature can be added, and write its files.

    Raises:
        MistakeError: it cannot be added; nothing is written.
    """
    check_files(root, feature)
    check_changes(root, [REGISTRY, README])
    check_application(feature)
    print(f"Generating {feature.name} with the model {feature.model}", flush=True)
    files = render(root, feature, dt.datetime.now(dt.UTC).date())
    readme = listed_in_readme(root, feature)
    edits = {REGISTRY: registered(root, feature), **({README: readme} if readme else {})}
    write_files(root, files | edits)
    for path in files | edits:
        print(f"  {'changed' if path in edits else 'wrote':<8} {path}")
    print(
        f"\nThe singular is {feature.singular!r}; SINGULAR= sets another one.\nNext:\n"
        "  make lint\n"
        f"  make test ARGS=tests/features/{feature.name}\n"
        f"  make run    # then log in and open /{feature.url}/\n"
        "docs/adding-a-feature.md explains the files. To undo:\n"
        f"  git restore {' '.join(edits)}; rm -r {' '.join(own_paths(files, feature))}"
    )


def own_paths(files: Iterable[str], feature: Feature) -> list[str]:
    """Return the directories and files that belong to the feature alone."""
    folder = f"/{feature.name}/"
    return sorted(
        {f"{path.partition(folder)[0]}{folder}" if folder in path else path for path in files}
    )


if __name__ == "__main__":
    sys.exit(main())
