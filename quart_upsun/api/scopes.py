"""The scopes of access tokens.

There is no central list: the known scopes are those that some view requires. Each feature defines
its scopes next to its API, so they disappear with the feature.
"""

from quart import Quart

from quart_upsun.policy import Scope, policy_of

__all__ = ["Scope", "known"]


def known(app: Quart) -> list[Scope]:
    """Return the scopes that the application's views require, sorted by name."""
    found = {policy_of(view).scope for view in app.view_functions.values()}
    return sorted(scope for scope in found if scope is not None)
