"""The login form."""

from flask_wtf import FlaskForm
from wtforms import PasswordField, StringField
from wtforms.validators import DataRequired

from bookshop.user.models import User


class LoginForm(FlaskForm):
    """Log in."""

    username = StringField("Username", validators=[DataRequired()])
    password = PasswordField("Password", validators=[DataRequired()])

    def validate(self, **kwargs):
        if not super().validate(**kwargs):
            return False
        self.user = User.query.filter_by(username=self.username.data).first()
        if not self.user:
            self.username.errors.append("Unknown username")
            return False
        if not self.user.check_password(self.password.data):
            self.password.errors.append("Invalid password")
            return False
        if not self.user.active:
            self.username.errors.append("User not activated")
            return False
        return True
