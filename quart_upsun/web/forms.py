"""Filters and helpers for WTForms."""

from typing import Any

from wtforms import Form

from quart_upsun.text import clean


def strip(value: str | None) -> str | None:
    """Remove surrounding whitespace and NUL characters. A filter for WTForms fields."""
    return value.replace("\x00", "").strip() if value else value


def clean_line(value: str | None) -> str | None:
    """Clean a line of text with `quart_upsun.text.clean`. A filter for WTForms fields."""
    return clean(value) if value else value


def add_form_error(form: Form, message: str) -> None:
    """Add an error message about the whole form."""
    errors: Any = form.form_errors
    errors.append(message)
