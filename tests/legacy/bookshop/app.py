"""The application factory."""

from flask import Flask, render_template

from bookshop import commands, orders, public, user
from bookshop.extensions import (
    bcrypt,
    cache,
    csrf_protect,
    db,
    debug_toolbar,
    login_manager,
    migrate,
)


def create_app(config_object="bookshop.settings"):
    """Create the application."""
    app = Flask(__name__.split(".")[0])
    app.config.from_object(config_object)
    register_extensions(app)
    register_blueprints(app)
    register_errorhandlers(app)
    register_shellcontext(app)
    app.cli.add_command(commands.load_users)
    return app


def register_extensions(app):
    bcrypt.init_app(app)
    cache.init_app(app)
    db.init_app(app)
    csrf_protect.init_app(app)
    login_manager.init_app(app)
    debug_toolbar.init_app(app)
    migrate.init_app(app, db)


def register_blueprints(app):
    app.register_blueprint(public.views.blueprint)
    app.register_blueprint(user.views.blueprint)
    app.register_blueprint(orders.views.blueprint)


def register_errorhandlers(app):
    def render_error(error):
        code = getattr(error, "code", 500)
        return render_template(f"{code}.html"), code

    for code in (401, 404, 500):
        app.errorhandler(code)(render_error)


def register_shellcontext(app):
    app.shell_context_processor(lambda: {"db": db, "User": user.models.User})
