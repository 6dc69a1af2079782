"""Forms for accounts. Values are stripped, and email addresses normalized."""

from typing import Any

from email_validator import EmailNotValidError, validate_email
from wtforms import BooleanField, PasswordField, StringField, ValidationError
from wtforms.validators import DataRequired, EqualTo, Length, Regexp

from app.user import passwords
from app.user.models import EMAIL_LENGTH, USERNAME_LENGTH
from quart_upsun.web.forms import Form, strip

# ASCII only: names cannot be confused with each other, and lower() gives the same result in Python
# and PostgreSQL.
USERNAME_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z"


def normalize_password_filter(value: str | None) -> str | None:
    """Normalize a password before it is validated and compared. A filter for WTForms fields."""
    return passwords.normalize_password(value) if value else value


def normalize_email(text: str) -> str:
    """Return the normal form of an email address.

    Raises:
        ValueError: the address is invalid. The message is meant for the user.
    """
    try:
        found = validate_email(
            text[: EMAIL_LENGTH * 2],
            allow_smtputf8=False,
            # Only a confirmation email can prove an address, so skip the DNS lookup. Domains under
            # .test are accepted, for example for tests of a deployed site.
            test_environment=True,
        )
    except EmailNotValidError:
        raise ValueError("Enter a valid email address.") from None
    address = found.ascii_email or found.normalized
    if len(address) > EMAIL_LENGTH:
        raise ValueError(f"Use an email address of at most {EMAIL_LENGTH} characters.")
    return address


def validate_email_field(form: Form, field: StringField) -> None:
    """Validate an email address, and replace it with its normal form."""
    try:
        field.data = normalize_email(field.data or "")
    except ValueError as error:
        raise ValidationError(str(error)) from None


def username_field() -> StringField:
    return StringField(
        "Username",
        filters=[strip],
        validators=[
            DataRequired("Enter a username."),
            Length(3, USERNAME_LENGTH, f"Use 3 to {USERNAME_LENGTH} characters."),
            Regexp(
                USERNAME_PATTERN,
                message="Use only letters, digits, dots, hyphens and underscores."
                " Start and end with a letter or digit.",
            ),
        ],
        render_kw={"autocomplete": "username", "autocapitalize": "none", "spellcheck": "false"},
    )


def email_field(
    label: str = "Email", autocomplete: str = "email", missing: str = "Enter your email address."
) -> StringField:
    return StringField(
        label,
        filters=[strip],
        validators=[DataRequired(missing), validate_email_field],
        render_kw={"type": "email", "autocomplete": autocomplete},
    )


def new_password_field(label: str) -> PasswordField:
    return PasswordField(
        label,
        filters=[normalize_password_filter],
        description=f"At least {passwords.MIN_LENGTH} characters.",
        validators=[DataRequired("Enter a password.")],
        render_kw={"autocomplete": "new-password"},
    )


def repeated_password_field() -> PasswordField:
    return PasswordField(
        "Confirm password",
        filters=[normalize_password_filter],
        validators=[
            DataRequired("Enter the password again."),
            EqualTo("password", "Passwords do not match."),
        ],
        render_kw={"autocomplete": "new-password"},
    )


def validate_length(form: Form, field: PasswordField) -> None:
    """Reject a password that is too long for any account.

    The password stays as it was typed, because another application may have hashed it that way.
    """
    if len(passwords.normalize_password(field.data or "")) > passwords.MAX_LENGTH:
        raise ValidationError(f"Use at most {passwords.MAX_LENGTH} characters.")


def current_password_field() -> PasswordField:
    return PasswordField(
        "Current password",
        id="password-current",
        validators=[DataRequired("Enter your current password."), validate_length],
        render_kw={"autocomplete": "current-password"},
    )


class RegisterForm(Form):
    """Register an account."""

    username = username_field()
    email = email_field()
    password = new_password_field("Password")
    confirm = repeated_password_field()

    def validate_password(self, field: PasswordField) -> None:
        reject_weak_password(field, self.username.data, self.email.data)


class LoginForm(Form):
    """Log in. The view checks the password."""

    username = StringField(
        "Username",
        filters=[strip],
        validators=[DataRequired("Enter your username."), Length(max=USERNAME_LENGTH)],
        render_kw={"autocomplete": "username", "autocapitalize": "none", "spellcheck": "false"},
    )
    password = PasswordField(
        "Password",
        validators=[DataRequired("Enter your password."), validate_length],
        render_kw={"autocomplete": "current-password"},
    )
    remember = BooleanField("Keep me logged in")


class ForgotForm(Form):
    """Request a password reset link."""

    email = email_field()


class NewPasswordForm(Form):
    """Set a new password.

    Args:
        personal: the user's name and email addresses, which are rejected as passwords.
    """

    password = new_password_field("New password")
    confirm = repeated_password_field()

    def __init__(self, formdata: Any = None, *, personal: tuple[str | None, ...], **options: Any):
        super().__init__(formdata, **options)
        self.personal = personal

    def validate_password(self, field: PasswordField) -> None:
        reject_weak_password(field, *self.personal)


class PasswordForm(NewPasswordForm):
    """Change the password."""

    current_password = current_password_field()


class NameForm(Form):
    """Change the username."""

    username = username_field()


class EmailForm(Form):
    """Change the email address."""

    email = email_field("New email")


class InviteForm(Form):
    """Invite someone by email."""

    email = email_field(autocomplete="off", missing="Enter an email address.")


def reject_weak_password(field: PasswordField, *personal: str | None) -> None:
    """Reject a password that is too short, too common, or personal."""
    if problem := passwords.find_problem(field.data or "", *personal):
        raise ValidationError(problem)
