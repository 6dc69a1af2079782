"""The forms of accounts. Values are stripped; addresses come out in their normal form."""

from typing import Any

from email_validator import EmailNotValidError, validate_email
from wtforms import BooleanField, Form, PasswordField, StringField, ValidationError
from wtforms.validators import DataRequired, EqualTo, Length, Regexp

from app.user import passwords
from app.user.models import EMAIL_LENGTH, USERNAME_LENGTH
from quart_upsun.web.forms import strip

# ASCII only: no two names look alike, and lower() means the same in Python and PostgreSQL.
USERNAME_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z"


def normalize_password_filter(value: str | None) -> str | None:
    """Normalize a password before its length is checked and its repetition compared."""
    return passwords.normalize_password(value) if value else value


def normalize_email(text: str) -> str:
    """Return an address in its normal form.

    Raises:
        ValueError: a sentence for who typed it.
    """
    try:
        found = validate_email(
            text[: EMAIL_LENGTH * 2],
            allow_smtputf8=False,
            # No DNS question in a request; whether mail arrives, only a mail can tell. Domains
            # under .test are let through, for example for tests of a deployed site.
            test_environment=True,
        )
    except EmailNotValidError:
        raise ValueError("This is not a valid email address.") from None
    address = found.ascii_email or found.normalized
    if len(address) > EMAIL_LENGTH:
        raise ValueError("This address is too long.")
    return address


def validate_email_field(form: Form, field: StringField) -> None:
    """Validate an address, and put its normal form in its place."""
    try:
        field.data = normalize_email(field.data or "")
    except ValueError as error:
        raise ValidationError(str(error)) from None


def username_field() -> StringField:
    return StringField(
        "User name",
        filters=[strip],
        validators=[
            DataRequired("Choose a user name."),
            Length(3, USERNAME_LENGTH, f"Between 3 and {USERNAME_LENGTH} characters."),
            Regexp(
                USERNAME_PATTERN,
                message="Letters, digits, dots, hyphens and underscores;"
                " a letter or digit first and last.",
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


def new_password_field() -> PasswordField:
    return PasswordField(
        "Password",
        filters=[normalize_password_filter],
        description=f"At least {passwords.MIN_LENGTH} characters.",
        validators=[DataRequired("Choose a password.")],
        render_kw={"autocomplete": "new-password"},
    )


def repeated_password_field() -> PasswordField:
    return PasswordField(
        "Repeat the password",
        filters=[normalize_password_filter],
        validators=[
            DataRequired("Repeat the password."),
            EqualTo("password", "The passwords do not match."),
        ],
        render_kw={"autocomplete": "new-password"},
    )


def current_password_field(identifier: str) -> PasswordField:
    """The page of the account has several, so each says what it is called there."""
    return PasswordField(
        "Current password",
        filters=[normalize_password_filter],
        id=identifier,
        validators=[DataRequired("Enter your password."), Length(max=passwords.MAX_LENGTH)],
        render_kw={"autocomplete": "current-password"},
    )


class RegisterForm(Form):
    """A new account."""

    username = username_field()
    email = email_field()
    password = new_password_field()
    confirm = repeated_password_field()

    def validate_password(self, field: PasswordField) -> None:
        reject_weak_password(field, self.username.data, self.email.data)


class LoginForm(Form):
    """A user name and a password; whether they fit is not the form's to say."""

    username = StringField(
        "User name",
        filters=[strip],
        validators=[DataRequired("Enter your user name."), Length(max=USERNAME_LENGTH)],
        render_kw={"autocomplete": "username", "autocapitalize": "none", "spellcheck": "false"},
    )
    password = PasswordField(
        "Password",
        filters=[normalize_password_filter],
        validators=[DataRequired("Enter your password."), Length(max=passwords.MAX_LENGTH)],
        render_kw={"autocomplete": "current-password"},
    )
    remember = BooleanField("Keep me signed in")


class ForgotForm(Form):
    """Where to send the link that replaces a password."""

    email = email_field("The address of your account")


class NewPasswordForm(Form):
    """A password in place of a forgotten one.

    Args:
        personal: the user's name and address, which a password must not be.
    """

    password = new_password_field()
    confirm = repeated_password_field()

    def __init__(self, formdata: Any = None, *, personal: tuple[str | None, ...], **options: Any):
        super().__init__(formdata, **options)
        self.personal = personal

    def validate_password(self, field: PasswordField) -> None:
        reject_weak_password(field, *self.personal)


class PasswordForm(NewPasswordForm):
    """A password in place of one that is known."""

    current_password = current_password_field("password-current")


class NameForm(Form):
    """Another user name."""

    username = username_field()


class EmailForm(Form):
    """Another address."""

    email = email_field("New address")
    current_password = current_password_field("email-current")


class DeleteForm(Form):
    """The end of an account."""

    current_password = current_password_field("delete-current")


class InviteForm(Form):
    """Somebody else's address."""

    email = email_field("Their address", "off", "Enter an email address.")


def reject_weak_password(field: PasswordField, *personal: str | None) -> None:
    """Refuse a password that is too short or among the first to be tried."""
    if problem := passwords.find_problem(field.data or "", *personal):
        raise ValidationError(problem)
