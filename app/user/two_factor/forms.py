"""Forms with codes."""

from wtforms import BooleanField, PasswordField, StringField, ValidationError
from wtforms.validators import DataRequired

from app.user.forms import current_password_field
from app.user.two_factor import recovery_codes, totp
from app.user.two_factor.trusted_browsers import DAYS
from quart_upsun.web.forms import Form, strip


def validate_code(form: Form, field: StringField) -> None:
    """Validate the format of an authenticator code, and replace it with its six digits."""
    code = totp.normalize(field.data or "")
    if code is None:
        raise ValidationError("Enter the six digits that the app shows.")
    field.data = code


def validate_recovery_code(form: Form, field: StringField) -> None:
    """Validate the format of a recovery code, and replace it with its normal form."""
    code = recovery_codes.normalize(field.data or "")
    if code is None:
        raise ValidationError(
            f"A recovery code has {recovery_codes.LENGTH} letters and digits. Check for typos."
        )
    field.data = code


def code_field() -> StringField:
    return StringField(
        "Authentication code",
        filters=[strip],
        description="The six digits that your authenticator app shows.",
        validators=[DataRequired("Enter the code."), validate_code],
        render_kw={"autocomplete": "one-time-code", "inputmode": "numeric", "maxlength": "20"},
    )


def trust_field() -> BooleanField:
    return BooleanField(f"Trust this browser for {DAYS} days")


class SetupForm(Form):
    """Confirm the secret with a first code."""

    code = code_field()


class CodeForm(Form):
    """The second step of a login."""

    code = code_field()
    trust = trust_field()


class RecoveryCodeForm(Form):
    """The second step of a login without the authenticator app."""

    code = StringField(
        "Recovery code",
        filters=[strip],
        description="Each recovery code works once.",
        validators=[DataRequired("Enter a recovery code."), validate_recovery_code],
        render_kw={
            "autocomplete": "off",
            "autocapitalize": "characters",
            "spellcheck": "false",
            "maxlength": "60",
        },
    )


class DisableForm(Form):
    """Turn off two-factor authentication. Users without a password are not asked for one."""

    current_password: PasswordField | None = current_password_field()
    code = StringField(
        "Authentication code or recovery code",
        filters=[strip],
        validators=[DataRequired("Enter a code.")],
        render_kw={"autocomplete": "one-time-code", "spellcheck": "false", "maxlength": "60"},
    )
