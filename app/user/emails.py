"""Emails about accounts, and the tokens in their links. Jobs load the data when they send."""

import hashlib
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.user import accounts
from app.user.models import User
from quart_upsun.mail.delivery import external_url
from quart_upsun.mail.letters import Composers, Letter
from quart_upsun.security import signing
from quart_upsun.security.limits import Limit

CONFIRM_LIFETIME_SECONDS = 3 * signing.DAY_SECONDS
RESET_LIFETIME_SECONDS = signing.HOUR_SECONDS
# Confirmation emails to one address, from all clients together.
CONFIRMATION_LIMIT = Limit("confirmations", 5, 3600)


def create_confirm_token(user: User) -> str:
    """Return a token that confirms the pending email address until that changes."""
    return signing.sign("confirm", [user.id, user.pending_email])


def read_confirm_token(token: str) -> tuple[int, str] | None:
    """Return the user id and email address of a valid confirmation token, or None."""
    content = signing.verify("confirm", token, max_age=CONFIRM_LIFETIME_SECONDS)
    return (content[0], content[1]) if content else None


def create_reset_token(user: User) -> str:
    """Return a password reset token.

    It becomes invalid when the password or email address changes, and therefore works once.
    """
    return signing.sign("reset", [user.id, user.session_version, email_fingerprint(user)])


async def read_reset_token(session: AsyncSession, token: str) -> User | None:
    """Return the user of a valid password reset token, or None."""
    content = signing.verify("reset", token, max_age=RESET_LIFETIME_SECONDS)
    if not content:
        return None
    user_id, version, fingerprint = content
    user = await accounts.get_user_by_version(session, user_id, version)
    return user if user and email_fingerprint(user) == fingerprint else None


def email_fingerprint(user: User) -> str:
    """Return a short hash of the email address, so that tokens do not contain the address."""
    address = (user.email or user.pending_email or "").lower()
    return hashlib.sha256(address.encode()).hexdigest()[:16]


async def compose_confirmation(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    user = await accounts.get_user(session, data["user_id"])
    if user is None or user.pending_email is None or user.deactivated_at:
        return None
    owner = next(iter(await accounts.find_users_by_email(session, user.pending_email)), None)
    if owner is not None and owner.email and owner.id != user.id:
        # Only the owner of the email address learns that it has an account.
        return Letter(
            user.pending_email,
            "already-registered",
            {
                "username": owner.username,
                "login": external_url("user.login"),
                "forgot": external_url("recovery.forgot"),
            },
        )
    link = external_url("recovery.confirm", token=create_confirm_token(user))
    context = {"username": user.username, "link": link, "is_new": user.email is None}
    return Letter(user.pending_email, "confirm", context)


async def compose_password_reset(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    """Compose an email with a reset link for each account of the email address."""
    users = await accounts.find_users_by_email(session, data["email"])
    if not users:
        return None
    links = [
        (user.username, external_url("recovery.reset", token=create_reset_token(user)))
        for user in users
    ]
    return Letter(users[0].email or users[0].pending_email or "", "reset", {"links": links})


async def compose_address_change(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    return Letter(
        data["to"],
        "address-change",
        {"username": data["username"], "forgot": external_url("recovery.forgot")},
    )


async def compose_password_changed(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    return Letter(
        data["to"],
        "password-changed",
        {
            "username": data["username"],
            "has_other_login": data.get("has_other_login"),  # missing in jobs of earlier releases
            "forgot": external_url("recovery.forgot"),
            "account": external_url("account.show"),
        },
    )


async def compose_account_deleted(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    return Letter(data["to"], "deleted", {"username": data["username"]})


async def compose_invitation(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    user = await accounts.get_user(session, data["user_id"])
    if user is None or user.email is None or user.deactivated_at:
        return None
    link = external_url("user.register")
    return Letter(data["email"], "invitation", {"username": user.username, "link": link})


COMPOSERS: Composers = {
    "confirm": compose_confirmation,
    "reset": compose_password_reset,
    "address-change": compose_address_change,
    "password-changed": compose_password_changed,
    "deleted": compose_account_deleted,
    "invitation": compose_invitation,
}
