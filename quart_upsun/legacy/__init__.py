"""Run an existing WSGI application, such as one with Flask, beside this application.

`mount_wsgi` serves it below a path, or for all requests that no route of this application matches.
`flask.use_login` is for the Flask application: it takes over the login of this application.
docs/from-flask.md explains how to move from one to the other.
"""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.legacy.login import LOGIN, MountedLogin
    from quart_upsun.legacy.mount import mount_wsgi

__all__ = ["LOGIN", "MountedLogin", "mount_wsgi"]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("login", "mount"))
