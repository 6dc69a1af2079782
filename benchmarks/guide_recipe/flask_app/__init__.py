"""The application: two pages and one table."""

import os

from flask import Flask

from . import assets, views
from .models import db, migrate


def create_app() -> Flask:
    """Create the application, configured by the variables in `.environment`."""
    app = Flask(__name__)
    app.config["SECRET_KEY"] = os.environ["SECRET_KEY"]
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
    db.init_app(app)
    migrate.init_app(app, db)
    app.register_blueprint(views.blueprint)
    app.add_template_global(assets.static_url_for)
    return app
