"""Public pages."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Add the pages and their menu entries."""
    from app.public import views
    from app.site import MenuEntry, get_site

    app.register_blueprint(views.blueprint)
    site = get_site(app)
    site.menu += [
        MenuEntry("Home", "public.home", position=10),
        MenuEntry("About", "public.about", position=20),
    ]
    site.footer_menu.append(MenuEntry("About this site", "public.about"))
