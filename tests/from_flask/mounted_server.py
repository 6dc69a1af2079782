"""This application with the Flask application of tests/legacy mounted at /old.

`python -m tests.from_flask.mounted_server`, with the packages of both. docs/from-flask.md shows the
same as a feature.
"""

import sys
from typing import Any, ClassVar

from quart import Quart, request

from app import create_app
from app.server import main
from app.settings import Settings
from app.user.login import log_out
from quart_upsun.http import BodyLimit
from quart_upsun.legacy import mount_wsgi
from quart_upsun.legacy.flask import use_login
from quart_upsun.logging import get_logger

log = get_logger(__name__)


def factory(settings: Settings) -> Quart:
    from bookshop.app import create_app as create_old_app
    from bookshop.public.views import load_user

    class OldSettings:
        SECRET_KEY = settings.keys("the old application")[0]
        SQLALCHEMY_DATABASE_URI = str(
            settings.database_url.set(drivername="postgresql+psycopg").render_as_string(
                hide_password=False
            )
        )
        # quart adopt has moved its tables into this schema.
        SQLALCHEMY_ENGINE_OPTIONS: ClassVar[dict[str, Any]] = {
            "connect_args": {"options": "-c search_path=flask"}
        }
        CACHE_TYPE = "SimpleCache"

    old_app = create_old_app(OldSettings)
    use_login(old_app, load_user)
    app = create_app(settings)
    mount_wsgi(
        *(app, old_app, "/old"),
        log_out=log_out,
        body_limit=BodyLimit(size=5_000_000, seconds=60),
        headers={"Content-Security-Policy": "default-src 'self' 'unsafe-inline'"},
    )

    @app.before_request
    async def log_slow_request() -> None:
        if request.path.endswith("/slow"):
            log.info("slow request received")

    return app


if __name__ == "__main__":
    sys.exit(main(factory))
