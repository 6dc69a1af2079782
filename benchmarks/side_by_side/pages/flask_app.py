"""The pages in the style of cookiecutter-flask: Flask-Login, Flask-SQLAlchemy and psycopg 3.

Served by gunicorn with gevent, by gunicorn with threads, and by `flask run`.
"""

import os
from typing import Any

from argon2 import PasswordHasher
from flask import Blueprint, Flask, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import LoginManager, current_user, login_required, login_user
from flask_sqlalchemy import SQLAlchemy

from benchmarks.side_by_side.pages import site, tables

db = SQLAlchemy()  # its models are in `tables`
login_manager = LoginManager()
public = Blueprint("public", __name__)
user = Blueprint("user", __name__)
links = Blueprint("links", __name__, url_prefix="/links")


class Anonymous:
    """An anonymous user, who is false in templates."""

    is_authenticated = is_active = False

    def __bool__(self) -> bool:
        return False


@login_manager.user_loader
def load_user(login: str) -> tables.User | None:
    return db.session.scalar(tables.find_user(login))


@public.get("/")
def home() -> str:
    return render_template("public/home.html")


@user.post("/login/")
def login() -> ResponseReturnValue:
    """Log in. Not part of the comparison, and therefore without a form."""
    found = db.session.scalars(tables.named_user(request.form["username"])).one()
    PasswordHasher().verify(found.password_hash or "", request.form["password"])
    found.session_id = db.session.scalar(tables.new_session(found))
    db.session.commit()
    login_user(found)
    return redirect(url_for("user.members"))


@user.get("/users/")
@login_required
def members() -> str:
    newest = db.session.execute(tables.newest_members()).all()
    return render_template("user/members.html", members=newest)


@links.get("/")
@login_required
def index() -> str:
    newest_event_id = db.session.scalar(tables.newest_event(current_user.id))
    found = db.session.scalars(tables.unread_links(current_user.id)).all()
    tags = db.session.scalars(tables.all_tags(current_user.id)).all()
    context = site.list_context(newest_event_id, found, tags)
    return render_template("links/index.html", **context)


def template_context() -> dict[str, Any]:
    return {"login_bar": not current_user and request.path != "/login/"}


def create_app() -> Flask:
    app = Flask(__name__, template_folder=str(site.TEMPLATES))
    app.config["SECRET_KEY"] = os.environ["SECRET_KEY"]
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"].replace(
        "postgresql://", "postgresql+psycopg://"
    )
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "pool_size": int(os.environ["DATABASE_POOL_SIZE"]),
        "max_overflow": 0,
        # As in this project: reads need no transaction.
        "isolation_level": "AUTOCOMMIT",
        "connect_args": {"options": "-c jit=off"},
    }
    app.jinja_options = site.JINJA_OPTIONS
    app.jinja_env.filters.update(site.FILTERS)
    app.jinja_env.globals.update(site.GLOBALS)
    app.context_processor(template_context)
    db.init_app(app)
    login_manager.init_app(app)
    login_manager.anonymous_user = Anonymous
    for blueprint in (public, user, links):
        app.register_blueprint(blueprint)
    for endpoint, path in site.OTHER_PATHS.items():
        app.add_url_rule(path, endpoint, build_only=True)
    return app
