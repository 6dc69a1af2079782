"""The pages."""

from flask import Blueprint, render_template
from sqlalchemy import select

from .models import User, db

blueprint = Blueprint("public", __name__)


@blueprint.get("/")
def home() -> str:
    """Render the home page without using the database."""
    return render_template("home.html")


@blueprint.get("/users/")
def users() -> str:
    """List the newest users."""
    newest = db.session.scalars(select(User).order_by(User.created_at.desc()).limit(20))
    return render_template("users.html", users=newest)
