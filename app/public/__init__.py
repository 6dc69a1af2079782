"""Public pages."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Add the pages and their menu entries."""
    from app.public import views
    from app.site import MenuEntry, get_site

    app.register_blueprint(views.blueprint)
    get_site(app).menu += [
        MenuEntry("Home", "public.home", position=10),
        MenuEntry("About", "public.about", position=20),
    ]
