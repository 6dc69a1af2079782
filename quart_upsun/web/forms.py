"""The base class of forms, and filters and helpers for WTForms."""

from datetime import UTC
from functools import cache
from typing import Any

import wtforms
from markupsafe import Markup
from wtforms import DateTimeLocalField, DecimalField, HiddenField, StringField, ValidationError

from quart_upsun.logging import get_logger
from quart_upsun.text import clean, clean_lines
from quart_upsun.urls import normalize_url

log = get_logger(__name__)


class Form(wtforms.Form):
    """A form with the methods that templates for Flask-WTF call."""

    def hidden_tag(self, *fields: str) -> Markup:
        """Render the form's hidden fields, or those with the given names, and no token."""
        csrf_token()
        return Markup().join(
            field
            for field in self
            if isinstance(field, HiddenField) and (not fields or field.name in fields)
        )

    @property
    def csrf_token(self) -> Markup:
        """Nothing; see `csrf_token()`."""
        return csrf_token()


def csrf_token() -> Markup:
    """Return nothing, and log the reason once. Templates for Flask-WTF call it."""
    explain_missing_token()
    return Markup()


@cache
def explain_missing_token() -> None:
    """Log, once per process, why there are no tokens."""
    log.info(
        "forms need no csrf_token",
        reason="cross-site requests are refused by their Sec-Fetch-Site and Origin headers",
        remedy="remove csrf_token() and hidden_tag() from the templates",
    )


def strip(value: str | None) -> str | None:
    """Remove surrounding whitespace and NUL characters. A filter for WTForms fields."""
    return value.replace("\x00", "").strip() if value else value


def clean_line(value: str | None) -> str | None:
    """Clean a line of text with `quart_upsun.text.clean`. A filter for WTForms fields."""
    return clean(value) if value else value


def clean_text(value: str | None) -> str | None:
    """Clean several lines with `quart_upsun.text.clean_lines`. A filter for WTForms fields."""
    return clean_lines(value) if value else value


def none_if_empty(value: str | None) -> str | None:
    """Return None for an empty text: the value of an optional field that was left empty."""
    return value or None


def validate_url_field(form: wtforms.Form, field: StringField) -> None:
    """Validate a URL, and replace it with its normal form. A validator for WTForms fields."""
    try:
        field.data = normalize_url(field.data or "")
    except ValueError as error:
        raise ValidationError(str(error)) from None


class UtcDateTimeField(DateTimeLocalField):
    """A time in UTC; `data` is aware."""

    def __init__(self, label: str, **options: Any) -> None:
        super().__init__(
            label,
            # What browsers send and accept, and the same with seconds.
            format=["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"],
            tz=UTC,  # type: ignore[call-arg] # the stubs do not know it yet
            **options,
        )


class FiniteDecimalField(DecimalField):
    """A decimal number. WTForms' own field accepts `Infinity`, and fails on `sNaN`."""

    def process_formdata(self, valuelist: list[Any]) -> None:
        super().process_formdata(valuelist)
        if self.data is not None and not self.data.is_finite():
            self.data = None
            raise ValueError(self.gettext("Not a valid decimal value."))


def add_form_error(form: wtforms.Form, message: str) -> None:
    """Add an error message about the whole form."""
    errors: Any = form.form_errors
    errors.append(message)
