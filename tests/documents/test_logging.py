"""docs/logging.md lists every event that the application and the toolkit log."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from app.settings import ROOT

PACKAGES = ("app", "quart_upsun")
LEVELS = {
    **{level: level for level in ("debug", "info", "warning", "error", "critical")},
    "exception": "error",
}


class Event(NamedTuple):
    """A line that can be in the log."""

    name: str
    level: str
    logger: str


class Call(NamedTuple):
    """The keys that a call logs."""

    keys: frozenset[str]
    has_more: bool
    """Whether the call passes a dictionary as well, whose keys are not in the source."""


def log_method(node: ast.expr) -> str | None:
    """Return the name of a method of a module's `log`; None for any other expression."""
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "log"
    ):
        return node.attr
    return None


def log_calls(path: Path) -> Iterator[tuple[str, ast.expr, list[ast.keyword]]]:
    """Yield the method, the event and the keys of each call that logs.

    The method is called, or is an argument that is followed by the event.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            arguments = [node.func, *node.args]
            for position, argument in enumerate(arguments):
                method = log_method(argument)
                if method is not None:
                    assert len(arguments) > position + 1, f"{path}:{node.lineno}: no event"
                    yield method, arguments[position + 1], node.keywords


def literal_keys(value: ast.expr) -> Iterator[str]:
    """Yield the keys of a dictionary in the call: names with dots cannot be keywords."""
    for key in value.keys if isinstance(value, ast.Dict) else ():
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value


def is_variable(keyword: ast.keyword) -> bool:
    """Tell whether a call passes a dictionary whose keys are not in the call."""
    return keyword.arg is None and not (
        isinstance(keyword.value, ast.Dict) and None not in keyword.value.keys
    )


def logged_events() -> dict[Event, list[Call]]:
    """Return the events in the source of the application and the toolkit."""
    found: dict[Event, list[Call]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = path.relative_to(ROOT).with_suffix("")
            if "tests" in module.parts:
                continue
            for method, event, keywords in log_calls(path):
                if not isinstance(event, ast.Constant) or not isinstance(event.value, str):
                    raise AssertionError(f"{path}:{event.lineno}: the event is not a literal")
                keys = frozenset(each.arg for each in keywords if each.arg is not None)
                keys |= {key for each in keywords for key in literal_keys(each.value)}
                keys -= {"exc_info"}
                if method == "exception" or any(each.arg == "exc_info" for each in keywords):
                    keys |= {"exception"}
                found[Event(event.value, LEVELS[method], ".".join(module.parts))].append(
                    Call(keys, has_more=any(is_variable(each) for each in keywords))
                )
    return found


def documented_events() -> dict[Event, frozenset[str]]:
    """Return the events in the tables of the page, with their keys.

    Those of a feature that has been removed are left out.
    """
    found = {}
    text = (ROOT / "docs" / "logging.md").read_text()
    for line in text.splitlines():
        if line.startswith("| `"):
            name, level, loggers, keys, *_ = (cell.strip() for cell in line.split("|")[1:-1])
            for logger in re.findall(r"`([\w.]+)`", loggers):
                if (ROOT / f"{logger.replace('.', '/')}.py").exists():
                    event = Event(name.strip("`"), level, logger)
                    assert event not in found, f"{event} is documented twice"
                    found[event] = frozenset(re.findall(r"`([\w.]+)`", keys))
    return found


def test_every_event_is_documented() -> None:
    assert logged_events().keys() == documented_events().keys()


def test_keys_of_events_are_documented() -> None:
    documented = documented_events()
    for event, calls in logged_events().items():
        literal = frozenset().union(*(call.keys for call in calls))
        assert literal <= documented[event], event
        if not any(call.has_more for call in calls):
            assert literal == documented[event], event
