"""Filters and helpers for WTForms."""

from typing import Any

from wtforms import Form

from quart_upsun.text import clean


def strip(value: str | None) -> str | None:
    """Drop what nobody types: space around the value, and NUL, which no page may repeat."""
    return value.replace("\x00", "").strip() if value else value


def clean_line(value: str | None) -> str | None:
    """Clean a text that becomes one line."""
    return clean(value) if value else value


def add_form_error(form: Form, message: str) -> None:
    """Add a message about the form as a whole."""
    errors: Any = form.form_errors
    errors.append(message)
