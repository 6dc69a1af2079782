"""The example feature, a reading list: search, public lists, a JSON API and a background job.

Other features extend it through `hooks`; it imports none of them.
"""

from quart import Quart


def init_app(app: Quart) -> None:
    """Register the reading list."""
    from app.links import api, hooks, jobs, personal_data, public_views, views
    from app.site import MenuEntry, get_site

    hooks.init_app(app)
    for module in (views, public_views, api):
        app.register_blueprint(module.blueprint)
    app.extensions["quart_upsun"].jobs.register(*jobs.SCHEDULES)
    site = get_site(app)
    site.menu.append(MenuEntry("Links", "links.index", "users", position=30))
    site.start_page = MenuEntry("Your links", "links.index")
    site.personal_data += personal_data.SECTIONS
