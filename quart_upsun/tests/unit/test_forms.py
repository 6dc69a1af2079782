"""Fields, filters and validators for WTForms."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from werkzeug.datastructures import MultiDict
from wtforms import Form, StringField

from quart_upsun.web.forms import (
    FiniteDecimalField,
    UtcDateTimeField,
    clean_text,
    none_if_empty,
    strip,
    validate_url_field,
)
from quart_upsun.web.templating import format_date


class EventForm(Form):
    price = FiniteDecimalField("Price")
    starts_at = UtcDateTimeField("Starts at")
    url = StringField("URL", filters=[strip], validators=[validate_url_field])
    notes = StringField("Notes", filters=[clean_text, none_if_empty])


def filled(**values: str) -> EventForm:
    form = EventForm(MultiDict({"url": "example.com", "price": "1", **values}))
    form.validate()
    return form


@pytest.mark.parametrize("text", ["NaN", "sNaN", "Infinity", "-inf", "one", ""])
def test_decimal_field_rejects_what_is_not_finite(text: str) -> None:
    assert filled(price=text).price.errors == ["Not a valid decimal value."]


def test_decimal_field_accepts_numbers() -> None:
    assert filled(price="-12.5").price.data == Decimal("-12.5")


@pytest.mark.parametrize("text", ["2030-05-17T12:30", "2030-05-17T12:30:00"])
def test_time_field_is_in_utc(text: str) -> None:
    form = filled(starts_at=text)
    assert form.starts_at.data == datetime(2030, 5, 17, 12, 30, tzinfo=UTC)
    # What a browser accepts as the value of the input.
    assert (
        'value="2030-05-17T12:30"' in EventForm(data={"starts_at": form.starts_at.data}).starts_at()
    )


def test_url_is_normalized_or_rejected() -> None:
    assert filled(url=" Example.com ").url.data == "https://example.com/"
    assert filled(url="javascript:alert(1)").url.errors
    assert filled(url="").url.errors == ["Enter a URL."]


def test_empty_text_becomes_none() -> None:
    assert filled(notes=" \r\n ").notes.data is None
    assert filled(notes=" a\r\nb ").notes.data == "a\nb"


def test_dates_are_rendered_with_a_machine_readable_form() -> None:
    assert format_date(date(2030, 5, 7)) == '<time datetime="2030-05-07">7 May 2030</time>'
