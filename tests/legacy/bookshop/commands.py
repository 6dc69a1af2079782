"""Commands of the application."""

import json
import sys

import click
from flask.cli import with_appcontext

from bookshop.extensions import db
from bookshop.user.models import Role, User


@click.command("load-users")
@with_appcontext
def load_users():
    """Create the users in the JSON list on standard input.

    Each is an object with the columns of a user, the `password` as it was typed, and `roles`.
    """
    for columns in json.load(sys.stdin):
        roles = [Role(name=name) for name in columns.pop("roles", [])]
        db.session.add(User(roles=roles, **columns))
    db.session.commit()
