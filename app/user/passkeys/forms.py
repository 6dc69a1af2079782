"""The form to rename a passkey."""

from wtforms import StringField
from wtforms.validators import DataRequired, Length

from app.user.passkeys.models import NAME_LENGTH
from quart_upsun.web.forms import Form, clean_line


class NameForm(Form):
    """Name a passkey."""

    name = StringField(
        "Name",
        description="For example, the device or the password manager that keeps it.",
        filters=[clean_line],
        validators=[
            DataRequired("Enter a name."),
            Length(max=NAME_LENGTH, message=f"Use at most {NAME_LENGTH} characters."),
        ],
        render_kw={"autocomplete": "off", "maxlength": NAME_LENGTH},
    )
