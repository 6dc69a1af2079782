"""Extension instances that views and jobs import. `create_app` initializes them."""

from typing import cast

from quart import current_app
from werkzeug.local import LocalProxy

from app.site import Site
from quart_upsun import QuartUpsun

upsun = QuartUpsun()
database = upsun.database

site = cast(Site, LocalProxy(lambda: current_app.extensions["site"]))
