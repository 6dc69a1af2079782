"""The registration form."""

from flask_wtf import FlaskForm
from wtforms import PasswordField, StringField
from wtforms.validators import DataRequired, Email, EqualTo, Length

from bookshop.user.models import User


class RegisterForm(FlaskForm):
    """Register."""

    username = StringField("Username", validators=[DataRequired(), Length(min=3, max=25)])
    email = StringField("Email", validators=[DataRequired(), Email(), Length(min=6, max=40)])
    password = PasswordField("Password", validators=[DataRequired(), Length(min=6, max=40)])
    confirm = PasswordField(
        "Verify password",
        [DataRequired(), EqualTo("password", message="Passwords must match")],
    )

    def validate(self, **kwargs):
        if not super().validate(**kwargs):
            return False
        if User.query.filter_by(username=self.username.data).first():
            self.username.errors.append("Username already registered")
            return False
        if User.query.filter_by(email=self.email.data).first():
            self.email.errors.append("Email already registered")
            return False
        return True
