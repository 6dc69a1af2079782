"""The administration pages."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Register the pages. Other features can add entries to `site.admin_menu`."""
    from app.admin import views
    from app.site import MenuEntry, get_site

    app.register_blueprint(views.blueprint)
    site = get_site(app)
    site.menu.append(MenuEntry("Administration", "admin.users", "administrators", position=90))
    site.admin_menu += [
        MenuEntry("Users", "admin.users", position=10),
        MenuEntry("Audit trail", "admin.trail", position=20),
        MenuEntry("Jobs", "admin.jobs", position=30),
        MenuEntry("Email", "admin.mail", position=40),
    ]
