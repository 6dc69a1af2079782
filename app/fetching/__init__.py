"""Fetch the page of each link in the background: its title, description and icon.

It uses `app.links` and `quart_upsun.fetching`; neither imports it.
"""

from quart import Quart


def init_app(app: Quart) -> None:
    """Fetch the pages of links."""
    from app.fetching import jobs, views
    from quart_upsun import fetching

    fetching.init_app(app)
    jobs.init_app(app)
    app.register_blueprint(views.blueprint)
    app.extensions["quart_upsun"].jobs.register(*jobs.TASKS, *jobs.SCHEDULES)
