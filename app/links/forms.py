"""The forms of the reading list. They normalize URLs and tags."""

from wtforms import IntegerField, StringField, ValidationError
from wtforms.form import BaseForm
from wtforms.validators import Length, NumberRange, Optional
from wtforms.widgets import HiddenInput

from app.links import tags
from app.links.models import TITLE_LENGTH
from quart_upsun.web.forms import Form, clean_line, strip, validate_url_field

PLAIN_TEXT_ATTRIBUTES = {"autocapitalize": "none", "autocomplete": "off", "spellcheck": "false"}
MAX_VERSION = 2**31 - 1  # the column is an integer


class TagsField(StringField):
    """Tags in one line. After validation, `tags` has the normalized tags."""

    tags: list[str]

    def pre_validate(self, form: BaseForm) -> None:
        try:
            self.tags = tags.parse_tags(self.data or "")
        except ValueError as error:
            raise ValidationError(str(error)) from None


def tags_field() -> TagsField:
    return TagsField(
        "Tags",
        description="Separate tags with spaces.",
        filters=[strip],
        render_kw=PLAIN_TEXT_ATTRIBUTES,
    )


class SaveForm(Form):
    """Save a link."""

    # Not `type=url`: browsers would reject `example.com` without a scheme.
    url = StringField(
        "URL",
        filters=[strip],
        validators=[validate_url_field],
        render_kw={"inputmode": "url", **PLAIN_TEXT_ATTRIBUTES},
    )
    tags = tags_field()


class EditForm(Form):
    """Edit the title and tags of a link."""

    title = StringField(
        "Title",
        description="Leave empty to use the title of the page.",
        filters=[clean_line],
        validators=[Length(max=TITLE_LENGTH, message=f"Use at most {TITLE_LENGTH} characters.")],
        render_kw={"autocomplete": "off"},
    )
    tags = tags_field()
    version = IntegerField(
        widget=HiddenInput(), validators=[Optional(), NumberRange(0, MAX_VERSION)]
    )
    """The version of the link when the form was rendered, to detect concurrent changes."""
