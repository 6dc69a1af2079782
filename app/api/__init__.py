"""The JSON API under `/api/v1`: its documentation, and the current user. Features add resources."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Serve the API, `/openapi.json` and `/docs`, and link to them from the footer."""
    from app.api import me
    from app.site import MenuEntry, get_site
    from quart_upsun import api

    api.init_app(app)
    app.register_blueprint(me.blueprint)
    get_site(app).footer_menu.append(MenuEntry("API", "docs.show", position=10))
