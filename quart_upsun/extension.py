"""The Quart extension, which sets up all parts of the toolkit."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from quart import Quart
from werkzeug.local import LocalProxy

from quart_upsun import commands, telemetry
from quart_upsun.api import idempotency
from quart_upsun.api.auth import TokenAuthenticator
from quart_upsun.commands.switches import switch_group
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
from quart_upsun.measure import Observer
from quart_upsun.metrics import collector, event_log, rollup
from quart_upsun.metrics.collector import Collector
from quart_upsun.sanitize.commands import sanitize_command
from quart_upsun.security import retention
from quart_upsun.settings import Settings
from quart_upsun.switches import guard, watcher
from quart_upsun.switches.state import MAINTENANCE, READ_ONLY, Switches
from quart_upsun.web import assets, errors, health, templating


@dataclass
class ToolkitState:
    """The toolkit's state for one application, stored in `app.extensions["quart_upsun"]`."""

    settings: Settings
    database: Database
    identity: Identity
    """The environment of this process. The database may belong to another environment."""
    draining: asyncio.Event
    """Set when graceful shutdown begins: streams end and `/readyz` returns 503."""
    mail: Delivery
    jobs: Runner
    live: Hub
    switches: Switches
    observers: list[Observer] = field(default_factory=list)
    """They get the measure of each request and job."""
    token_authenticator: TokenAuthenticator | None = None
    """Returns the user of an access token. None if the application has no access tokens."""
    tokens_endpoint: str | None = None
    """The endpoint of the page where users create access tokens. The API docs link to it."""


class QuartUpsun:
    """Add the toolkit to a Quart application.

    Create one instance as a module global and call `init_app` in the application factory:

        upsun = QuartUpsun()

        def create_app(settings):
            app = Quart(__name__, static_folder=None)
            upsun.init_app(app, settings)
            return app

    `database`, `jobs`, `mail` and `live` are proxies for the current application, like
    `current_app`.

    Args:
        app: the application to initialize. Leave it out to call `init_app` later.
        settings: the application's settings. Required with `app`.

    Raises:
        TypeError: `app` was given without `settings`.
    """

    def __init__(self, app: Quart | None = None, settings: Settings | None = None) -> None:
        self.database = cast(Database, LocalProxy(lambda: current_toolkit().database))
        self.jobs = cast(Runner, LocalProxy(lambda: current_toolkit().jobs))
        self.mail = cast(Delivery, LocalProxy(lambda: current_toolkit().mail))
        self.live = cast(Hub, LocalProxy(lambda: current_toolkit().live))
        if app is not None:
            if settings is None:
                raise TypeError("QuartUpsun(app) requires settings")
            self.init_app(app, settings)

    def init_app(self, app: Quart, settings: Settings) -> ToolkitState:
        """Initialize an application and return its toolkit state.

        Migrations are read from `settings.root / "alembic"`. Built assets are read from
        `manifest.json` and `static/` in the application's package. Both are optional.

        Args:
            app: created with `static_folder=None`, because the toolkit serves `/static`.
            settings: the application's settings.

        Raises:
            AssetsMissingError: the application has assets, but they are not built.
        """
        configure_logging(settings.log_level)
        app.debug = settings.traceback_pages
        app.config.from_mapping(settings.quart())
        draining = asyncio.Event()
        platform = settings.platform
        migrations = settings.root / "alembic"
        database = Database(
            settings.database_url,
            direct_url=settings.direct_url,
            pool_size=settings.database_pool_size,
            migrations=migrations if migrations.is_dir() else None,
            preview=platform.name if platform and settings.is_preview else None,
            replica_url=settings.database_replica_url,
        )
        app.after_serving(database.close)
        if database.replica is not None:
            # Imported only here, and first: hooks that are added first see the response last.
            from quart_upsun.web import read_positions

            read_positions.init_app(app, database, database.replica)
        if settings.traceback_pages:
            # Imported only here, and first: hooks that are added first see the response last.
            from quart_upsun.web import debug_bar

            debug_bar.init_app(app, settings, database)
        observers: list[Observer] = []
        telemetry.init_app(app, settings, database, observers)
        middleware.init_app(app, settings, draining, observers)
        switches = Switches()
        guard.init_app(app, switches)
        state = ToolkitState(
            settings=settings,
            database=database,
            identity=settings.identity,
            draining=draining,
            mail=delivery.init_app(app, settings),
            jobs=runner.init_app(
                app,
                database,
                settings.identity,
                draining,
                serves=settings.runs_jobs,
                observers=observers,
            ),
            live=hub.init_app(app, database, draining),
            observers=observers,
            switches=switches,
        )
        app.extensions["quart_upsun"] = state
        state.jobs.register(
            delivery.SEND_MAIL,
            outbox.CLEANUP,
            retention.CLEANUP,
            cleanup.CLEANUP,
            idempotency.FORGET,
            events.CLEANUP,
            rollup.ROLL_UP,
        )
        event_log.init_app(observers, settings)
        if settings.metrics:
            release = settings.platform.release if settings.platform else ""
            observers.append(collector.init_app(app, Collector(database, state.live, release)))
        watcher.init_app(
            app, settings.direct_url, switches, maintenance_began=state.live.end_streams
        )
        errors.init_app(app)
        app.register_blueprint(health.blueprint)
        if (settings.root / "assets").is_dir() or (Path(app.root_path) / "manifest.json").exists():
            assets.init_app(app, plain_max_age=settings.send_file_max_age_default)
        templating.init_app(app, settings)
        commands.init_app(app, settings)
        app.cli.add_command(sanitize_command(settings, app.import_name))
        app.cli.add_command(database_group(settings.direct_url, settings.identity))
        for name in (MAINTENANCE, READ_ONLY):
            app.cli.add_command(switch_group(settings.direct_url, name))
        return state
