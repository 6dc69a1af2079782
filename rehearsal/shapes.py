"""Shapes of YAML values, and the differences between a value and its shape."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Keys = tuple[str, ...]  # the path from the root of the document to a value


class Unread:
    """A value that could not be read, such as that of an `!include`; it has any shape."""

    def __repr__(self) -> str:
        return "<unread>"


@dataclass(frozen=True)
class Fault:
    """A difference between a value and its shape."""

    keys: Keys
    message: str
    """The rest of a sentence that starts with the keys."""
    fix: str = ""
    is_rejected: bool = True
    """Whether the platform refuses the value; otherwise it may ignore or accept it."""
    is_unknown: bool = False
    """Whether it may only be unknown to this version."""


class Shape:
    """What a value may be."""

    noun = "a value"

    def faults(self, value: Any, keys: Keys) -> Iterator[Fault]:
        """Yield the differences between a value and this shape."""
        yield from ()


@dataclass(frozen=True)
class Text(Shape):
    """A string."""

    values: tuple[str, ...] = ()
    """All allowed values; empty if any string is allowed."""
    pattern: str = ""
    meaning: str = ""
    """What the pattern describes, such as `a duration`."""
    may_be_number: bool = False
    """Whether a number or a boolean is probably accepted as well."""
    explained: Mapping[str, str] = field(default_factory=dict)
    """How to fix certain wrong values."""
    former: Mapping[str, str] = field(default_factory=dict)
    """Patterns of older values that the platform still accepts, and what to write instead."""

    @property
    def noun(self) -> str:  # type: ignore[override]
        return self.meaning or ("one of " + ", ".join(self.values) if self.values else "text")

    def faults(self, value: Any, keys: Keys) -> Iterator[Fault]:
        if not isinstance(value, str):
            if self.may_be_number and isinstance(value, (int, float)):
                yield Fault(keys, f"is {describe(value)} and not text", "quote it", False)
            else:
                yield Fault(keys, f"must be {self.noun}, not {describe(value)}")
            return
        for former, instead in self.former.items():
            if re.fullmatch(former, value):
                yield Fault(keys, f"is `{value}`, an older form", instead, is_rejected=False)
                return
        if self.values and value not in self.values:
            yield Fault(
                keys,
                f"is `{value}`, which is not {self.noun}",
                self.explained.get(value)
                or did_you_mean(value, self.values)
                or f"use one of: {', '.join(self.values)}",
            )
        elif self.pattern and not re.fullmatch(self.pattern, value):
            yield Fault(keys, f"is `{value}`, which is not {self.noun}")


@dataclass(frozen=True)
class Integer(Shape):
    minimum: int | None = None
    maximum: int | None = None
    noun = "an integer"

    def faults(self, value: Any, keys: Keys) -> Iterator[Fault]:
        if not isinstance(value, int) or isinstance(value, bool):
            yield Fault(keys, f"must be an integer, not {describe(value)}")
        elif self.maximum is not None and value > self.maximum:
            yield Fault(keys, f"is {value}, but the maximum is {self.maximum}")
        elif self.minimum is not None and value < self.minimum:
            yield Fault(keys, f"is {value}, but the minimum is {self.minimum}")


@dataclass(frozen=True)
class Boolean(Shape):
    noun = "true or false"

    def faults(self, value: Any, keys: Keys) -> Iterator[Fault]:
        if not isinstance(value, bool):
            yield Fault(keys, f"must be true or false, not {describe(value)}")


@dataclass(frozen=True)
class Anything(Shape):
    """Any value, including an empty one."""


@dataclass(frozen=True)
class Optional(Shape):
    """A shape whose value may be empty."""

    shape: Shape

    @property
    def noun(self) -> str:  # type: ignore[override]
        return self.shape.noun

    def faults(self, value: Any, keys: Keys) -> Iterator[Fault]:
        if value is not None:
            yield from examine(value, self.shape, keys)


@dataclass(frozen=True)
class Either(Shape):
    """One of several shapes; a value that fits none is compared with the most similar one."""

    shapes: tuple[Shape, ...]

    @property
    def noun(self) -> str:  # type: ignore[override]
        return " or ".join(shape.noun for shape in self.shapes)

    def faults(self, value: Any, keys: Keys) -> Iterator[Fault]:
        found = [list(examine(value, shape, keys)) for shape in self.shapes]
        if not all(found):
            return
        for faults in found:
            if not any(fault.is_rejected for fault in faults):
                yield from faults
                return
        inside = [faults for faults in found if any(fault.keys != keys for fault in faults)]
        if inside:
            yield from inside[0]
        else:
            yield Fault(keys, f"must be {self.noun}, not {describe(value)}")


@dataclass(frozen=True)
class ListOf(Shape):
    item: Shape
    noun = "a list"

    def faults(self, value: Any, keys: Keys) -> Iterator[Fault]:
        if not isinstance(value, list):
            yield Fault(keys, f"must be a list, not {describe(value)}")
            return
        for number, item in enumerate(value):
            yield from examine(item, self.item, (*keys, str(number)))


@dataclass(frozen=True)
class Names(Shape):
    """A mapping whose keys are names that the user chooses."""

    member: Shape
    pattern: str = ".+"
    meaning: str = "a name"
    """What the pattern describes."""
    noun = "a mapping"

    def faults(self, value: Any, keys: Keys) -> Iterator[Fault]:
        if not isinstance(value, Mapping):
            yield Fault(keys, f"must be a mapping, not {describe(value)}")
            return
        for name, member in value.items():
            below = (*keys, str(name))
            if not re.fullmatch(self.pattern, str(name)):
                yield Fault(below, f"is not {self.meaning}")
            yield from examine(member, self.member, below)


@dataclass(frozen=True)
class Table(Shape):
    """A mapping with certain keys."""

    keys: Mapping[str, Shape]
    required: tuple[str, ...] = ()
    is_open: bool = False
    """Whether the platform accepts other keys."""
    explained: Mapping[str, str] = field(default_factory=dict)
    """How to fix certain unknown keys."""
    free: str = ""
    """A pattern of other keys that may have any value."""
    noun = "a mapping"

    def faults(self, value: Any, keys: Keys) -> Iterator[Fault]:
        if not isinstance(value, Mapping):
            yield Fault(keys, f"must be a mapping, not {describe(value)}")
            return
        for key, member in value.items():
            name = str(key)
            if name in self.keys:
                yield from examine(member, self.keys[name], (*keys, name))
            elif not (self.free and re.fullmatch(self.free, name)):
                yield Fault(
                    (*keys, name),
                    "is an unknown key",
                    self.explained.get(name) or did_you_mean(name, self.keys),
                    is_rejected=not self.is_open,
                    is_unknown=self.is_open,
                )
        for key in self.required:
            if value.get(key) is None:
                yield Fault(keys, f"has no `{key}`", f"add `{key}`")


def examine(value: Any, shape: Shape, keys: Keys) -> Iterator[Fault]:
    """Yield the differences between a value and its shape."""
    if isinstance(value, Unread) or isinstance(shape, Anything):
        return
    if value is None and not isinstance(shape, Optional):
        # The schema of `upsun validate` refuses most empty values; what the platform does with
        # them is not documented. An empty mapping lacks the keys that it requires.
        yield Fault(
            keys, "is empty", f"remove the key, or set it to {shape.noun}", is_rejected=False
        )
        if isinstance(shape, Table) and shape.required:
            yield from shape.faults({}, keys)
        return
    yield from shape.faults(value, keys)


def describe(value: Any) -> str:
    """Return a value for a message."""
    if value is None:
        return "an empty value"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        short = value if len(value) <= 40 else f"{value[:37]}…"
        return f"the text `{short.splitlines()[0] if short else ''}`"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return f"a {type(value).__name__}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the suggestion to write a similar word, or "" if there is none."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean `{found[0]}`?" if found else ""
