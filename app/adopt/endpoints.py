"""URLs of views by the names that they had in the Flask application, for templates.

Add the names of your own views, and remove them when no template uses them any more.
"""

from quart import Quart

# Endpoint of cookiecutter-flask or of Flask's tutorial -> endpoint of this application.
OLD_ENDPOINTS = {
    "public.register": "user.register",
    "public.login": "user.login",
    "public.logout": "user.logout",
    "auth.register": "user.register",
    "auth.login": "user.login",
    "auth.logout": "user.logout",
    "main.index": "public.home",
    "index": "public.home",
}


def init_app(app: Quart) -> None:
    """Let templates build URLs with the old names, too. A view with such a name comes first."""
    app.extensions["endpoint_aliases"].update(OLD_ENDPOINTS)
