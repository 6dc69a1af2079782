"""An async web application that Flask users know their way around in."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quart import Quart

    from app.settings import Settings


def create_app(settings: "Settings | None" = None) -> "Quart":
    """Build the application: this function is its table of contents, and its only wiring.

    Args:
        settings: read from the environment by default.

    Raises:
        SettingsError: a variable is missing or wrong.
        AssetsMissing: `npm run build` has not run.
    """
    # Imported here, so that a migration can use app.settings and app.database without Quart.
    import asyncio

    from quart import Quart

    from app import assets, commands, errors, health, http, logs, templating
    from app.admin.views import blueprint as admin
    from app.database import Database
    from app.mail import delivery
    from app.public.views import blueprint as public
    from app.settings import load
    from app.user import login
    from app.user.account import blueprint as account
    from app.user.mails import COMPOSERS
    from app.user.recovery import blueprint as recovery
    from app.user.views import blueprint as user

    settings = settings or load()
    logs.configure(settings.log_level)

    app = Quart(__name__, static_folder=None)
    app.debug = settings.traceback_pages
    app.config.from_mapping(settings.quart())

    app.extensions["draining"] = asyncio.Event()
    app.extensions["database"] = database = Database(
        settings.database_url,
        pool_size=settings.database_pool_size,
        preview=settings.platform.name if settings.platform and settings.is_preview else None,
    )
    app.after_serving(database.close)

    http.init_app(app, settings, app.extensions["draining"])
    login.init_app(app)
    assets.init_app(app, plain_max_age=settings.send_file_max_age_default)
    errors.init_app(app)
    delivery.init_app(app, settings, composers=COMPOSERS)

    app.register_blueprint(health.blueprint)
    app.register_blueprint(public)
    app.register_blueprint(user)
    app.register_blueprint(recovery)
    app.register_blueprint(account)
    app.register_blueprint(admin)
    templating.init_app(app, settings)
    commands.init_app(app, settings)
    return app
