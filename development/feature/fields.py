"""The fields of a generated feature, and what each type of field becomes.

A field is written as `name:type`; a question mark after the type makes it optional.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from development.feature.mistakes import MistakeError
from development.feature.names import check_field_name, with_article

STRING_LENGTH = 200
TEXT_LENGTH = 10_000
MAX_NAME_LENGTH = 40  # of a field; names in PostgreSQL have at most 63 characters
SYNTAX = 'Write FIELDS as name:type, for instance FIELDS="title:str body:text due:date?".'


@dataclass(frozen=True)
class Samples:
    """Values for the generated tests.

    Each is given as Python code of the stored value, as the text of a form (None for a checkbox
    that is not checked), and as JSON.
    """

    value: str
    form: str | None
    json: Any
    other_value: str
    other_form: str | None
    other_json: Any
    wrong_form: str | None = None
    """Rejected by the form, if anything is."""
    wrong_json: Any = None
    """Rejected by the API."""


@dataclass(frozen=True)
class FieldType:
    """What a type becomes in each module."""

    python: str
    """The type of the attribute."""
    column: str
    """The column of the model, without its options."""
    migration: str
    """The same in a migration."""
    annotation: str
    """The type in the API."""
    samples: Samples
    meaning: str
    """For the help."""


@dataclass(frozen=True)
class Field:
    """A field of a feature."""

    name: str
    type_name: str
    is_optional: bool

    @property
    def type(self) -> FieldType:
        return TYPES[self.type_name]

    @property
    def label(self) -> str:
        """The label of the field, such as "Due date"."""
        words = self.name.replace("_", " ").strip()
        return "URL" if words == "url" else words[:1].upper() + words[1:]

    @property
    def request(self) -> str:
        """What the form says if the field is empty, such as "Enter a due date."."""
        label = self.label if self.label == "URL" else self.label[:1].lower() + self.label[1:]
        return f"Enter {with_article(label)}."

    @property
    def length(self) -> str:
        """The name of the constant with the maximum length."""
        return f"{self.name.upper()}_LENGTH"

    @property
    def annotation_name(self) -> str:
        """The name of the field's type in the API, if it has one of its own."""
        return "".join(part.capitalize() for part in self.name.split("_")) + "Text"

    @property
    def is_own_text(self) -> bool:
        """Whether the application decides on the length of the text."""
        return self.type_name in {"str", "text"}

    @property
    def python(self) -> str:
        return f"{self.type.python} | None" if self.is_optional else self.type.python

    @property
    def annotation(self) -> str:
        plain = self.type.annotation.format(name=self.annotation_name)
        return f"{plain} | None" if self.is_optional else plain

    def code(self, template: Callable[["FieldType"], str]) -> str:
        """Return code of the type with the names of this field filled in."""
        return template(self.type).format(name=self.name, length=self.length)

    @property
    def column(self) -> str:
        return self.code(lambda kind: kind.column)

    @property
    def migration(self) -> str:
        return self.code(lambda kind: kind.migration)

    @property
    def wrong_forms(self) -> list[str]:
        """Values that the form rejects."""
        samples = self.type.samples
        found = [] if samples.wrong_form is None else [samples.wrong_form]
        return found if self.is_optional or self.type_name == "bool" else ["", *found]


def _text(python: str, column: str, migration: str, meaning: str, length: int) -> FieldType:
    text = "First line\nSecond line" if length == TEXT_LENGTH else "An example"
    samples = Samples(
        *(repr(text), text, text),
        *(repr("Another example"), "Another example", "Another example"),
        wrong_form="x" * (length + 1) if length == STRING_LENGTH else None,
        wrong_json=7,
    )
    return FieldType(python, column, migration, "{name}", samples, meaning)


TYPES = {
    "str": _text(
        *("str", "String({length})", f"sa.String(length={STRING_LENGTH})"),
        *(f"a line of at most {STRING_LENGTH} characters", STRING_LENGTH),
    ),
    "text": _text(
        *("str", "Text", "sa.Text()"),
        *(f"text of at most {TEXT_LENGTH:,} characters", TEXT_LENGTH),
    ),
    "int": FieldType(
        *("int", "Integer", "sa.Integer()", "Int"),
        Samples("42", "42", 42, "-7", "-7", -7, wrong_form=str(2**31), wrong_json=2**31),
        "a whole number of 32 bits",
    ),
    "decimal": FieldType(
        *("Decimal", "Numeric(12, 2)", "sa.Numeric(precision=12, scale=2)", "Amount"),
        Samples(
            *('Decimal("12.50")', "12.50", "12.50"),
            *('Decimal("-7.25")', "-7.25", "-7.25"),
            wrong_form="sNaN",
            wrong_json="1e40",
        ),
        "a number with two decimal places, such as an amount of money",
    ),
    "bool": FieldType(
        *("bool", "Boolean", "sa.Boolean()", "bool"),
        Samples("True", "y", True, "False", None, False, wrong_json="yes"),
        "a checkbox, which cannot be optional",
    ),
    "date": FieldType(
        *("dt.date", "Date", "sa.Date()", "dt.date"),
        Samples(
            *("dt.date(2030, 5, 17)", "2030-05-17", "2030-05-17"),
            *("dt.date(2031, 1, 2)", "2031-01-02", "2031-01-02"),
            wrong_form="tomorrow",
            wrong_json="2030-02-30",
        ),
        "a day",
    ),
    "datetime": FieldType(
        *("dt.datetime", "DateTime(timezone=True)", "sa.DateTime(timezone=True)", "Time"),
        Samples(
            *("dt.datetime(2030, 5, 17, 12, 30, tzinfo=dt.UTC)", "2030-05-17T12:30"),
            "2030-05-17T12:30:00Z",
            *("dt.datetime(2031, 1, 2, tzinfo=dt.UTC)", "2031-01-02T00:00", "2031-01-02T00:00:00Z"),
            wrong_form="noon",
            wrong_json="2030-05-17T12:30:00",
        ),
        "a time, which pages show and read in UTC",
    ),
    "url": FieldType(
        *("str", "String(MAX_URL_LENGTH)", "sa.String(length=2048)", "Url"),
        Samples(
            *('"https://example.com/a"', "example.com/a", "https://example.com/a"),
            *('"https://example.org/"', "https://example.org/", "https://example.org/"),
            wrong_form="javascript:alert(1)",
            wrong_json="javascript:alert(1)",
        ),
        "an http or https URL",
    ),
    "email": FieldType(
        *("str", "String(EMAIL_LENGTH)", "sa.String(length=254)", "Email"),
        Samples(
            *('"ada@example.com"', "ada@example.com", "ada@example.com"),
            *('"bob@example.com"', "bob@example.com", "bob@example.com"),
            wrong_form="nowhere",
            wrong_json="nowhere",
        ),
        "an email address",
    ),
}


def parse_fields(text: str) -> list[Field]:
    """Parse the value of FIELDS.

    Raises:
        MistakeError: a field cannot be used.
    """
    fields: list[Field] = []
    for word in re.split(r"[\s,]+", text.strip()):
        if not word:
            raise MistakeError(f"FIELDS is empty. {SYNTAX}")
        name, _, kind = word.partition(":")
        type_name = kind.removesuffix("?")
        if not name or not type_name:
            raise MistakeError(f"The field {word!r} has no {'type' if name else 'name'}. {SYNTAX}")
        check_field_name(name, MAX_NAME_LENGTH)
        if type_name not in TYPES:
            raise MistakeError(_unknown(name, type_name))
        if kind == "bool?":
            raise MistakeError(
                f"The field {name!r} cannot be optional, because an empty checkbox means false:"
                f" write {name}:bool."
            )
        if any(field.name == name for field in fields):
            raise MistakeError(f"The field {name!r} occurs twice: rename or remove one of them.")
        fields.append(Field(name, type_name, kind.endswith("?")))
    return fields


def _unknown(name: str, type_name: str) -> str:
    aliases = {"string": "str", "integer": "int", "float": "decimal", "boolean": "bool"}
    close = difflib.get_close_matches(type_name, TYPES, 1)
    guess = aliases.get(type_name.lower()) or (close[0] if close else None)
    hint = f" Did you mean {name}:{guess}?" if guess else ""
    return f"The field {name!r} has the unknown type {type_name!r}; use {_or(list(TYPES))}.{hint}"


def _or(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
