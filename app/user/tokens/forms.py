"""The form to create an access token."""

from collections.abc import Sequence
from typing import Any

from wtforms import (  # type: ignore[attr-defined] # the stubs do not know the choices of 3.3
    Form,
    SelectChoice,
    SelectField,
    SelectMultipleField,
    StringField,
)
from wtforms.validators import DataRequired, Length

from app.user.tokens.access_tokens import LIFETIMES_DAYS
from app.user.tokens.models import TOKEN_NAME_LENGTH
from quart_upsun.api.scopes import Scope
from quart_upsun.web.forms import clean_line


class TokenForm(Form):
    """Name, scopes and lifetime of a new token.

    Args:
        available_scopes: the scopes to choose from.
    """

    name = StringField(
        "Name",
        description="For example, the program or computer that uses it.",
        filters=[clean_line],
        validators=[
            DataRequired("Enter a name."),
            Length(max=TOKEN_NAME_LENGTH, message=f"Use at most {TOKEN_NAME_LENGTH} characters."),
        ],
        render_kw={"autocomplete": "off"},
    )
    scopes = SelectMultipleField(
        "Permissions",
        validators=[DataRequired("Choose at least one permission.")],
        validate_choice=True,
    )
    days = SelectField(
        "Expires after",
        coerce=int,
        choices=[
            SelectChoice(days, "1 year" if days == 365 else f"{days} days")
            for days in LIFETIMES_DAYS
        ],
        default=30,
    )

    def __init__(
        self, formdata: Any = None, *, available_scopes: Sequence[Scope], **options: Any
    ) -> None:
        super().__init__(formdata, **options)
        self.scopes.choices = [SelectChoice(each.name, each.sentence) for each in available_scopes]
