"""What a token may be good for.

There is no list to keep: the scopes there are, are those that some view asks for. A feature makes
its own where its API is, and takes them along when it is deleted.
"""

from dataclasses import dataclass

from quart import Quart

from quart_upsun.policy import policy_of

LENGTH = 20  # characters of a name, in the database


@dataclass(frozen=True, order=True)
class Scope:
    """One thing that a token may be good for.

    Args:
        name: `<resource>:read` or `<resource>:write`, of at most 20 characters.
        sentence: what it allows, for the page on which tokens are made.
    """

    name: str
    sentence: str

    def __post_init__(self) -> None:
        if len(self.name) > LENGTH:
            raise ValueError(f"the name of a scope has at most {LENGTH} characters: {self.name}")


def known(app: Quart) -> list[Scope]:
    """Return the scopes that views of the application ask for, by name."""
    found = {policy_of(view).scope for view in app.view_functions.values()}
    return sorted(scope for scope in found if scope is not None)
