"""Cookies with the attributes that all cookies of the application have."""

from typing import Literal

from quart import current_app
from quart.typing import ResponseTypes


def set_cookie(
    response: ResponseTypes,
    name: str,
    value: str,
    *,
    max_age: int,
    samesite: Literal["Lax", "Strict"] = "Lax",
) -> None:
    """Set a cookie that scripts cannot read.

    Args:
        response: the response.
        name: the name of the cookie.
        value: its value.
        max_age: how long the browser keeps it, in seconds.
        samesite: `Lax` also sends it with links and redirects from other sites, such as a login
            provider; `Strict` does not.
    """
    response.set_cookie(
        name,
        value,
        max_age=max_age,
        secure=current_app.config["SESSION_COOKIE_SECURE"],
        httponly=True,
        samesite=samesite,
    )


def delete_cookie(response: ResponseTypes, name: str) -> None:
    """Delete a cookie that `set_cookie` has set."""
    response.delete_cookie(
        name,
        secure=current_app.config["SESSION_COOKIE_SECURE"],
        httponly=True,
        samesite="Lax",
    )
