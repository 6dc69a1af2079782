"""Models of users."""

import datetime as dt

from flask_login import UserMixin

from bookshop.extensions import bcrypt, db


class Role(db.Model):
    """A role of a user."""

    __tablename__ = "roles"

    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String(80), unique=True, nullable=False)
    user_id = db.Column(db.Integer, db.ForeignKey("users.id"), nullable=True)
    user = db.relationship("User", backref="roles")


class User(UserMixin, db.Model):
    """A user."""

    __tablename__ = "users"

    id = db.Column(db.Integer, primary_key=True)
    username = db.Column(db.String(80), unique=True, nullable=False)
    email = db.Column(db.String(80), unique=True, nullable=False)
    _password = db.Column("password", db.LargeBinary(128), nullable=True)
    created_at = db.Column(
        db.DateTime, nullable=False, default=lambda: dt.datetime.now(dt.UTC).replace(tzinfo=None)
    )
    first_name = db.Column(db.String(30), nullable=True)
    last_name = db.Column(db.String(30), nullable=True)
    active = db.Column(db.Boolean(), default=False)
    is_admin = db.Column(db.Boolean(), default=False)

    @property
    def password(self):
        return self._password

    @password.setter
    def password(self, value):
        self._password = bcrypt.generate_password_hash(value)

    def check_password(self, value):
        return bcrypt.check_password_hash(self._password, value)

    @property
    def full_name(self):
        return f"{self.first_name} {self.last_name}"
