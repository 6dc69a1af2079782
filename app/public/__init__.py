"""Pages for everybody."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Add the pages and their menu entries."""
    from app.public import views
    from app.site import MenuEntry, site_of

    app.register_blueprint(views.blueprint)
    site_of(app).menu += [
        MenuEntry("Home", "public.home", position=10),
        MenuEntry("About", "public.about", position=20),
    ]
