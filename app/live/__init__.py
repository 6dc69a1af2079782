"""Live updates of the reading list: its open pages show changes by other windows and by jobs.

It uses `app.links`, which does not import it.
"""

from quart import Quart


def init_app(app: Quart) -> None:
    """Register the event stream, and publish what the reading list announces."""
    from app.links import hooks
    from app.live import views
    from quart_upsun.live.events import newest_event

    hooks.page_changed.connect(views.publish_change)
    app.extensions["links_newest_event"] = newest_event
    hooks.add_template(app, "attributes", "live/attributes.html")
    hooks.add_template(app, "scripts", "live/scripts.html")
    app.register_blueprint(views.blueprint)
