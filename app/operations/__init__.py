"""The operations page: requests, errors, the database, jobs and deploys of all processes.

The toolkit collects what it shows, see `quart_upsun/metrics/`.
"""

from quart import Quart


def init_app(app: Quart) -> None:
    """Register the page, and add it to the administration menu."""
    from app.operations import updates, views
    from app.site import MenuEntry, get_site

    app.register_blueprint(views.blueprint)
    app.extensions["operations_updates"] = updates.init_app(app)
    get_site(app).admin_menu.append(MenuEntry("Operations", "operations.index", position=5))
