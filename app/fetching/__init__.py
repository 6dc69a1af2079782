"""Fetch the page of each link in the background: its title, description and icon.

Built on `app.links`, which does not know it, and on `quart_upsun.fetching`.
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
