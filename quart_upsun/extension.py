"""The toolkit as a Quart extension: the one place where its parts are put together."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from quart import Quart
from werkzeug.local import LocalProxy

from quart_upsun.api import cors, idempotency, openapi
from quart_upsun.api.auth import TokenAuthenticator
from quart_upsun.current import current_toolkit
from quart_upsun.database import Database
from quart_upsun.database.commands import database_group
from quart_upsun.database.ownership import Identity
from quart_upsun.http import middleware
from quart_upsun.jobs import cleanup, runner
from quart_upsun.jobs.runner import Runner
from quart_upsun.live import events, hub
from quart_upsun.live.hub import Hub
from quart_upsun.logging import configure_logging
from quart_upsun.mail import delivery, outbox
from quart_upsun.mail.delivery import Delivery
from quart_upsun.sanitize.commands import sanitize_command
from quart_upsun.security import retention
from quart_upsun.settings import Settings
from quart_upsun.web import assets, errors, health, templating


@dataclass
class ToolkitState:
    """What the toolkit keeps for one application, as `app.extensions["quart_upsun"]`."""

    settings: Settings
    database: Database
    identity: Identity
    """The environment of this process; the database may belong to another one."""
    draining: asyncio.Event
    """Set once the process was told to stop: streams end, `/readyz` says 503."""
    mail: Delivery
    jobs: Runner
    live: Hub
    token_authenticator: TokenAuthenticator | None = None
    """Finds the user of an access token; None if the application has no tokens."""
    tokens_endpoint: str | None = None
    """The endpoint of the page where users make tokens, for a link from the API document."""


class QuartUpsun:
    """The extension.

    Its attributes stand for those of the current application, as `current_app` does, so that one
    instance can be a global of the application's `extensions.py`.

    Args:
        app: to be initialized at once; otherwise call `init_app`.
        settings: of the application, if `app` is given.
    """

    def __init__(self, app: Quart | None = None, settings: Settings | None = None) -> None:
        self.database = cast(Database, LocalProxy(lambda: current_toolkit().database))
        self.jobs = cast(Runner, LocalProxy(lambda: current_toolkit().jobs))
        self.mail = cast(Delivery, LocalProxy(lambda: current_toolkit().mail))
        self.live = cast(Hub, LocalProxy(lambda: current_toolkit().live))
        if app is not None:
            if settings is None:
                raise TypeError("QuartUpsun(app) needs settings")
            self.init_app(app, settings)

    def init_app(self, app: Quart, settings: Settings) -> ToolkitState:
        """Put the toolkit into an application.

        Migrations are looked for in `settings.root / "alembic"`, built assets next to the
        application's package: `manifest.json` and `static/`. An application may have neither.

        Args:
            app: made with `static_folder=None`, because the toolkit serves `/static`.
            settings: of the application.

        Raises:
            AssetsMissingError: there is a build of assets, and it is not usable.
        """
        configure_logging(settings.log_level)
        app.debug = settings.traceback_pages
        app.config.from_mapping(settings.quart())
        draining = asyncio.Event()
        platform = settings.platform
        migrations = settings.root / "alembic"
        database = Database(
            settings.database_url,
            pool_size=settings.database_pool_size,
            migrations=migrations if migrations.is_dir() else None,
            preview=platform.name if platform and settings.is_preview else None,
        )
        app.after_serving(database.close)
        middleware.init_app(app, settings, draining)
        state = ToolkitState(
            settings=settings,
            database=database,
            identity=settings.identity,
            draining=draining,
            mail=delivery.init_app(app, settings),
            jobs=runner.init_app(
                app, database, settings.identity, draining, serves=settings.runs_jobs
            ),
            live=hub.init_app(app, database, draining),
        )
        app.extensions["quart_upsun"] = state
        state.jobs.register(
            delivery.SEND_MAIL,
            outbox.CLEANUP,
            retention.CLEANUP,
            cleanup.CLEANUP,
            idempotency.FORGET,
            events.CLEANUP,
        )
        errors.init_app(app)
        cors.init_app(app, settings.allowed_origins)
        openapi.init_app(app, settings)
        app.register_blueprint(openapi.blueprint)
        app.register_blueprint(health.blueprint)
        if (settings.root / "assets").is_dir() or (Path(app.root_path) / "manifest.json").exists():
            assets.init_app(app, plain_max_age=settings.send_file_max_age_default)
        templating.init_app(app, settings)
        app.cli.add_command(sanitize_command(settings, app.import_name))
        app.cli.add_command(database_group(settings.database_url, settings.identity))
        return state
