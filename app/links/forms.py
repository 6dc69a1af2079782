"""The forms of the reading list. Addresses and tags come out in the form that is kept."""

from wtforms import Form, IntegerField, StringField, ValidationError
from wtforms.form import BaseForm
from wtforms.validators import Length, NumberRange, Optional
from wtforms.widgets import HiddenInput

from app.links import tags
from app.links.models import TITLE_LENGTH
from quart_upsun import urls
from quart_upsun.web.forms import clean_line, strip

PLAIN_TEXT_ATTRIBUTES = {"autocapitalize": "none", "autocomplete": "off", "spellcheck": "false"}
MAX_VERSION = 2**31 - 1  # that the column can hold


class TagsField(StringField):
    """Tags in one line; `tags` holds them as they are kept once the form is valid."""

    tags: list[str]

    def pre_validate(self, form: BaseForm) -> None:
        try:
            self.tags = tags.parse_tags(self.data or "")
        except ValueError as error:
            raise ValidationError(str(error)) from None


def tags_field() -> TagsField:
    return TagsField(
        "Tags",
        description="Separated by spaces.",
        filters=[strip],
        render_kw=PLAIN_TEXT_ATTRIBUTES,
    )


class SaveForm(Form):
    """Something to read."""

    # Not of the type `url`: whoever types `example.com` means a page.
    url = StringField(
        "Address", filters=[strip], render_kw={"inputmode": "url", **PLAIN_TEXT_ATTRIBUTES}
    )
    tags = tags_field()

    def validate_url(self, field: StringField) -> None:
        try:
            field.data = urls.normalize_url(field.data or "")
        except ValueError as error:
            raise ValidationError(str(error)) from None


class EditForm(Form):
    """What its owner calls a link."""

    title = StringField(
        "Title",
        description="Without one, the page's own.",
        filters=[clean_line],
        validators=[Length(max=TITLE_LENGTH, message=f"At most {TITLE_LENGTH} characters.")],
        render_kw={"autocomplete": "off"},
    )
    tags = tags_field()
    version = IntegerField(
        widget=HiddenInput(), validators=[Optional(), NumberRange(0, MAX_VERSION)]
    )
    """The link as it was when the form was made."""
