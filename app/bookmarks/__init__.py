"""Import links from bookmark files of browsers, and export them.

It uses `app.links`, which does not import it.
"""

from quart import Quart


def init_app(app: Quart) -> None:
    """Register import and export."""
    from app.bookmarks import api, jobs, personal_data, views
    from app.site import get_site

    views.init_app(app)
    for module in (views, api):
        app.register_blueprint(module.blueprint)
    app.extensions["quart_upsun"].jobs.register(*jobs.TASKS, *jobs.SCHEDULES)
    get_site(app).personal_data += personal_data.SECTIONS
