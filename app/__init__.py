"""An async web application that Flask users know their way around in."""

from typing import TYPE_CHECKING

from app import admin, bookmarks, fetching, links, public, user
from app.user import tokens

if TYPE_CHECKING:
    from quart import Quart

    from app.settings import Settings

FEATURES = [public, user, tokens, admin, links, fetching, bookmarks]


def create_app(settings: "Settings | None" = None) -> "Quart":
    """Build the application: this function is its table of contents, and its only wiring.

    Args:
        settings: read from the environment by default.

    Raises:
        SettingsError: a variable is missing or wrong.
        AssetsMissingError: `npm run build` has not run.
    """
    # Imported here, so that a migration can use the settings and models without Quart.
    from quart import Quart

    from app import site
    from app.extensions import upsun
    from app.settings import load_settings

    app = Quart(__name__, static_folder=None)
    upsun.init_app(app, settings or load_settings())
    site.init_app(app)
    for feature in FEATURES:
        feature.init_app(app)
    return app
