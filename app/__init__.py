"""An async web application with the layout and idioms of Flask."""

from typing import TYPE_CHECKING

from app import admin, adopt, api, bookmarks, fetching, links, live, operations, public, user
from app.user import oidc, passkeys, tokens, two_factor

if TYPE_CHECKING:
    from quart import Quart

    from app.settings import Settings

FEATURES = [
    public,
    user,
    two_factor,
    passkeys,
    oidc,
    api,
    tokens,
    admin,
    operations,
    links,
    live,
    fetching,
    bookmarks,
    adopt,
]


def create_app(settings: "Settings | None" = None) -> "Quart":
    """Create the application. This is the only place that connects its parts.

    Args:
        settings: the settings; read from the environment by default.

    Raises:
        SettingsError: an environment variable is missing or invalid.
        AssetsMissingError: `npm run build` has not run.
    """
    # Imported here so that migrations can import the settings and models without Quart.
    from quart import Quart

    from app import commands, site
    from app.extensions import upsun
    from app.settings import load_settings

    app = Quart(__name__, static_folder=None)
    upsun.init_app(app, settings or load_settings())
    commands.init_app(app)
    site.init_app(app)
    for feature in FEATURES:
        feature.init_app(app)
    return app
