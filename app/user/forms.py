"""The forms of registration and login."""

from typing import Any

from email_validator import EmailNotValidError, validate_email
from wtforms import Form, PasswordField, StringField, ValidationError
from wtforms.validators import DataRequired, EqualTo, Length, Regexp

from app.user.models import EMAIL_LENGTH, USERNAME_LENGTH

# ASCII only: no two names look alike, and lower() means the same in Python and PostgreSQL.
USERNAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z"
PASSWORD_LENGTH = (10, 1024)


def stripped(value: str | None) -> str | None:
    """Drop what nobody types: space around the value, and NUL, which no page may repeat."""
    return value.replace("\x00", "").strip() if value else value


class RegisterForm(Form):
    """A new account. Values are stripped; the address comes out in its normal form."""

    username = StringField(
        "User name",
        filters=[stripped],
        validators=[
            DataRequired("Choose a user name."),
            Length(3, USERNAME_LENGTH, f"Between 3 and {USERNAME_LENGTH} characters."),
            Regexp(
                USERNAME,
                message="Letters, digits, dots, hyphens and underscores;"
                " a letter or digit first and last.",
            ),
        ],
        render_kw={"autocomplete": "username", "autocapitalize": "none", "spellcheck": "false"},
    )
    email = StringField(
        "Email",
        filters=[stripped],
        validators=[DataRequired("Enter your email address.")],
        render_kw={"type": "email", "autocomplete": "email"},
    )
    password = PasswordField(
        "Password",
        description=f"At least {PASSWORD_LENGTH[0]} characters.",
        validators=[
            DataRequired("Choose a password."),
            Length(
                *PASSWORD_LENGTH,
                f"Between {PASSWORD_LENGTH[0]} and {PASSWORD_LENGTH[1]} characters.",
            ),
        ],
        render_kw={"autocomplete": "new-password"},
    )
    confirm = PasswordField(
        "Repeat the password",
        validators=[
            DataRequired("Repeat the password."),
            EqualTo("password", "The passwords do not match."),
        ],
        render_kw={"autocomplete": "new-password"},
    )

    def validate_email(self, field: StringField) -> None:
        try:
            found = validate_email(
                (field.data or "")[: EMAIL_LENGTH * 2],
                allow_smtputf8=False,
                # No DNS question in a request; whether mail arrives, only a mail can tell. Domains
                # under .test are let through, for example for tests of a deployed site.
                test_environment=True,
            )
        except EmailNotValidError:
            raise ValidationError("This is not a valid email address.") from None
        address = found.ascii_email or found.normalized
        if len(address) > EMAIL_LENGTH:
            raise ValidationError("This address is too long.")
        field.data = address


class LoginForm(Form):
    """A user name and a password; whether they fit is not the form's to say."""

    username = StringField(
        "User name",
        filters=[stripped],
        validators=[DataRequired("Enter your user name."), Length(max=USERNAME_LENGTH)],
        render_kw={"autocomplete": "username", "autocapitalize": "none", "spellcheck": "false"},
    )
    password = PasswordField(
        "Password",
        validators=[DataRequired("Enter your password."), Length(max=PASSWORD_LENGTH[1])],
        render_kw={"autocomplete": "current-password"},
    )

    def refuse(self) -> None:
        """Say that the two do not fit, the same whichever is wrong."""
        errors: Any = self.form_errors
        errors.append("The user name or the password is wrong.")
