"""What a token may be good for.

There is no list to keep: the scopes there are, are those that some view asks for. A feature makes
its own where its API is, and takes them along when it is deleted.
"""

from quart import Quart

from quart_upsun.policy import Scope, policy_of

__all__ = ["Scope", "known"]


def known(app: Quart) -> list[Scope]:
    """Return the scopes that views of the application ask for, by name."""
    found = {policy_of(view).scope for view in app.view_functions.values()}
    return sorted(scope for scope in found if scope is not None)
