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
    from app.api import cors, document, idempotency
    from app.api.pages import blueprint as tokens
    from app.api.views import blueprint as api
    from app.database import Database
    from app.jobs import cleanup, runner
    from app.live import events, hub
    from app.mail import delivery, outbox
    from app.public.views import blueprint as public
    from app.security import retention
    from app.settings import load
    from app.user import login, personal_data, unconfirmed
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
    app.extensions["identity"] = settings.identity
    app.extensions["database"] = database = Database(
        settings.database_url,
        pool_size=settings.database_pool_size,
        preview=settings.platform.name if settings.platform and settings.is_preview else None,
    )
    app.after_serving(database.close)

    http.init_app(app, settings, app.extensions["draining"])
    hub.init_app(app, settings)
    login.init_app(app)
    assets.init_app(app, plain_max_age=settings.send_file_max_age_default)
    errors.init_app(app)
    cors.init_app(app, settings.allowed_origins)
    document.init_app(app, settings)
    delivery.init_app(app, settings, composers=COMPOSERS)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(public)
    app.register_blueprint(user)
    app.register_blueprint(recovery)
    app.register_blueprint(account)
    app.register_blueprint(admin)
    app.register_blueprint(tokens)
    app.register_blueprint(api)
    app.register_blueprint(document.blueprint)

    tasks = [delivery.MAIL]
    schedules = [
        *outbox.SCHEDULES,
        retention.FORGET,
        unconfirmed.REMOVE,
        cleanup.FORGET,
        idempotency.FORGET,
        events.FORGET,
    ]
    parts: list[personal_data.Part] = []

    # The example, a reading list. What stands on it comes after it.
    from app.links import hooks as links_hooks
    from app.links import jobs as links_jobs
    from app.links import personal_data as links_data
    from app.links.api import blueprint as links_api
    from app.links.public import blueprint as lists
    from app.links.views import blueprint as links

    links_hooks.init_app(app)
    app.register_blueprint(links)
    app.register_blueprint(lists)
    app.register_blueprint(links_api)
    schedules += links_jobs.SCHEDULES
    parts += links_data.PARTS

    # Fetching the pages of links.
    from app.fetching import jobs as fetching_jobs
    from app.fetching.views import blueprint as fetching
    from quart_upsun import fetching as fetcher

    fetcher.init_app(app)
    fetching_jobs.init_app(app)
    app.register_blueprint(fetching)
    tasks += fetching_jobs.TASKS
    schedules += fetching_jobs.SCHEDULES

    # Import and export of links.
    from app.bookmarks import jobs as bookmarks_jobs
    from app.bookmarks import personal_data as bookmarks_data
    from app.bookmarks import views as bookmarks
    from app.bookmarks.api import blueprint as bookmarks_api

    bookmarks.init_app(app)
    app.register_blueprint(bookmarks.blueprint)
    app.register_blueprint(bookmarks_api)
    tasks += bookmarks_jobs.TASKS
    schedules += bookmarks_jobs.SCHEDULES
    parts += bookmarks_data.PARTS

    personal_data.init_app(app, parts=parts)
    runner.init_app(app, settings, tasks=tasks, schedules=schedules)
    templating.init_app(app, settings)
    commands.init_app(app, settings)
    return app
