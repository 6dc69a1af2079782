"""Take over the database of a Flask application with `quart adopt`, and its users' passwords.

When no account has a hash of the old application any more, this package can be removed. `quart
adopt` says how many there are.
"""

from quart import Quart


def init_app(app: Quart) -> None:
    """Add `quart adopt`, and what adopted accounts and templates need."""
    from app.adopt import endpoints
    from app.adopt.commands import adopt_command
    from app.adopt.events import is_adopted
    from app.adopt.hashes import OldHashes
    from app.site import get_site

    upsun = app.extensions["quart_upsun"]
    site = get_site(app)
    site.verify_password = OldHashes(upsun.database).verify_password
    site.in_use_conditions.append(is_adopted)
    app.cli.add_command(adopt_command(upsun.settings))
    endpoints.init_app(app)
