"""The example: a reading list."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Add the reading list."""
    from app.links import (
        api,
        imports,
        jobs,
        personal_data,
        public,
        transfer_api,
        transfer_views,
        views,
    )
    from app.site import MenuEntry, site_of

    jobs.init_app(app)
    for module in (views, public, transfer_views, api, transfer_api):
        app.register_blueprint(module.blueprint)
    runner = app.extensions["quart_upsun"].jobs
    runner.register(*jobs.TASKS, *imports.TASKS, *jobs.SCHEDULES, *imports.SCHEDULES)
    site = site_of(app)
    site.menu.append(MenuEntry("Links", "links.index", "users", position=30))
    site.start = MenuEntry("Your links", "links.index")
    site.personal_data += personal_data.PARTS
